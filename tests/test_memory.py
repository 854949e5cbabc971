"""What is free: the machine's own figure, and that of the control groups above a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from rrtf_serve import memory


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GiB available and a process in the group a/b."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
    (tmp_path / "own").write_text("0::/a/b\n")
    (tmp_path / "groups" / "a" / "b").mkdir(parents=True)
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "_OWN_GROUP", tmp_path / "own")
    return tmp_path


def limit(folder: Path, most: str, used: int, cache: int = 0) -> None:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_the_machine_alone(system: Path) -> None:
    assert memory.available_memory() == 8 * 2**30
    limit(system / "groups" / "a", "max", 5)
    assert memory.available_memory() == 8 * 2**30


def test_the_tightest_group_counts_and_its_cache_of_files_is_free(system: Path) -> None:
    limit(system / "groups" / "a", str(4 * 2**30), 1 * 2**30)
    limit(system / "groups" / "a" / "b", str(2 * 2**30), 3 * 2**29, cache=2**29)
    assert memory.available_memory() == 2**30
    limit(system / "groups" / "a" / "b", str(2**30), 3 * 2**30)
    assert memory.available_memory() == 0


def test_nobody_knows(system: Path) -> None:
    (system / "meminfo").unlink()
    (system / "own").write_text("1:memory:/old\n")
    assert memory.available_memory() is None


def test_this_machine_has_some() -> None:
    found = memory.available_memory()
    assert found is None or found > 2**20
