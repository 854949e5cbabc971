"""Problem files and task files: JSON Lines of what is to be trained on, each with its licence and lineage.

A problem has tests and one of the shapes of `rrtf_serve.problems.user_file`; a task is words without tests:
{"task_id", "text", "signature"?, "licence", "lineage"}. Suites of the project become lines of the first kind.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import FunctionTests, Problem, StdioTests
from rrtf_serve.problems.samples import naming, to_line
from rrtf_serve.problems.suites import SUITES, load_suite
from rrtf_serve.problems.user_file import problem_of

log = logging.getLogger(__name__)

TEST_FIELDS = ("test", "test_list", "cases")


@dataclass(frozen=True)
class Licence:
    """Of a data set: SPDX's name for it, and who is to be named."""

    name: str
    attribution: str


_MBPP = Licence("CC-BY-4.0", "MBPP, Austin et al. 2021, arXiv 2108.07732")
_LEETCODE = Licence("MIT", "LeetCodeDataset v0.2.0, arXiv 2504.14655; the statements are LeetCode's")
# Suites that may be trained on. The others are for choosing or for measuring, or their licence forbids it.
LICENCES = {
    "mbpp-train": _MBPP,
    "mbpp-sanitized-train": _MBPP,
    "mbpp-stubs-train": _MBPP,
    "leetcode-fit": _LEETCODE,
}


def read_records(source: str, data_dir: Path | None = None) -> list[Record]:
    """Lines of a file, or the problems of a suite that may be trained on, as such lines.

    Raises ValueError naming the file and line, or saying why the suite is refused.
    """
    if source in SUITES:
        return suite_records(source, data_dir)
    path = Path(source)
    if not path.is_file():
        raise ValueError(
            f"{source}: neither a file nor a suite; suites to train on are {', '.join(LICENCES)}"
        )
    records = []
    for number, record in json_lines(path):
        try:
            check_record(record)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        records.append(record)
    if not records:
        raise ValueError(f"{path}: nothing in it")
    return records


def suite_records(name: str, data_dir: Path | None = None) -> list[Record]:
    """Raises ValueError as `load_suite` does, and for a suite that is not for training."""
    licence = LICENCES.get(name)
    if licence is None:
        raise ValueError(
            f"{name}: is there to measure or to choose by, not to train on; take {', '.join(LICENCES)}"
        )
    return [
        problem_record(problem)
        | {
            "licence": licence.name,
            "lineage": {"suite": name, "task_id": problem.task_id, "attribution": licence.attribution},
        }
        for problem in load_suite(name, data_dir).problems.values()
    ]


def problem_record(problem: Problem) -> Record:
    """The line that `problem_of` reads as this very problem.

    Raises ValueError for a problem that a file can't hold: in another language than Python, with a gap to
    fill, or with tests that are neither Python code nor input and output.
    """
    record: Record
    if isinstance(problem.tests, FunctionTests):
        record = {
            "task_id": problem.task_id,
            "prompt": problem.prompt,
            "entry_point": problem.entry_point,
            "test": problem.tests.code,
        }
        if problem.reference is not None:
            record["canonical_solution"] = problem.reference
    elif isinstance(problem.tests, StdioTests):
        cases = [{"input": given, "output": expected} for given, expected in problem.tests.cases]
        record = {"task_id": problem.task_id, "text": problem.task, "cases": cases}
        if problem.reference is not None:
            record["code"] = problem.reference
    else:
        raise ValueError(f"{problem.task_id}: a problem file holds Python tests or input and output only")
    record |= _stated(problem, problem_of(record))
    if problem_of(record) != problem:
        raise ValueError(
            f"{problem.task_id}: a problem file can't hold all of it (a gap, or another language)"
        )
    return record


def _stated(problem: Problem, derived: Problem) -> Record:
    """Fields that the shape alone would give another value."""
    stated: Record = {
        name: getattr(problem, name)
        for name in ("task", "signature")
        if getattr(problem, name) != getattr(derived, name)
    }
    if problem.stop != derived.stop:
        stated["stop"] = list(problem.stop)
    if problem.labels != derived.labels:
        stated["labels"] = dict(problem.labels)
    if (
        isinstance(problem.tests, FunctionTests)
        and isinstance(derived.tests, FunctionTests)
        and problem.tests.setup != derived.tests.setup
    ):
        stated["setup"] = problem.tests.setup
    return stated


def is_problem(record: Record) -> bool:
    """Whether the line has tests; a task has none."""
    return any(field in record for field in TEST_FIELDS)


def check_record(record: Record) -> None:
    """Raises ValueError naming the field that is missing or of the wrong kind."""
    if is_problem(record):
        problem_of(record)
    else:
        for field in ("task_id", "text"):
            if not isinstance(record.get(field), str) or not record[field].strip():
                raise ValueError(
                    f"{field} is missing or not a text (and there are no tests: see {TEST_FIELDS})"
                )
        if not isinstance(record.get("signature", ""), str):
            raise ValueError("signature must be a text")
    if not isinstance(
        record.get("licence") or "", str
    ):  # `import` and `tests` write null where none is known
        raise ValueError("licence must be a text")
    if not isinstance(record.get("lineage", {}), dict):
        raise ValueError("lineage must be an object")


def as_problem(record: Record) -> Problem:
    """A line as a problem; a task becomes one without tests."""
    if is_problem(record):
        return problem_of(record)
    return Problem(
        task_id=record["task_id"], prompt="", task=record["text"], signature=record.get("signature", "")
    )


def write_lines(path: Path, records: Iterable[dict[str, Any]]) -> int:
    """JSON Lines, complete or not there; how many lines."""
    count = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path), unfinished.open("wb") as file:
            for record in records:
                file.write(to_line(record))
                count += 1
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def next_aside(folder: Path) -> Path:
    """folder/before-N, of the first N that is free; not made yet."""
    names = (folder / f"before-{number}" for number in range(1, 1 << 20))
    return next(each for each in names if not each.exists())


def keep_aside(folder: Path, names: Iterable[str], settings: dict[str, Any]) -> Path | None:
    """Move an earlier result of other settings to folder/before-N, and say so; None where there is none.

    `settings` are held against those of the same name in folder/report.json.
    """
    path = folder / "report.json"
    if not path.is_file():
        return None
    before = json.loads(path.read_text("utf-8"))
    if all(before.get(name) == json.loads(json.dumps(value)) for name, value in settings.items()):
        return None
    aside = next_aside(folder)
    aside.mkdir()
    for name in [*names, path.name]:
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    log.warning("%s: holds a result of other settings, which is kept in %s", folder, aside)
    return aside


def write_text(path: Path, text: str) -> None:
    """A text file, complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with naming(path):
            unfinished.write_text(text, "utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
