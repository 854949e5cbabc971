"""The kernels' build: once, kept, and clear about what it lacks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rrtf_serve.engine.torch.native import library

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C++ compiler")
_LOAD = "from rrtf_serve.engine.torch.native import library; print(library.unit(library.load()))"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    library.load.cache_clear()
    yield tmp_path / "home" / "kernels"
    library.load.cache_clear()


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A compiler that has compiled already: a real library is copied to where one is asked for."""
    folder = tmp_path_factory.mktemp("quick")
    compiler = library.find_compiler()
    assert compiler is not None
    library._build([compiler], folder / "kernels.so")
    script = folder / "c++"
    script.write_text(f'#!/bin/sh\nfor last in "$@"; do :; done\ncp {folder}/kernels.so "$last"\n', "utf-8")
    script.chmod(0o755)
    return str(script)


def test_several_that_start_at_once_end_with_one_file_that_later_ones_take(home: Path) -> None:
    command = [sys.executable, "-c", _LOAD]
    first = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    units = {process.communicate(timeout=300)[0].strip() for process in first}
    assert len(units) == 1
    assert units <= set(library.UNITS)
    [built] = home.iterdir()
    before = built.stat().st_mtime_ns
    # No compiler is looked for any more.
    bare = {**os.environ, "PATH": ""}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=300, env=bare)
    assert [path.stat().st_mtime_ns for path in home.iterdir()] == [before]


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken-cc"
    compiler.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such header" >&2\nexit 1\n', "utf-8"
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(library.KernelError, match="no such header"):
        library.load()
    assert list(home.iterdir()) == []
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    with pytest.raises(library.KernelError, match="No such file or directory"):
        library.load()


def test_a_home_that_can_not_be_written_is_named(home: Path, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file", "utf-8")
    with pytest.raises(library.KernelError, match="can't be built or loaded"):
        library.load()


def test_the_fields_of_both_sides_are_the_same() -> None:
    """A field that one side lacks would shift all behind it: the sizes tell."""
    from ctypes import sizeof

    from rrtf_serve.engine.torch.native import layout

    kernels = library.load()
    sizes = [sizeof(kind) for kind in (layout.Linear, layout.Layer, layout.Model, layout.Store, layout.Pass)]
    assert [kernels.size_of(number) for number in range(5)] == sizes


def test_a_library_that_others_may_have_written_is_built_again(
    home: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", quick)
    library.load()
    [built] = home.iterdir()
    assert built.stat().st_mode & 0o777 == 0o700
    built.unlink()  # it is mapped: never to be written over
    built.write_bytes(b"no library at all")
    built.chmod(0o722)
    library.load.cache_clear()
    library.load()
    assert built.read_bytes().startswith(b"\x7fELF")
    assert built.stat().st_mode & 0o777 == 0o700


def test_a_folder_that_others_may_write_into_is_refused(home: Path) -> None:
    home.mkdir(parents=True)
    home.chmod(0o777)
    with pytest.raises(library.KernelError, match=r"others may write into it.* chmod go-w"):
        library.load()
    assert list(home.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_library_of_another_user_is_built_again(
    home: Path, quick: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", quick)
    library.load()
    [built] = home.iterdir()
    os.chown(built, 12345, -1)
    library.load.cache_clear()
    library.load()
    assert built.stat().st_uid == 0
    os.chown(home, 12345, -1)
    library.load.cache_clear()
    with pytest.raises(library.KernelError, match="belongs to another user"):
        library.load()
