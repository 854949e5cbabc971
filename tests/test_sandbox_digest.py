"""Digests are the same for what is equal, and differ for what is not; large outputs are judged by them."""

# ruff: noqa: E501  # tables read best with several entries to a line

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.sandbox.inside.digest import Digest, NoDigestError, digest_of
from rrtf_serve.sandbox.inside.oracle import accepts
from rrtf_serve.sandbox.inside.wire import Codec, dumps
from rrtf_serve.sandbox.inside.writer import Message, surely_longer
from rrtf_serve.sandbox.jobs import Case, CaseJob, CaseSet, Oracle
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Kind, Status


class Colour(IntEnum):
    RED = 3


NUMBERS = (
    st.booleans() | st.integers(-3, 3) | st.sampled_from([10**25, -(10**400), 2.0**80, Colour.RED])
    | st.floats(allow_nan=False) | st.fractions(0, 2, max_denominator=4) | st.decimals(0, 2, places=1)
    | st.complex_numbers(allow_nan=False, max_magnitude=2) | st.sampled_from([float("inf"), Decimal("-inf")])
)  # fmt: skip
LEAVES = (
    NUMBERS
    | st.text(max_size=2)
    | st.binary(max_size=2)
    | st.sampled_from([None, ..., "\ud800", bytearray(b"a")])
)
KEYS = st.integers(0, 3) | st.floats(0, 3) | st.text(max_size=1) | st.tuples(st.booleans(), st.integers(0, 1))
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.tuples(inner, inner)
    | st.dictionaries(KEYS, inner, max_size=3) | st.sets(KEYS, max_size=3) | st.frozensets(KEYS, max_size=3),
    max_leaves=6,
)  # fmt: skip


@given(VALUES, VALUES)
def test_equal_digests_are_equal_values(left: object, right: object) -> None:
    assert (digest_of(left).text == digest_of(right).text) is (left == right)


@pytest.mark.parametrize(
    "left, right",
    [
        ([1, (2, "a")], [True, (2.0, "a")]), ([("a", 1)], [("a", 1.0)]), ((0.5,), (Fraction(1, 2),)),
        (0.5, Decimal("0.50")), (1 + 0j, 1), (0.0, -0.0), (b"a", bytearray(b"a")), ({1, 2}, frozenset({2.0, 1})),
        ({1: "a", 2: "b"}, OrderedDict({2.0: "b", 1: "a"})), (Counter("aab"), {"a": 2, "b": 1}), (Colour.RED, 3),
        ([(10**5000, "x")], [(10**5000, "x")]), ("".join(["a", "b"]), "ab"), ([float("inf")], [Decimal("inf")]),
    ],
)  # fmt: skip
def test_what_is_equal_has_one_digest(left: object, right: object) -> None:
    assert left == right
    assert digest_of(left).text == digest_of(right).text


def test_what_has_no_digest_says_so() -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    cycle: list[object] = []
    cycle.append(cycle)
    for value in (float("nan"), [1, {2: Decimal("nan")}], object(), [len], complex("nan"), nested, cycle):
        with pytest.raises(NoDigestError):
            digest_of(value)


def test_digests_are_compared_where_equality_is_what_counts() -> None:
    there = Digest(digest_of([1, 2]).text)
    for kind in ("close", "equal"):
        assert accepts(kind, there, Digest(there.text), 0, 0)
        assert accepts(kind, [1.0, 2], there, 0, 0)
        assert accepts(kind, there, [1, 2], 0, 0)
        assert not accepts(kind, there, [1, 3], 1, 1)
    assert not accepts("exact", there, Digest(there.text), 0, 0)
    assert not accepts("set", there, Digest(there.text), 0, 0)


@pytest.fixture(scope="module", params=[Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    try:
        made = Sandbox(request.param, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    with made:
        yield made


LIMITS = Limits(wall_s=30, value_bytes=1 << 17)
REFERENCE = "def f(n):\n    return [(i, 'x') for i in range(n)]\n"


@pytest.mark.parametrize(
    ("code", "passed"),
    [
        (REFERENCE, [True, True]),
        ("def f(n):\n    return [(float(i), 'x') for i in range(n)]\n", [True, True]),
        ("def f(n):\n    return [(i, 'x') for i in range(n - (n > 10))]\n", [True, False]),
        ("def f(n):\n    return [[i, 'x'] for i in range(n)] if n > 10 else [(i, 'x') for i in range(n)]\n", [True, False]),
        ("def f(n):\n    return 'x' * (n * 100) if n > 10 else 1\n", [False, False]),
        ("def f(n):\n    return [float('nan')] * n\n", [False, False]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["close", "equal"])
def test_outputs_too_large_to_cross(sandbox: Sandbox, kind: str, code: str, passed: list[bool]) -> None:
    cases = CaseSet((Case((3,)), Case((30_000,))), Oracle(kind), REFERENCE)  # type: ignore[arg-type]  # one of its kinds
    verdict = sandbox.judge(CaseJob(code, "f", cases), LIMITS)
    assert [test.passed for test in verdict.tests] == passed, verdict
    assert verdict.kind is None


def test_a_digest_made_up_is_no_answer(sandbox: Sandbox) -> None:
    code = (
        "import rrtf_serve.sandbox.inside.digest as d\nclass Yes(str):\n    __eq__ = lambda s, o: True\n"
        "    __hash__ = str.__hash__\ndef f(n):\n    return d.Digest(Yes('0' * 64))\n"
    )
    cases = CaseSet((Case((3,)), Case((30_000,))), Oracle("close"), REFERENCE)
    assert sandbox.judge(CaseJob(code, "f", cases), LIMITS).status is Status.RUNTIME_ERROR


def test_where_types_count_too_large_is_too_large(sandbox: Sandbox) -> None:
    cases = CaseSet((Case((3,), 3), Case((30_000,), 3)), Oracle("exact"))
    assert sandbox.judge(CaseJob(REFERENCE, "f", cases), LIMITS).kind is Kind.OUTPUT


@given(
    st.lists(st.lists(st.integers(0, 9), max_size=4) | st.tuples(st.integers(), st.text()) | st.integers())
)
def test_what_is_surely_longer_is(value: list[object]) -> None:
    """The estimate never claims more than the text takes, also where a part comes twice."""
    codec = Codec(lambda *_: None, lambda _: None, lambda _: False, lambda _: "")
    for whole in (value, value * 3, tuple(value)):
        message = Message(codec)
        length = len(dumps([message.encode(whole), message.nodes, []]))
        assert not surely_longer(whole, length)
    assert surely_longer([(1, 2)] * 1, 12)
