"""A problem and a programme -> a job for the sandbox, and what the verdict says of the problem's groups of
tests."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from rrtf_serve.problems.evalplus import ORACLES
from rrtf_serve.problems.problem import CaseTests, FunctionTests, Problem, ProgramTests, StdioTests
from rrtf_serve.sandbox.jobs import (
    Case,
    CaseJob,
    CaseSet,
    FunctionJob,
    Job,
    Oracle,
    ProgramJob,
    StdioCase,
    StdioJob,
)
from rrtf_serve.sandbox.verdict import Verdict

# Oracles that the sandbox has itself; the others become test code.
_BUILT_IN = {"": Oracle("close", rtol=1e-7), "set": Oracle("set")}


@dataclass
class JobBuilder:
    """Builds jobs; keeps what the jobs of one problem share, so that it is encoded once."""

    _case_sets: dict[str, CaseSet] = field(default_factory=dict)

    def build(self, problem: Problem, program: str) -> Job:
        """`program` is the whole candidate: `problem.program(completion)`, or an answer that stands alone.

        Raises ValueError for a problem whose tests can't be had.
        """
        tests = problem.tests
        if tests is None:
            raise ValueError(f"{problem.task_id}: its data set comes without tests; it can't be judged here")
        if isinstance(tests, FunctionTests):
            return FunctionJob(program, problem.entry_point, tests.code, tests.setup)
        if isinstance(tests, StdioTests):
            return StdioJob(program, tuple(StdioCase(*case) for case in tests.cases))
        if isinstance(tests, ProgramTests):
            return ProgramJob(problem.language, _with_tests(program, tests.code))
        if tests.oracle in _BUILT_IN:
            return CaseJob(program, problem.entry_point, self._case_set(problem.task_id, tests))
        return FunctionJob(program, problem.entry_point, oracle_tests(tests, problem.entry_point))

    def _case_set(self, task_id: str, tests: CaseTests) -> CaseSet:
        found = self._case_sets.get(task_id)
        if found is None:
            oracle = _BUILT_IN[tests.oracle]
            if tests.oracle == "":
                oracle = Oracle("close", atol=tests.tolerance, rtol=oracle.rtol)
            cases = tuple(Case(tuple(arguments)) for group in tests.groups.values() for arguments in group)
            found = self._case_sets[task_id] = CaseSet(cases, oracle, tests.reference)
        return found


def _with_tests(program: str, tests: str) -> str:
    """MultiPL-E's tests for C++ and Bash begin with the brace that ends the candidate's function.

    A programme that has closed it already does not get a second one.
    """
    if tests.startswith("}") and program.count("{") == program.count("}"):
        tests = tests[1:]
    return f"{program}\n{tests}"


def oracle_tests(tests: CaseTests, entry_point: str) -> str:
    """Test code for the few problems with several right answers: one assertion per group that has cases.

    The reference runs beside the tests, in their process. Arguments are written as Python literals.
    """
    rule = ORACLES[tests.oracle]
    accepted = f"out == expected or {rule}" if tests.oracle.startswith("or-") else rule
    return (
        "import copy, math\n"
        "inf, nan = math.inf, math.nan\n"
        "reference = {}\n"
        f"exec({json.dumps(tests.reference)}, reference)\n"
        f"tolerance = {tests.tolerance!r}\n"
        "def check(candidate):\n"
        + "".join(
            f"    for arguments in {cases!r}:\n"
            f"        expected = reference[{entry_point!r}](*copy.deepcopy(arguments))\n"
            # Inside the assertion, so that a candidate that raises fails this group alone.
            f"        assert ((out := candidate(*arguments)), {accepted})[1]\n"
            for cases in tests.groups.values()
            if cases
        )
    )


def group_results(problem: Problem, verdict: Verdict) -> dict[str, bool]:
    """Whether each group of tests passed as a whole; empty for problems without groups.

    A run that was cut short before a group's end has not passed that group.
    """
    if not isinstance(problem.tests, CaseTests):
        return {}
    results: dict[str, bool] = {}
    start = 0
    for name, cases in problem.tests.groups.items():
        # One test per case, or one assertion that a loop runs over all of them.
        count = len(cases) if problem.tests.oracle in _BUILT_IN else min(1, len(cases))
        tests = verdict.tests[start : start + count]
        results[name] = len(tests) == count and all(test.passed for test in tests)
        start += count
    return results
