"""Folders that are complete or absent, also when the process is killed at any moment."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import write_hf

from convert import ct2, hf
from convert.output import new_folder
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, Source

_LOOP = """
import sys
from pathlib import Path
from convert import ct2, hf
from convert.output import new_folder
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, Source
source, folder = Source(Path(sys.argv[2]), Kind.HF, "m"), Path(sys.argv[3])
convert = {"ct2": ct2, "hf": hf}[sys.argv[1]].convert
convert(source, folder.with_name("first"), progress=False)
print("ready", flush=True)
while True:
    convert(source, folder, progress=False, force=True)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("command", ["ct2", "hf"])
def test_killed_at_random_moments_a_folder_is_complete_or_absent(command: str, tmp_path: Path) -> None:
    source = Source(write_hf(tmp_path / "model", "starcoder"), Kind.HF, "m")
    convert = {"ct2": ct2, "hf": hf}[command].convert
    whole = contents(convert(source, tmp_path / "whole", progress=False))
    generator = random.Random(0)
    found = 0
    for attempt in range(6):
        parent = tmp_path / str(attempt)
        parent.mkdir()
        arguments = [sys.executable, "-c", _LOOP, command, str(source.path), str(parent / "out")]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            time.sleep(generator.uniform(0, 0.3))
            process.send_signal(signal.SIGKILL)
        if (parent / "out").exists():
            found += 1
            assert {name: data for name, data in contents(parent / "out").items() if name != ".lock"} == whole
        names = {path.name for path in parent.iterdir()}
        assert names <= {"first", "out", ".out.incomplete", ".out.replaced"}
        convert(source, parent / "out", progress=False, force=True)
        assert contents(parent / "out") == whole
        assert {path.name for path in parent.iterdir()} == {"first", "out"}
    assert found, "no kill came after a first folder: the test sees nothing"


def test_a_folder_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(ModelError, match="exists already"),
        new_folder(tmp_path / "out", needed_bytes=0, force=False),
    ):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes").touch()
    assert contents(tmp_path / "out") == {"notes": b""}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_a_run_killed_between_its_renames_put_aside_comes_back(tmp_path: Path) -> None:
    aside, left = tmp_path / ".out.replaced", tmp_path / ".out.incomplete"
    for folder in (aside, left, left / "subfolder"):
        folder.mkdir()
    (aside / "model.bin").write_bytes(b"old")
    with (
        pytest.raises(ModelError, match="exists already"),
        new_folder(tmp_path / "out", needed_bytes=0, force=False),
    ):
        pass
    assert contents(tmp_path / "out") == {"model.bin": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    left.mkdir()
    (left / "subfolder").mkdir()
    with new_folder(tmp_path / "out", needed_bytes=0, force=True) as folder:
        (folder / "model.bin").write_bytes(b"new")
    assert contents(tmp_path / "out") == {"model.bin": b"new"}
