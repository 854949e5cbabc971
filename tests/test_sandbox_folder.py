"""Folders as a hostile run leaves them: measured and removed whatever their depth, names and rights."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rrtf_serve.sandbox.inside import folder
from rrtf_serve.sandbox.jobs import FunctionJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Status

LONG = "d" * 255  # 17 of these are longer than any path may be


@contextmanager
def _little_stack() -> Iterator[None]:
    before = sys.getrecursionlimit()
    depth = 0
    frame = sys._getframe()
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    sys.setrecursionlimit(depth + 60)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _nest(top: Path, name: str, depth: int, *, mode: int = 0o700, written: int = 0) -> None:
    """A folder in a folder, `depth` times, with a file and a link to the outside in each."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.symlink(top.parent, "link", dir_fd=inner)
        file = os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=inner)
        os.write(file, b"x" * written)
        os.close(file)
        os.fchmod(fd, mode)
        os.close(fd)
        fd = inner
    os.close(fd)


@pytest.fixture
def top(tmp_path: Path) -> Path:
    made = tmp_path / "run"
    made.mkdir()
    (tmp_path / "kept").write_text("kept")
    return made


@pytest.mark.parametrize(("name", "depth"), [("d", 5000), (LONG, 1500), ("\udcff\n", 300)])
@pytest.mark.parametrize("mode", [0o700, 0])
def test_any_depth_is_removed_with_little_stack(top: Path, name: str, depth: int, mode: int) -> None:
    _nest(top, name, depth, mode=mode)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with _little_stack():
        assert folder.breaks(str(top), 10**9, 10**12) == "files"
        folder.empty(str(top))
    assert list(top.iterdir()) == []
    assert (top.parent / "kept").read_text() == "kept"
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_what_lies_deeper_than_a_path_reaches_counts(top: Path) -> None:
    _nest(top, LONG, 30, written=8192)
    assert folder.breaks(str(top), 90, 1 << 30) == ""
    assert folder.breaks(str(top), 89, 1 << 30) == "files"
    assert folder.breaks(str(top), 90, 25 * 8192) == "disk"
    folder.empty(str(top))


def test_what_a_folder_hides_counts(top: Path) -> None:
    (top / "a").mkdir()
    for number in range(10):
        (top / "a" / str(number)).touch()
    (top / "a").chmod(0o300)
    assert folder.breaks(str(top), 10, 1 << 30) == "files"
    assert folder.breaks(str(top), 11, 1 << 30) == ""


def test_a_folder_that_is_gone_is_empty(tmp_path: Path) -> None:
    assert folder.breaks(str(tmp_path / "none"), 0, 0) == ""
    folder.empty(str(tmp_path / "none"))


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        made = Sandbox(Level.LANDLOCK, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


def test_a_run_may_nest_as_it_likes_and_its_cell_lives_on(sandbox: Sandbox) -> None:
    code = "import os\ndef f(x):\n    for _ in range(5000):\n        os.mkdir('d')\n        os.chdir('d')\n"
    look = FunctionJob("import os\ndef f(x):\n    return os.listdir('.')", "f", "assert f(1) == []")
    assert sandbox.judge(look).passed
    worker = sandbox._idle.get()
    sandbox._idle.put(worker)
    processes = [cell._process for cell in (worker.candidate, worker.examiner)]
    sandbox.judge(FunctionJob(code, "f", "assert f(1) is None"), Limits(wall_s=20, cpu_s=20, files=10**6))
    assert sandbox.judge(look).passed
    assert [cell._process for cell in (worker.candidate, worker.examiner)] == processes


def test_a_run_hides_no_files_by_rights_on_their_folder(sandbox: Sandbox) -> None:
    code = (
        "import os, time\ndef f(x):\n    os.mkdir('a')\n    for n in range(300):\n"
        "        open(f'a/{n}', 'w').close()\n        if not n: os.chmod('a', 0o300)\n    time.sleep(5)\n"
    )
    verdict = sandbox.judge(FunctionJob(code, "f", "assert f(1) is None"), Limits(wall_s=20, files=200))
    assert verdict.status is Status.RUNTIME_ERROR
    assert "files" in verdict.message


@pytest.mark.parametrize(("prelude", "tests"), [("", "assert f(1) =="), ("import os\nos._exit(0)", "f(1)")])
def test_tests_that_fail_first_are_not_the_candidates_compile_error(
    sandbox: Sandbox, prelude: str, tests: str
) -> None:
    slow_to_compile = "x = 1\n" * 100_000 + "def f(x):\n    return x\n"
    verdict = sandbox.judge(FunctionJob(slow_to_compile, "f", tests, prelude), Limits(wall_s=20))
    assert verdict.status is Status.RUNTIME_ERROR, verdict
