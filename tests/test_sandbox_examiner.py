"""Which function of the test code is called, and which `check` is only a name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rrtf_serve.sandbox.jobs import FunctionJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Status

LIMITS = Limits(wall_s=20, cpu_s=10)
CHECK = "def check(n):\n    return {}\n"
STATEMENTS = "assert check(1) == 2\nassert check(2) == 3\n"
FUNCTION = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(2) == 3\n"


@pytest.fixture(scope="module", params=[Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    try:
        made = Sandbox(request.param, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


@pytest.mark.parametrize("tests", [STATEMENTS, FUNCTION], ids=["statements", "function"])
@pytest.mark.parametrize(
    ("answer", "status"),
    [("n + 1", Status.ALL_PASS), ("2", Status.PARTIAL), ("None", Status.RUNTIME_ERROR)],
    ids=["right", "half", "wrong"],
)
def test_an_entry_point_may_be_named_check(sandbox: Sandbox, tests: str, answer: str, status: Status) -> None:
    verdict = sandbox.judge(FunctionJob(CHECK.format(answer), "check", tests), LIMITS)
    assert (verdict.status, len(verdict.tests)) == (status, 2), verdict


def test_a_method_may_be_named_check(sandbox: Sandbox) -> None:
    code = "class Solution:\n    def check(self, n):\n        return n + 1\n"
    assert sandbox.judge(FunctionJob(code, "Solution().check", FUNCTION), LIMITS).passed


def test_a_check_that_the_tests_only_use_is_not_called_for_them(sandbox: Sandbox) -> None:
    """The prelude's and the candidate's are helpers; calling them with the entry point would fail."""
    code = "def f(n):\n    return n\n"
    helper = "def check(n):\n    if not isinstance(n, int):\n        raise TypeError(n)\n    return n > 0\n"
    tests = "assert check(f(1))\nassert not check(f(-1))\n"
    for job in (FunctionJob(code, "f", tests, helper), FunctionJob(code + helper, "f", tests)):
        verdict = sandbox.judge(job, LIMITS)
        assert verdict.passed and len(verdict.tests) == 2, verdict


def test_the_tests_own_check_comes_before_the_preludes(sandbox: Sandbox) -> None:
    helper = "def check(candidate):\n    raise KeyError\n"
    assert sandbox.judge(FunctionJob(CHECK.format("n + 1"), "check", FUNCTION, helper), LIMITS).passed
