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
from rrtf_serve.models.source import Kind, Source

_LOOP = """
import sys
from pathlib import Path
from convert import ct2, hf
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
