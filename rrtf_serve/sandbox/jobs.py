"""What can be judged: plain data, nothing that runs on the host.

Plain data, wherever a value crosses: None, bool, int, float, complex, str, bytes, bytearray, list, tuple,
dict, set, frozenset, range, Decimal, Fraction, date/time values, with shared references and cycles kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


class BadJob(ValueError):  # noqa: N818  # reads as what happened where it is caught
    """A job that can't be run at all, whatever the candidate; says what is the matter with it."""


@dataclass(frozen=True)
class FunctionJob:
    """A function (or method) and test code that calls it.

    The candidate runs in one confined process, `prelude` + `test_code` in another; every call, argument and
    result crosses as plain data. Each assertion outside a `try` is one test, failures don't end the run.

    `test_code` either defines `check(candidate)` (HumanEval, LeetCodeDataset) or is a list of statements that
    use the entry point by its name (MBPP). A `check` that it does not define itself, such as an entry point
    of that name, is an ordinary function. Names that neither `prelude` nor `test_code` defines are looked up
    in the candidate (a class that tests construct, say), so what tests rely on belongs in `prelude`.
    """

    candidate_code: str
    entry_point: str  # "has_close_elements", or "Solution().twoSum": a new object for every call
    test_code: str
    prelude: str = (
        ""  # runs before test_code; defines helpers (HumanEval/32's poly) and shared classes (ListNode)
    )


@dataclass(frozen=True)
class Oracle:
    """How an output is held against the expected value.

    exact      equal, and of the same types throughout: 1 is neither 1.0 nor True; NaN equals NaN
    equal      Python's own == on plain data
    close      as equal, or the same outer type and length and every number within atol + rtol * |expected|
    unordered  the same elements in any order (outermost list or tuple), compared by ==
    set        set(output) == set(expected)
    not_none   expected is a bool: whether the output is not None (EvalPlus, MBPP_OUTPUT_NOT_NONE_TASKS)
    """

    kind: Literal["exact", "equal", "close", "unordered", "set", "not_none"] = "exact"
    atol: float = 0.0
    rtol: float = 0.0


@dataclass(frozen=True)
class Case:
    """One call. `expected` is ignored where the job brings a reference."""

    arguments: tuple[object, ...]
    expected: object = None


@dataclass(frozen=True, eq=False)
class CaseSet:
    """A problem's cases; build it once and share it between jobs, it is encoded once.

    With `reference_code` the expected values are what the reference's entry point returns for the same
    arguments, computed once per CaseSet in a sandbox run of its own; where the reference fails, the verdict
    is INFRA_ERROR with its message. In `close` mode EvalPlus's rule holds: where atol is 0 and the expected
    value is a float, or a list or tuple of floats, atol is 1e-6. In `equal` and `close` mode an output longer
    than Limits.value_bytes does not cross: its digest does, and it passes if it is equal, without tolerance.
    """

    cases: tuple[Case, ...]
    oracle: Oracle = Oracle()
    reference_code: str = ""
    reference_limits_factor: float = 4.0  # the reference may take this many times the job's limits


@dataclass(frozen=True)
class CaseJob:
    """A function held against cases, one test per case."""

    candidate_code: str
    entry_point: str
    cases: CaseSet


@dataclass(frozen=True)
class StdioCase:
    stdin: str  # half surrogates U+DC80 to U+DCFF stand for bytes that are no UTF-8 (PEP 383)
    expected: str

    @property
    def data(self) -> bytes:
        """Raises BadJob where other half surrogates are in it."""
        try:
            return self.stdin.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise BadJob(f"a case's standard input can't be written as bytes: {error}") from error


@dataclass(frozen=True)
class StdioJob:
    """A whole Python programme, run anew per case; wall_s and cpu_s hold per case.

    Outputs are compared line by line after stripping white space at line ends and blank lines at the end.
    With `tolerance` above 0 tokens that both read as numbers may differ by that much, absolutely or
    relatively. A missing or an extra line is a difference. `stop_early` leaves later cases unrun after a
    failure; one that breaks a limit always does. All cases together may take 20 times wall_s.
    """

    program: str
    cases: tuple[StdioCase, ...]
    tolerance: float = 0.0
    stop_early: bool = False


@dataclass(frozen=True)
class ProgramJob:
    """A self-contained programme of another language, tests included (MultiPL-E), judged as one test.

    Passed only if every step exits with status 0 and the programme's end was reached (languages.py says how
    each language proves that). Candidate and tests share a process here: see "What a programme could do" in
    docs/sandbox.md.
    """

    language: str  # a key of languages.LANGUAGES: "javascript", "typescript", "bash", "cpp"
    source: str


Job = FunctionJob | CaseJob | StdioJob | ProgramJob
