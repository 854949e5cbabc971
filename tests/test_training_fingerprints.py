"""Benchmarks are known by their words, whatever file or task_id they come under."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from rrtf_serve.problems.suites import SUITES, load_suite
from training import fingerprints
from training.cli import main
from training.fingerprints import FILE, benchmark_of, fingerprint, refuse_benchmarks, told_of
from training.problem_files import problem_record, write_lines
from training.problem_sets import load_problem_set
from training.proposals import read_tasks
from training.seeds import read_seeds

needs_data = pytest.mark.skipif("RRTF_DATA_DIR" not in os.environ, reason="RRTF_DATA_DIR is not set")
# MBPP's task 11 (CC-BY-4.0, Austin et al. 2021), in the words of its data set.
TEXT = "Write a python function to remove first and last occurrence of a given character from the string."
LINE = {
    "task_id": "mine/1", "text": TEXT, "entry_point": "cut", "code": "def cut(s, c):\n    return s",
    "test_list": ["assert cut('hello', 'l') == 'heo'"],
}  # fmt: skip
DOCUMENTED = f'def cut(s, c):\n    """{TEXT}\n\n    >>> cut("hello", "l")\n    \'heo\'\n    """\n'
HIDDEN: list[dict[str, Any]] = [
    LINE,
    LINE | {"text": TEXT.upper() + "\n\nExamples:\n1"},
    LINE | {"text": "Finish what was begun below.", "signature": DOCUMENTED},
    LINE | {"task": "Finish what was begun.", "signature": DOCUMENTED.replace('"""', "\'\'\'")},
    {"task_id": "mine/1", "prompt": DOCUMENTED, "entry_point": "cut", "test": "def check(c):\n    pass"},
    {"task_id": "mine/1", "prompt": DOCUMENTED, "entry_point": "cut", "test": "def check(c):\n    pass",
     "task": "Some other words about ducks and geese."},
]  # fmt: skip


@pytest.mark.parametrize("line", HIDDEN)
def test_a_test_set_in_a_file_is_refused(line: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    write_lines(
        path, [LINE | {"task_id": "good", "text": "Write a function that feeds the ducks at noon."}, line]
    )
    with pytest.raises(ValueError, match=r"mine\.jsonl: mine/1 has the words of Mbpp/11 of mbpp-test"):
        load_problem_set([str(path)])


def test_no_tests_are_written_for_it_and_nothing_grows_from_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tasks.jsonl"
    other = {"task_id": "t/2", "text": "Write a function that feeds the ducks at noon.", "licence": "MIT"}
    write_lines(path, [{"task_id": "t/1", "text": TEXT, "licence": "MIT"}, other])
    with pytest.raises(ValueError, match="t/1 has the words of Mbpp/11"):
        read_tasks(path)
    assert [seed.task_id for seed in read_seeds(str(path))] == ["t/2"]
    assert "1 seeds are left out" in caplog.text
    write_lines(path, [{"task_id": "t/1", "text": TEXT, "licence": "MIT"}])
    with pytest.raises(ValueError, match="all of its 1 tasks are benchmarks'"):
        read_seeds(str(path))


def test_what_is_anybodys_is_no_benchmarks() -> None:
    assert fingerprint("Write a function to add two numbers.") == ""
    assert benchmark_of("Write a function to add two numbers.") is None
    assert told_of([]) == ""


def test_the_file_is_of_suites_that_are_tests() -> None:
    lines = [json.loads(line) for line in FILE.read_text("ascii").splitlines()]
    assert tuple(line["suite"] for line in lines) == fingerprints.SUITES
    assert set(fingerprints.SUITES) <= set(SUITES)
    assert min(len(line["problems"]) for line in lines) == 20


@needs_data
@pytest.mark.parametrize("suite", ["humaneval", "mbpp-test", "codereval-python"])
def test_the_file_is_what_the_suites_say(suite: str, tmp_path: Path) -> None:
    lines = {line["suite"]: line for line in map(json.loads, FILE.read_text("ascii").splitlines())}
    assert fingerprints.fingerprints(suite) == lines[suite]
    if suite == "humaneval":
        path = tmp_path / "renamed.jsonl"
        problems = list(load_suite(suite).problems.values())
        write_lines(
            path, [problem_record(each) | {"task_id": f"my/{at}"} for at, each in enumerate(problems)]
        )
        with pytest.raises(ValueError, match=r"\(1[56]\d such problems in all\)"):
            load_problem_set([str(path)])
        assert main(["sample", str(tmp_path / "run"), "--problems", str(path), "--name", "a", "--role",
                     "teacher", "--kind", "reference"]) == 2  # fmt: skip
    if suite == "mbpp-test":
        with pytest.raises(ValueError, match="MbppStub/602 has the words of Mbpp/217 of mbpp-test"):
            refuse_benchmarks(load_suite("mbpp-stubs-train").problems.values(), "mbpp-stubs-train")
