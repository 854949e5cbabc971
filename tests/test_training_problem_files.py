"""Lines of problem files stand for the very problems they were made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rrtf_serve.problems import origins
from rrtf_serve.problems.problem import CaseTests, FunctionTests, Problem, StdioTests
from rrtf_serve.problems.samples import to_line
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.problems.user_file import load_user_file, problem_of
from training.problem_files import (
    LICENCES,
    as_problem,
    problem_record,
    read_records,
    suite_records,
    write_lines,
)
from training.problem_sets import TRAINABLE

CODE = "def area(r):\n    return 3 * r * r\n"
ASSERTS = ["assert area(0) == 0", "assert area(1) == 3"]
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with MBPP's file, of which 601 and 602 are to train on."""
    rows = [
        {
            "task_id": number,
            "text": f"Write a function to find area {number}.",
            "code": CODE,
            "test_list": ASSERTS,
        }
        for number in (11, 601, 602)
    ]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return tmp_path


def leetcode(text: str = "Given n, return it.", **changes: object) -> Problem:
    fields: dict[str, object] = {
        "task_id": "echo", "prompt": "from typing import *\n", "entry_point": "Solution().echo",
        "tests": FunctionTests("def check(candidate):\n    assert candidate(1) == 1\n", "import math\n"),
        "task": text, "signature": "class Solution:\n    def echo(self, n):\n", "stop": ("\nclass",),
        "reference": "class Solution:\n    def echo(self, n):\n        return n\n",
        "labels": {"difficulty": "Easy"},
    }  # fmt: skip
    return Problem(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("suite", ["mbpp-train", "mbpp-stubs-train"])
def test_a_suite_goes_through_a_file_unchanged(suite: str, data: Path) -> None:
    records = suite_records(suite, data)
    write_lines(data / "out.jsonl", records)
    assert load_user_file(data / "out.jsonl").problems == load_suite(suite, data).problems
    assert {record["licence"] for record in records} == {"CC-BY-4.0"}
    assert records[0]["lineage"]["suite"] == suite


@settings(max_examples=30)
@given(text=TEXT, signature=TEXT, stop=st.lists(TEXT), label=TEXT, reference=st.none() | TEXT)
def test_any_function_problem_comes_back_with_its_digest(
    text: str, signature: str, stop: list[str], label: str, reference: str | None
) -> None:
    problem = leetcode(
        text, signature=signature, stop=tuple(stop), labels={"difficulty": label}, reference=reference
    )
    back = problem_of(json.loads(to_line(problem_record(problem))))
    assert back == problem and back.digest == problem.digest


@settings(max_examples=30)
@given(cases=st.lists(st.tuples(TEXT, TEXT), min_size=1), task=TEXT.filter(str.strip))
def test_input_and_output_come_back(cases: list[tuple[str, str]], task: str) -> None:
    problem = Problem("t", "", tests=StdioTests(tuple(cases)), task=task, reference="print(1)")
    assert problem_of(json.loads(to_line(problem_record(problem)))) == problem


@pytest.mark.parametrize(
    "problem",
    [
        leetcode(suffix="\n    return 1"),
        leetcode(language="java"),
        leetcode(tests=None),
        leetcode(tests=CaseTests({"base": [[1]]}, "", 0.0, CODE)),
    ],
)
def test_what_a_file_can_not_hold_is_refused(problem: Problem) -> None:
    with pytest.raises(ValueError, match="echo"):
        problem_record(problem)


def test_suites_that_measure_or_choose_are_refused(data: Path) -> None:
    for suite in ("humaneval", "mbpp-test", "leetcode-dev", "multipl-e-js"):
        with pytest.raises(ValueError, match="not to train on"):
            read_records(suite, data)
    assert set(LICENCES) == set(TRAINABLE)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"task_id": "a"}, "text is missing"),
        ({"task_id": "a", "text": "Do it", "licence": 3}, "licence must be a text"),
        ({"task_id": "a", "text": "Do it", "lineage": "b"}, "lineage must be an object"),
        (
            {"task_id": "a", "prompt": "p", "entry_point": "f", "test": "x", "stop": "s"},
            "stop must hold texts",
        ),
        ({"task_id": "a", "prompt": "p", "entry_point": "f", "test": "x", "labels": ["s"]}, "labels"),
        (
            {"task_id": "a", "text": "p", "cases": [{"input": "", "output": ""}], "setup": "x"},
            "setup goes with",
        ),
        (
            {
                "task_id": "a",
                "text": "p",
                "test_list": ["assert f(1)"],
                "entry_point": "f",
                "test_imports": 1,
            },
            "test_imports must",
        ),
        (
            {
                "task_id": "a",
                "text": "p",
                "test_list": ["assert f(1)"],
                "entry_point": "f",
                "test_imports": [1],
            },
            "test_imports must",
        ),
        (
            {"task_id": "a", "text": "p", "test_list": ["assert f(1)"], "code": "-" * 3000 + "1"},
            "nested too deeply",
        ),
    ],
)
def test_a_bad_line_is_named(line: dict[str, object], message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    write_lines(path, [{"task_id": "good", "text": "Write a function."}, line])
    with pytest.raises(ValueError, match=f"bad.jsonl:2: .*{message}"):
        read_records(str(path))


def test_a_task_is_a_problem_without_tests() -> None:
    problem = as_problem({"task_id": "a", "text": "Write a function.", "signature": "def f(x):"})
    assert (problem.task, problem.signature, problem.tests) == ("Write a function.", "def f(x):", None)


def test_an_interrupted_file_leaves_nothing(tmp_path: Path) -> None:
    def records() -> object:
        yield {"a": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_lines(tmp_path / "out.jsonl", records())  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_is_nested_too_deeply_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep\.json: not valid JSON"):
        origins.read_records(path)
