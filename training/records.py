"""Tuples: a problem's prompt, its candidate answers and which of them is to be ranked above which.

One line of JSON per problem, written by `rank` and read by `fit`:

    write_tuples(path, [Tuple(task_id, suite, prompt, candidates, pairs, chosen), ...])
    for item in read_tuples(path): ...
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.prompts import Prompt

ROLES = ("teacher", "student")


@dataclass(frozen=True)
class Candidate:
    """One answer and what the tests said of it."""

    source: str  # who wrote it
    role: str  # "teacher" or "student"
    text: str  # what the model is to write; `fit` adds the end token
    status: str  # one of sandbox.verdict.Status' names
    passed: int  # tests
    tests: int
    score: float  # r of the paper: what the ranking made of the verdict and the role
    key: str = ""  # of its sample


class Pair(NamedTuple):
    """Two candidates by index, the first ranked above the second. weight: r_tea - r_stu, above 0."""

    teacher: int
    student: int
    weight: float


@dataclass(frozen=True)
class Tuple:
    """All that training sees of one problem. Raises ValueError naming the field that makes no sense.

    `chosen` is the index of the candidate whose cross-entropy is L_ft. Without pairs it carries L_ft alone.
    """

    task_id: str
    suite: str
    prompt: Prompt
    candidates: tuple[Candidate, ...]
    pairs: tuple[Pair, ...]
    chosen: int

    def __post_init__(self) -> None:
        count = len(self.candidates)
        if not (self.prompt.text or self.prompt.message):
            raise ValueError("prompt: has neither text nor message")
        if not 0 <= self.chosen < count:
            raise ValueError(f"chosen: {self.chosen} is no index of the {count} candidates")
        for at, candidate in enumerate(self.candidates):
            if candidate.role not in ROLES:
                raise ValueError(
                    f"candidates[{at}].role: {candidate.role!r} is not one of {', '.join(ROLES)}"
                )
            if not candidate.text.strip():
                raise ValueError(f"candidates[{at}].text: is empty, so there is nothing to learn from it")
            if not isfinite(candidate.score):
                raise ValueError(f"candidates[{at}].score: is {candidate.score}, not a finite number")
        for at, (teacher, student, weight) in enumerate(self.pairs):
            if not (0 <= teacher < count and 0 <= student < count) or teacher == student:
                raise ValueError(
                    f"pairs[{at}]: {teacher} and {student} are not two of the {count} candidates"
                )
            if not 0 < weight < float("inf"):  # written so that NaN fails it
                raise ValueError(f"pairs[{at}]: its weight is {weight}; it must be above 0")


def to_record(item: Tuple) -> Record:
    """As plain data, the fields in the order of the classes."""
    return asdict(item)


def from_record(record: Record) -> Tuple:
    """Raises ValueError naming the field that is missing or of another type. Fields not known are ignored."""
    candidates = record.get("candidates")
    pairs = record.get("pairs")
    if not isinstance(candidates, list) or not all(isinstance(each, dict) for each in candidates):
        raise ValueError("candidates: missing, or not a list of objects")
    if not isinstance(pairs, list):
        raise ValueError("pairs: missing, or not a list (an empty one is fine)")
    return Tuple(
        task_id=_typed(record, "task_id", str),
        suite=_typed(record, "suite", str),
        prompt=_prompt(_typed(record, "prompt", dict)),
        candidates=tuple(_candidate(each, f"candidates[{at}].") for at, each in enumerate(candidates)),
        pairs=tuple(_pair(each, at) for at, each in enumerate(pairs)),
        chosen=_typed(record, "chosen", int),
    )


def read_tuples(path: Path) -> list[Tuple]:
    """Every tuple of the file, in its order.

    Raises ValueError naming the file, the line and the field; also on a task that comes twice, and on a file
    without any.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; `rrtf-train rank` writes it")
    found: dict[str, Tuple] = {}
    for number, record in json_lines(path):
        try:
            item = from_record(record)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        name = f"{item.suite}/{item.task_id}"
        if name in found:
            raise ValueError(f"{path}:{number}: task_id: {item.task_id!r} of {item.suite} comes twice")
        found[name] = item
    if not found:
        raise ValueError(
            f"{path}: holds no tuples; was any problem solved? `rrtf-train rank` prints what it dropped"
        )
    return list(found.values())


def write_tuples(path: Path, items: Iterable[Tuple]) -> int:
    """Write the file, complete or not at all; how many tuples it holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    count = 0
    try:
        with fresh.open("wb") as file:
            for item in items:
                file.write((json.dumps(to_record(item)) + "\n").encode("ascii"))
                count += 1
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def _typed(record: Record, field: str, kind: type, where: str = "") -> Any:
    value: Any = record.get(field)
    # True is an int to Python, and a whole number is a fine score.
    right = type(value) is kind or (kind is float and type(value) is int)
    if not right:
        found = "missing" if value is None else f"{value!r:.80}"
        raise ValueError(f"{where}{field}: {found}; it must be {kind.__name__}")
    return float(value) if kind is float else value


def _prompt(record: Record) -> Prompt:
    known = {item.name for item in fields(Prompt)}
    values = {name: value for name, value in record.items() if name in known}
    if values.get("suffix") is not None:
        _typed(record, "suffix", str, "prompt.")
    stop = values.get("stop", [])
    if not isinstance(stop, list) or not all(isinstance(each, str) for each in stop):
        raise ValueError(f"prompt.stop: {stop!r:.80}; it must be a list of texts")
    for name in known & values.keys() - {"suffix", "stop"}:
        _typed(record, name, str, "prompt.")
    _typed(record, "format", str, "prompt.")
    return Prompt(**{**values, "stop": tuple(stop)})


def _candidate(record: Record, where: str) -> Candidate:
    kinds: dict[str, type] = {
        "source": str, "role": str, "text": str, "status": str, "passed": int, "tests": int, "score": float,
    }  # fmt: skip
    values = {name: _typed(record, name, kind, where) for name, kind in kinds.items()}
    return Candidate(**values, key=_typed(record, "key", str, where) if "key" in record else "")


def _pair(entry: Any, at: int) -> Pair:
    if (
        not isinstance(entry, list | tuple)
        or len(entry) != 3
        or any(type(each) is not int for each in entry[:2])
        or type(entry[2]) not in (int, float)
    ):
        raise ValueError(f"pairs[{at}]: {entry!r:.80}; it must be [teacher index, student index, weight]")
    return Pair(entry[0], entry[1], float(entry[2]))
