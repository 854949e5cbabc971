"""Journals: one owner at a time, nothing lost, nothing empty left behind."""

import fcntl
import multiprocessing
from pathlib import Path
from typing import IO, Any

import pytest

from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.samples import BusyError, Journal


def kept(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in json_lines(path)]


def add_many(path: Path, name: str, busy: Any) -> None:
    for count in range(20):
        try:
            with Journal(path) as journal:
                journal.add({"key": f"{name} {count}"})
        except BusyError:
            busy.value += 1


def test_processes_that_take_turns_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    context = multiprocessing.get_context("spawn")
    busy = context.Value("i", 0)
    workers = [context.Process(target=add_many, args=(path, name, busy)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    assert len(kept(path)) == 40 - busy.value


def test_a_second_owner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with (
        Journal(path),
        pytest.raises(BusyError, match="another run is writing here; wait for it, or name another place"),
    ):
        Journal(path)
    with Journal(path) as journal:
        journal.add({"key": "a"})
    assert kept(path) == [{"key": "a"}]


def test_a_journal_without_a_record_is_removed(tmp_path: Path) -> None:
    with Journal(tmp_path / "new" / "j"):
        assert (tmp_path / "new" / "j").exists()
    assert list((tmp_path / "new").iterdir()) == []


def test_a_packed_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"without \.gz"):
        Journal(tmp_path / "j.jsonl.gz")


def test_a_journal_that_was_removed_meanwhile_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "j"
    locks: list[int] = []
    lock = fcntl.flock

    def removed_before_the_lock(file: IO[bytes], operation: int) -> None:
        locks.append(operation)
        if len(locks) == 1:
            path.unlink()
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", removed_before_the_lock)
    with Journal(path) as journal:
        journal.add({"key": "a"})
    assert len(locks) == 2
    assert kept(path) == [{"key": "a"}]


def test_a_journal_refuses_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"task_id": "t/double"}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:1: not a line of this journal .no key"):
        Journal(path)
    assert kept(path) == [{"task_id": "t/double"}]


def test_a_journal_of_one_torn_line_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"x" * 200_000)
    with Journal(path) as journal:
        assert journal.records == {}
        journal.add({"key": "a"})
    assert kept(path) == [{"key": "a"}]
