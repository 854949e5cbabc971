"""The problems of a run: suites by name and files of the user's own, together.

Sets that are tests are refused by name, and so are those that choices are made by: neither may be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rrtf_serve.problems.problem import Problem, Suite
from rrtf_serve.problems.suites import SUITES, load_suite
from training.fingerprints import refuse_benchmarks

TRAINABLE = ("mbpp-train", "mbpp-sanitized-train", "mbpp-stubs-train", "leetcode-fit")
VALIDATION = (
    "mbpp-validation", "mbpp-sanitized-validation", "mbpp-stubs-validation", "leetcode-dev",
)  # fmt: skip


@dataclass(frozen=True)
class ProblemSet:
    """Problems of several suites under one roof; `suite_of` says which one a task came from."""

    suite: Suite
    suite_of: dict[str, str]  # task_id -> name of its suite or file

    @cached_property
    def problems(self) -> dict[str, Problem]:
        return self.suite.problems


def load_problem_set(
    names: Sequence[str], data_dir: Path | None = None, limit: int | None = None
) -> ProblemSet:
    """`names` are suites or files; `limit` takes the first problems of each, for a trial.

    Raises ValueError naming the flag: no names, a suite that is not for training, a task that is in two sets,
    problems without tests; and as `suites.load_suite` does.
    """
    if not names:
        raise ValueError(f"--problems: name at least one of {', '.join(TRAINABLE)}, or a file of problems")
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, not {limit}")
    found: dict[str, Problem] = {}
    suite_of: dict[str, str] = {}
    for name in names:
        check_trainable(name)
        suite = load_suite(name, data_dir)
        if name not in SUITES:
            refuse_benchmarks(suite.problems.values(), f"--problems {name}")
        for task_id, problem in list(suite.problems.items())[:limit]:
            if task_id in found:
                raise ValueError(
                    f"--problems {name}: its task {task_id!r} is in {suite_of[task_id]} too; leave one out"
                )
            if problem.tests is None:
                raise ValueError(f"--problems {name}: {task_id} has no tests; `rrtf-train tests` makes them")
            found[task_id], suite_of[task_id] = problem, suite.name
    return ProblemSet(Suite("+".join(dict.fromkeys(suite_of.values())), found), suite_of)


def check_trainable(name: str) -> None:
    """Raises ValueError on a suite that is a test, or that choices are made by."""
    if name not in SUITES or name in TRAINABLE:
        return
    why = "is kept for choosing between runs" if name in VALIDATION else "is a test"
    raise ValueError(
        f"--problems {name}: {why}, so nothing may be trained on it; take {', '.join(TRAINABLE)}, or a file"
    )
