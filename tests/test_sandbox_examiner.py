"""How test code is run: which `check` is called, what calls may raise, what is told of many results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rrtf_serve.sandbox.jobs import Case, CaseJob, CaseSet, FunctionJob
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


@pytest.mark.parametrize(
    "tests",
    [
        "assert all(map(f, [2, 3, 5]))\n",
        "assert not any(map(f, [2, 3, 5]))\n",
        "def check(candidate):\n    for got, want in zip(map(candidate, [1]), [1]):\n        assert got == want\n",
        "assert list(filter(f, [1, 2])) == []\n",
        "assert [f(n) for n in iter(lambda: f(1), 7)] == []\n",
    ],
)
def test_a_call_that_raises_stop_iteration_ends_no_iteration_of_the_tests(
    sandbox: Sandbox, tests: str
) -> None:
    code = "def f(n):\n    raise StopIteration\n"
    verdict = sandbox.judge(FunctionJob(code, "f", tests), LIMITS)
    assert verdict.status is Status.RUNTIME_ERROR, verdict
    assert not any(test.passed for test in verdict.tests)


def test_iterators_still_end(sandbox: Sandbox) -> None:
    code = "def f(g):\n    return list(map(g, [1, 2, 3]))\n"
    tests = "def g(n):\n    if n > 2:\n        raise StopIteration\n    return n\nassert f(g) == [1, 2]\n"
    assert sandbox.judge(FunctionJob(code, "f", tests), LIMITS).passed
    code = "def f(n):\n    return iter(range(n))\n"
    assert sandbox.judge(FunctionJob(code, "f", "assert list(f(3)) == [0, 1, 2]\n"), LIMITS).passed


@pytest.mark.parametrize(("wrong_from", "status"), [(10**9, Status.ALL_PASS), (20_001, Status.PARTIAL)])
def test_no_case_is_beyond_what_is_reported(sandbox: Sandbox, wrong_from: int, status: Status) -> None:
    cases = CaseSet(tuple(Case((n,), n) for n in range(20_005)))
    code = f"def f(n):\n    return n if n < {wrong_from} else -1\n"
    verdict = sandbox.judge(CaseJob(code, "f", cases), Limits(wall_s=60, cpu_s=30))
    assert verdict.status is status, verdict.message
    assert verdict.tests[-1].name == f"5 more, {4 if wrong_from == 20_001 else 0} of them failed"


def test_a_keyword_may_be_called_self(sandbox: Sandbox) -> None:
    assert sandbox.judge(
        FunctionJob("def f(**kw):\n    return kw", "f", "assert f(self=1) == {'self': 1}"), LIMITS
    ).passed


def test_an_ordered_dict_has_its_order(sandbox: Sandbox) -> None:
    tests = "from collections import OrderedDict\nassert f() == OrderedDict(a=1, b=2)\n"
    code = "from collections import OrderedDict\ndef f():\n    return OrderedDict({})\n"
    assert sandbox.judge(FunctionJob(code.format("a=1, b=2"), "f", tests), LIMITS).passed
    assert not sandbox.judge(FunctionJob(code.format("b=2, a=1"), "f", tests), LIMITS).passed
