"""How test code is run: which `check` is called, what calls may raise, what is told of many results."""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

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
        "def check(c):\n    for got, want in zip(map(c, [1]), [1]):\n        assert got == want\n",
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


def test_modules_that_the_tests_forgot_to_import_are_not_the_candidates(sandbox: Sandbox) -> None:
    tests = "assert f(4) == math.sqrt(16)\n"
    honest = "import math\ndef f(n):\n    return n\n"
    cheat = "class math:\n    sqrt = lambda x: 0\ndef f(n):\n    return 0\n"
    assert sandbox.judge(FunctionJob(honest, "f", tests), LIMITS).passed
    assert not sandbox.judge(FunctionJob(cheat, "f", tests), LIMITS).passed
    queue = "class queue:\n    size = 3\ndef f():\n    return queue()\n"  # a class of the candidate's
    assert sandbox.judge(FunctionJob(queue, "f", "assert isinstance(f(), queue)\n"), LIMITS).passed


BAD = "class Bad(ValueError):\n    def __init__(self, code):\n        super().__init__('no', code)\n        self.code = code\n"
CLASSES = {
    "own exception by name": (
        BAD + "def f(n):\n    raise Bad(n)\n",
        "try:\n    f(7)\n    caught = None\nexcept Bad as error:\n    caught = error\n"
        "assert caught.code == 7 and isinstance(caught, ValueError)\nassert issubclass(Bad, ValueError)\n",
    ),
    "tests' exception through a callback": (
        "def f(g):\n    try:\n        g()\n    finally:\n        pass\n",
        "class Mine(KeyError):\n    pass\ndef g():\n    raise Mine(3)\ntry:\n    f(g)\n    caught = None\n"
        "except Mine as error:\n    caught = error.args\nassert caught == (3,)\n",
    ),
    "exception class handed over": (
        "class Bad(Exception):\n    pass\ndef f(g, kind):\n    try:\n        g()\n    except kind:\n        return True\n",
        "def g():\n    raise LookupError\nassert f(g, LookupError)\nclass Mine(Exception):\n    pass\ndef h():\n    raise Mine\nassert f(h, Mine)\n",
    ),
    "class of the test code": (
        "def f(p):\n    p.x += 1\n    return p.x + p.y\n",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n    y: int = 2\n"
        "def check(candidate):\n    p = P(1)\n    assert candidate(p) == 4\n    assert p == P(2, 2)\n",
    ),
    "class of both": (
        "class Node:\n    def __init__(self, v, n=None):\n        self.v, self.n = v, n\ndef f(node):\n    return Node(0, node)\n",
        "class Node:\n    def __init__(self, v, n=None):\n        self.v, self.n = v, n\nout = f(Node(5))\n"
        "assert isinstance(out, Node)\nassert (out.v, out.n.v, out.n.n) == (0, 5, None)\n",
    ),
    "nested calls": (
        "def f(g):\n    kept = {}\n    def w(n):\n        if n not in kept:\n            kept[n] = g(n)\n        return kept[n]\n    return w\n",
        "@f\ndef fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)\nassert fib(150) == 9969216677189303386214405760200\n",
    ),
    "endless nesting": (
        "def f(g):\n    return g(g)\n",
        "def g(h):\n    return f(h)\ntry:\n    f(g)\n    deep = False\nexcept RecursionError:\n    deep = True\nassert deep\n",
    ),
    "name": ("def f(n):\n    return n\n", "assert f(1) == 1\nassert f.__name__ == 'f'\n"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_classes_and_nesting_are_as_in_one_process(sandbox: Sandbox, name: str) -> None:
    code, tests = CLASSES[name]
    verdict = sandbox.judge(FunctionJob(code, "f", tests), LIMITS)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    "code",
    [
        "class Bad(Exception):\n    __eq__ = lambda s, o: True\ndef f(n):\n    raise Bad\n",
        "def f(n):\n    error = KeyError()\n    error.__class__ = LookupError\n    error.args = n\n    raise error\n",
        "class AssertionError(Exception):\n    pass\ndef f(n):\n    raise AssertionError\n",
        "class Error(Exception):\n    pass\ndef f(n):\n    error = Error()\n    error.with_traceback = error.__traceback__ = 3\n    raise error\n",
        "class Gone(BaseException):\n    pass\ndef f(n):\n    raise Gone\n",
        "class Stop(StopIteration):\n    pass\ndef f(n):\n    raise Stop\n",
    ],
)
def test_what_a_candidate_raises_passes_nothing(sandbox: Sandbox, code: str) -> None:
    verdict = sandbox.judge(FunctionJob(code, "f", "assert all(map(f, [1]))\nassert f(1) == 1\n"), LIMITS)
    assert verdict.status is Status.RUNTIME_ERROR, verdict
    assert not any(test.passed for test in verdict.tests)
