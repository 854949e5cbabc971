"""What of an interpreter's place a run may see: what it needs, and only the runs that need it."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rrtf_serve.sandbox.jobs import BadJob, FunctionJob, ProgramJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.languages import available, prepare, program_files
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Kind

LIMITS = Limits(wall_s=20, cpu_s=10)


def _install(prefix: Path) -> Path:
    """Something that runs by the name of node, and a file beside it that is nobody's business."""
    (prefix / "bin").mkdir(parents=True)
    node = prefix / "bin" / "node"
    node.write_text(f"#!/bin/sh\ncat {prefix}/secret\nexit 41\n")
    node.chmod(0o755)
    (prefix / "lib").mkdir()
    (prefix / "secret").write_text("canary")
    for folder in (prefix, *prefix.parents):
        if folder.stat().st_uid == prefix.stat().st_uid and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return node


def test_of_an_installation_only_its_parts_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = _install(tmp_path / "node-22")
    monkeypatch.setenv("PATH", str(node.parent))
    assert program_files() == [node, tmp_path / "node-22" / "lib"]


@pytest.mark.parametrize("home", ["home", "home/someone"])
def test_of_a_home_only_the_programme_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    node = _install(tmp_path / "home")
    (tmp_path / home).mkdir(exist_ok=True)
    monkeypatch.setenv("PATH", str(node.parent))
    monkeypatch.setenv("HOME", str(tmp_path / home))
    assert program_files() == [node]


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Not in /tmp, which no run shares with the host."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.mark.parametrize("level", [Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def test_python_candidates_see_nothing_of_it(
    elsewhere: Path, monkeypatch: pytest.MonkeyPatch, level: Level
) -> None:
    node = _install(elsewhere / "home")
    monkeypatch.setenv("PATH", f"{node.parent}:{Path(shutil.which('sh') or '/bin/sh').parent}:/usr/bin")
    monkeypatch.setenv("HOME", str(elsewhere / "home"))
    read = (
        "def f(path):\n    try:\n        return open(path).read()\n    except OSError:\n        return None\n"
    )
    tests = f"assert f({str(elsewhere / 'home' / 'secret')!r}) is None\nassert f({str(node)!r}) is None\n"
    try:
        sandbox = Sandbox(level, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with sandbox:
        assert sandbox.judge(FunctionJob(read, "f", tests), LIMITS).passed
        verdict = sandbox.judge(ProgramJob("javascript", ""), LIMITS)
        assert "41" in verdict.message, verdict  # it ran
        assert "canary" not in verdict.output


def test_an_interpreter_that_no_run_sees_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another of its name, of another version, must not be run in its place."""
    node = _install(tmp_path / "node-22")
    monkeypatch.setenv("PATH", f"{node.parent}:/usr/bin")
    with pytest.raises(BadJob, match=f"node is {node}"):
        prepare("javascript", "", hidden=tmp_path)
    assert prepare("javascript", "").argv


@pytest.mark.skipif(not available("cpp") or not available("javascript"), reason="no compiler or no node here")
@pytest.mark.parametrize("level", [Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def test_limits_are_known_through_the_shell(level: Level) -> None:
    limits = Limits(wall_s=60, cpu_s=1)
    grows = "#include <vector>\nint main() { std::vector<char*> v; for (;;) { v.push_back(new char[1 << 20]); for (int i = 0; i < 1 << 20; i += 4096) v.back()[i] = 1; } }\n"
    try:
        sandbox = Sandbox(level, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with sandbox:
        assert sandbox.judge(ProgramJob("javascript", "while (true) {}\n"), limits).kind is Kind.TIMEOUT
        assert (
            sandbox.judge(ProgramJob("cpp", grows), replace(limits, cpu_s=20, memory_bytes=256 << 20)).kind
            is Kind.MEMORY
        )
        assert sandbox.judge(ProgramJob("javascript", "process.exit(137)\n"), limits).kind is None
