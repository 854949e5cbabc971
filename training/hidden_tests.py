"""How good agreed tests are: a suite's own tests are hidden, tests are made anew, and the two are compared.

Only for suites that training may look at.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rrtf_serve.problems.estimator import wilson_interval
from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.problem import FunctionTests, Problem, Suite
from rrtf_serve.problems.syntax import parse
from rrtf_serve.sandbox.judge import Sandbox
from training.agreed_tests import problem_of
from training.agreement import distinct
from training.outcomes import LIMITS
from training.proposals import Task, header_of


def hide_tests(suite: Suite, limit: int | None = None, shown: int = 1) -> list[Task]:
    """The suite's first tasks as words, a header, and the first `shown` assertions as examples. Raises
    ValueError where a problem has no words or no plain function as reference."""
    return [_task(problem, shown) for problem in list(suite.problems.values())[:limit]]


def _task(problem: Problem, shown: int) -> Task:
    functions = [
        node
        for node in parse(problem.reference or "").body
        if isinstance(node, ast.FunctionDef) and node.name == problem.entry_point
    ]
    if not problem.task or not functions:
        raise ValueError(f"{problem.task_id}: needs a task in words and a plain function as reference")
    code = problem.tests.code if isinstance(problem.tests, FunctionTests) else ""
    examples = [line for line in code.splitlines() if line.startswith("assert ")][:shown]
    text = "\n\n".join([problem.task, *(["For example:\n" + "\n".join(examples)] if examples else [])])
    return Task(problem.task_id, text, header_of(ast.unparse(functions[-1])))


def compare(folder: Path, suite: Suite, sources: Sequence[str], sandbox: Sandbox) -> dict[str, Any]:
    """Hold the problems of a finished run of `write_tests` against the suite's own tests.

    false_rejects: references that fail the agreed tests, of all kept problems. false_accepts: distinct
    solutions that pass the agreed tests and fail the suite's own, of all that pass the agreed ones.
    Intervals are Wilson's, 95 %; for solutions they count programmes as if they were independent, which those
    of one problem are not; accepted_wrong_problems counts problems in which there is any.
    """
    agreed = {record["task_id"]: problem_of(record) for _, record in json_lines(folder / "problems.jsonl")}
    hidden = {task_id: suite.problems[task_id] for task_id in agreed}
    builder = JobBuilder()

    def passed(problem: Problem, programmes: Iterable[str]) -> list[bool]:
        jobs = [builder.build(problem, programme) for programme in programmes]
        return [verdict.passed for verdict in sandbox.judge_many(jobs, LIMITS)]

    # A reference that fails its own tests here says nothing of ours.
    sound = [id for id, each in hidden.items() if passed(each, [each.reference or ""])[0]]
    rejected = [id for id in sound if not passed(agreed[id], [hidden[id].reference or ""])[0]]
    written = _solutions(folder, agreed, sources)
    both = {True: [0, 0], False: [0, 0]}  # by the hidden tests: failed and passed by ours
    wrong: set[str] = set()
    for id in sound:
        ours, theirs = passed(agreed[id], written[id]), passed(hidden[id], written[id])
        for mine, real in zip(ours, theirs, strict=True):
            both[real][mine] += 1
            if mine and not real:
                wrong.add(id)
    accepted = both[True][True] + both[False][True]
    return {
        "problems": len(sound),
        "false_rejects": _share(len(rejected), len(sound)),
        "rejected_references": rejected,
        "false_accepts": _share(both[False][True], accepted),
        "accepted_wrong_problems": _share(len(wrong), len(sound)),
        "wrong_programmes_caught": _share(both[False][False], sum(both[False])),
        "right_programmes_failed": _share(both[True][False], sum(both[True])),
    }


def _solutions(folder: Path, agreed: dict[str, Problem], sources: Sequence[str]) -> dict[str, list[str]]:
    """The distinct programmes of each kept problem."""
    programmes: dict[str, list[str]] = {task_id: [] for task_id in agreed}
    bare = {task_id: replace(problem, tests=None) for task_id, problem in agreed.items()}
    for name in sources:
        path = folder / "samples" / f"{name}.jsonl"
        for _, record in json_lines(path):
            if record["task_id"] in bare:
                programmes[record["task_id"]].append(bare[record["task_id"]].program(record["completion"]))
    return {
        id: [several[at] for at in distinct(several, agreed[id].entry_point)]
        for id, several in programmes.items()
    }


def _share(count: int, of: int) -> dict[str, Any]:
    low, high = wilson_interval(count, of) if of else (0.0, 1.0)
    return {"count": count, "of": of, "low": low, "high": high}
