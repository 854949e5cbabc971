"""Which texts are benchmarks': so that none is trained on through a file of another name.

benchmarks.jsonl beside this file has, for each suite, a digest of every problem's words
(`passages.task_words`), so the check needs no data set. It knows whole texts only; what is nearly a
benchmark's is found by `clean`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import Problem
from training.contamination import benchmark_problems
from training.near_duplicates import content
from training.passages import statements, task_words

FILE = Path(__file__).with_name("benchmarks.jsonl")
# The infilling suites and HumanEval+ say what HumanEval says, MBPP+ what MBPP says.
SUITES = (
    "humaneval", "mbpp-test", "mbpp-sanitized-test", "leetcode-test", "leetcode-after-2022-07",
    "codereval-python", "codereval-python-human", "codecontests",
)  # fmt: skip
CONTENT_WORDS = 4  # different ones; "add two numbers" is anybody's


def refuse_benchmarks(problems: Iterable[Problem], where: str) -> None:
    """Raises ValueError where a problem's words are a benchmark's."""
    if told := told_of(problems):
        raise ValueError(f"{where}: {told}; `rrtf-train clean` takes them out")


def told_of(problems: Iterable[Problem]) -> str:
    """Which of the problems are benchmarks', in words; "" where none is."""
    found = {
        problem.task_id: name
        for problem in problems
        for text in statements(problem)
        if (name := benchmark_of(text))
    }
    if not found:
        return ""
    task, (suite, other) = next(iter(found.items()))
    return (
        f"{task} has the words of {other} of {suite}, which is a test, so nothing may be trained on it "
        f"({len(found)} such problems in all)"
    )


def benchmark_of(text: str) -> tuple[str, str] | None:
    """Suite and task_id of the benchmark's problem with these words."""
    return _known().get(fingerprint(text))


def fingerprint(text: str) -> str:
    """Of a task's words; "" where they are too few to be anyone's."""
    words = task_words(text)
    if len(set(content(words))) < CONTENT_WORDS:
        return ""
    return hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprints(suite: str, data_dir: Path | None = None) -> Record:
    """The line of benchmarks.jsonl for a suite. Raises ValueError as `load_suite` does."""
    found: dict[str, str] = {}
    for problem in benchmark_problems(suite, data_dir):
        for text in statements(problem):
            if digest := fingerprint(text):
                found.setdefault(digest, problem.task_id)
    return {"suite": suite, "problems": found}


def write_fingerprints(path: Path = FILE, data_dir: Path | None = None) -> None:
    """Make benchmarks.jsonl anew, when a form of words or a suite has changed."""
    lines = [json.dumps(fingerprints(suite, data_dir)) + "\n" for suite in SUITES]
    path.write_text("".join(lines), "ascii")


@cache
def _known() -> dict[str, tuple[str, str]]:
    """Digest -> suite and task_id."""
    return {
        digest: (line["suite"], task)
        for _, line in reversed([*json_lines(FILE)])
        for digest, task in line["problems"].items()
    }
