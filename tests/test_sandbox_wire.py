"""The wire: whatever is plain data comes out as it went in, and nothing else gets through."""

# ruff: noqa: E501  # tables read best with several entries to a line

from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict, deque
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.sandbox.inside.reader import Reader
from rrtf_serve.sandbox.inside.wire import Codec, WireError, dumps, loads
from rrtf_serve.sandbox.inside.writer import Message


class Node:
    def __init__(self, value: object = 0, following: object = None) -> None:
        self.value = value
        self.following = following

    def method(self) -> str:
        return "ours"


def codec() -> Codec:
    return Codec(
        lambda number, name, flags: (number, name, flags),
        {"Node": Node}.get,
        lambda value: isinstance(value, Node),
        lambda _: "c",
    )


def there_and_back(value: object) -> Any:
    message = Message(codec())
    item = message.encode(value)
    item, nodes = loads(dumps([item, message.nodes]))
    return Reader(codec(), nodes).decode(item)


def same(left: Any, right: Any) -> bool:
    if type(left) is not type(right):
        return False
    if isinstance(left, float):
        return left.hex() == right.hex() or (math.isnan(left) and math.isnan(right))
    if isinstance(left, complex):
        return same(left.real, right.real) and same(left.imag, right.imag)
    for hidden in ("maxlen", "default_factory"):
        if getattr(left, hidden, None) != getattr(right, hidden, None):
            return False
    if isinstance(left, (list, tuple, deque)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return same(list(left.items()), list(right.items()))
    return bool(left == right)


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.integers(min_value=2**200) | st.floats() | st.binary()
    | st.text(st.characters()) | st.text(st.characters(categories=["Cs"])) | st.complex_numbers()
    | st.decimals(allow_nan=False) | st.fractions() | st.dates() | st.datetimes() | st.timedeltas() | st.times()
    | st.builds(range, st.integers(), st.integers(), st.integers(min_value=1))
)  # fmt: skip
KEYS = st.integers() | st.text() | st.binary() | st.booleans() | st.tuples(st.integers(), st.text())
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(KEYS, inner) | st.sets(KEYS)
    | st.frozensets(KEYS) | st.builds(deque, st.lists(inner), st.none() | st.integers(0, 5))
    | st.builds(OrderedDict, st.lists(st.tuples(KEYS, inner))) | st.builds(Counter, st.lists(KEYS))
    | st.builds(defaultdict, st.sampled_from([list, int, str]), st.dictionaries(KEYS, inner))
    | st.builds(bytearray, st.binary()),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_values_survive_exactly(value: object) -> None:
    assert same(there_and_back(value), value)


def test_sharing_and_cycles_survive() -> None:
    row = [1]
    grid = [row, row, (row,)]
    cycle: list[object] = []
    cycle.append(cycle)
    out = there_and_back([grid, cycle])
    assert out[0][0] is out[0][1] is out[0][2][0]
    assert out[1][0] is out[1]


def test_depth_is_no_matter() -> None:
    value: object = 1
    for _ in range(100_000):
        value = [value]
    out = there_and_back(value)
    for _ in range(100_000):
        out = out[0]
    assert out == 1


def test_subclasses_become_plain() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Colour(IntEnum):
        RED = 3

    class Tally(Counter[str]):
        def most_common(self, n: int | None = None) -> list[tuple[str, int]]:
            return []

    out = there_and_back([Liar(5), Colour.RED, Tally("aab"), defaultdict(lambda: 1, a=1), {}.keys(), int])
    assert out == [5, 3, {"a": 2, "b": 1}, {"a": 1}, {}.keys(), int]
    assert [type(x) for x in out[:4]] == [int, int, dict, dict]


def test_an_ordered_dicts_order_is_its_own() -> None:
    value = OrderedDict(a=1, b=2)
    value.move_to_end("a")
    assert list(there_and_back(value)) == ["b", "a"]


def test_special_values() -> None:
    aware = datetime(2024, 2, 29, 12, tzinfo=UTC)
    values = [
        ...,
        -0.0,
        math.inf,
        Decimal("1.50"),
        Fraction(-1, 3),
        date(1, 1, 1),
        aware,
        timedelta(-1, 5, 7),
    ]
    assert same(there_and_back(values), values)
    assert math.isnan(there_and_back(math.nan))
    assert list(there_and_back({"a": (1, 2)}.items())) == [("a", (1, 2))]


def test_changes_in_place_travel_back() -> None:
    shared = {1}
    arguments = [[shared, "x"], {"k": shared}, Node(1)]
    call = Message(codec())
    item = call.encode(arguments)
    other = Reader(codec(), loads(dumps(call.nodes)))
    theirs = other.decode(item)
    theirs[0].append(theirs[1])
    theirs[1]["k"].add(2)
    theirs[2].value = [theirs[0]]
    reply = Message(codec(), other.objects)
    root = reply.encode(theirs[0])
    writes = [[n, reply.node(x)] for n, x in enumerate(other.objects)]
    reply.fill()
    back = Reader(codec(), loads(dumps(reply.nodes)), call.objects)
    for number, node in writes:
        back.update(number, node)
    assert back.decode(root) is arguments[0]
    assert arguments[0] == [{1, 2}, "x", {"k": {1, 2}}]
    assert arguments[0][2] is arguments[1]  # type: ignore[index]  # a list, as built above
    assert arguments[2].value[0] is arguments[0]  # type: ignore[union-attr]  # a Node, as built above


@pytest.mark.parametrize(
    "item, nodes",
    [
        ([0], []),
        ([-1], [["list"]]),
        ({}, []),
        ([0], [["list", {}]]),
        ([0], [["tuple", [0]]]),
        ([0], [["tuple", [1]], ["tuple", [0]]]),
        ([0], [["set", [1]], ["list"]]),
        ([0], [["dict", 1]]),
        ([0], [["dict", [1], 2], ["list"]]),
        ([0], [["obj", "Unknown"]]),
        ([0], [["obj", "Node", "value"]]),
        ([0], [["obj", "Node", "method", 1]]),
        ([0], [["obj", "Node", "__class__", 1]]),
        ([0], [["bytearray", "zz"]]),
        ([0], [["module", "os"]]),
        ([0], [["deque"]]),
        ([0], [["deque", -1]]),
        ([0], [["deque", [1]], ["list"]]),
        ([0], [["defaultdict"]]),
        ([0], [["defaultdict", 1]]),
        ([0], [["defaultdict", None, 1, 2]]),
        ([0], [["ordered", 1]]),
        ([0], ["list"]),
        ([0], [[]]),
        (["i", "zz"], []),
        (["b", 5], []),
        (["y", "eval"], []),
        (["y", "os"], []),
        (["t", "datetime", "yesterday"], []),
        (["q", "0x1", "0x0"], []),
        (["g", "0x0", "0x1", "0x0"], []),
        (["d", "one"], []),
        (["h", "a", "b", "c"], []),
        (["o", 0], []),
        (["o", True], []),
        (["reduce", "os.system"], []),
        ([], []),
        ([[0]], [["list"]]),
    ],
)  # fmt: skip
def test_what_is_no_message_is_refused(item: Any, nodes: Any) -> None:
    with pytest.raises(WireError):
        Reader(codec(), nodes).decode(item)


@pytest.mark.parametrize("payload", [b"", b"\xff", b"[" * 100_000, b"[1", b"1 2", b'"' + b"9" * 10 + b"x"])
def test_what_is_no_json_is_refused(payload: bytes) -> None:
    with pytest.raises(WireError):
        loads(payload)


@pytest.mark.parametrize(
    "number, node", [(-1, ["list"]), (0, ["dict"]), (9, ["list"]), (0, []), (1, ["tuple"])]
)
def test_updates_must_fit(number: int, node: list[object]) -> None:
    with pytest.raises(WireError):
        Reader(codec(), [], [[1], (2,)]).update(number, node)
