# ruff: noqa: E501  # tables read best with several entries to a line

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from rrtf_serve.sandbox.inside.oracle import accepts
from rrtf_serve.sandbox.text import same_text

CYCLE: list[object] = [1]
CYCLE.append(CYCLE)
OTHER_CYCLE: list[object] = [1]
OTHER_CYCLE.append(OTHER_CYCLE)


@pytest.mark.parametrize(
    "kind, output, expected, verdict",
    [
        ("exact", 1, 1, True), ("exact", 1, 1.0, False), ("exact", True, 1, False), ("exact", (1,), [1], False),
        ("exact", [math.nan], [math.nan], True), ("exact", 0.0, -0.0, False), ("exact", {1: 2}, {True: 2}, False),
        ("exact", {1: [2]}, {1: [2]}, True), ("exact", {1, 2}, {2, 1}, True), ("exact", {1}, {1.0}, False),
        ("exact", CYCLE, OTHER_CYCLE, True), ("exact", [1, 2], [1], False), ("exact", "a", b"a", False),
        ("equal", 1, 1.0, True), ("equal", (1,), [1], False), ("equal", math.nan, math.nan, False),
        ("close", 0.30000001, 0.3, True), ("close", 0.31, 0.3, False), ("close", [0.5, 1.0], [0.5000001, 1.0], True),
        ("close", (0.5,), [0.5000001], False), ("close", 1, 1.0, True), ("close", [1], [1, 2], False),
        ("close", [1.0], [1.0, 2.0], False), ("close", "a", "b", False), ("close", [1, "a"], [1, "a"], True),
        ("unordered", [2, 1], [1, 2], True), ("unordered", [1, 1, 2], [1, 2, 2], False),
        ("unordered", [[1], "a"], ["a", [1]], True), ("unordered", (1, 2), [1, 2], False),
        ("unordered", [1, "a", None], [None, 1, "b"], False),
        ("set", [1, 1, 2], [2, 1], True), ("set", [1], [2], False),
        ("exact", {(1,)}, {(True,)}, False), ("exact", {(1,): 1}, {(1.0,): 1}, False), ("exact", {(1, "a")}, {(1, "a")}, True),
        ("exact", complex("nan"), complex("nan"), True), ("exact", Decimal("nan"), Decimal("nan"), True),
        ("exact", frozenset({1}), frozenset({1.0}), False), ("exact", {math.nan}, {math.nan}, True),
        ("close", 0.0, math.inf, False), ("close", 1e308, math.inf, False), ("close", -math.inf, math.inf, False),
        ("close", math.inf, math.inf, True), ("close", [0.0, 1.0], [math.inf, 1.0], False), ("close", math.inf, 1.0, False),
        ("close", [math.inf, 1.0], [math.inf, 1.0 + 1e-8], True),
        ("unordered", [{1}, {2}], [{2}, {1}], True), ("unordered", [{1}, {2}], [{1}, {1}], False),
        ("not_none", "match", True, True), ("not_none", None, False, True), ("not_none", None, True, False),
        ("not_none", False, False, True), ("not_none", False, True, False),
    ],
)  # fmt: skip
def test_oracles(kind: str, output: object, expected: object, verdict: bool) -> None:
    assert accepts(kind, output, expected, 0.0, 1e-7) is verdict


def test_a_tolerance_given_is_the_one_used() -> None:
    assert accepts("close", 1.4, 1, 0.5, 0.0) is False  # another type
    assert accepts("close", 1.4, 1.0, 0.5, 0.0)
    assert not accepts("close", 1.6, 1.0, 0.5, 0.0)
    assert accepts("close", [[1.0, 5]], [[1.2, 5]], 0.5, 0.0)
    assert not accepts("close", [math.nan], [1.0], 0.5, 0.0)


@pytest.mark.parametrize(
    "output, expected, tolerance, equal",
    [
        ("7\n", "7", 0, True), ("7 \r\n\n\n", "7", 0, True), ("7", "7\n8", 0, False), ("7\n8\n9", "7\n8", 0, False),
        ("", "", 0, True), ("", "x", 0, False), (" 7", "7", 0, False), ("a\n\nb", "a\nb", 0, False),
        ("0.5000001 x", "0.5 x", 1e-6, True), ("0.51 x", "0.5 x", 1e-6, False), ("nan", "nan", 1e-6, True),
        ("5", "inf", 1e-6, False), ("inf", "Infinity", 1e-6, True), ("-inf", "inf", 1e-6, False), ("inf", "5", 1e-6, False),
        ("nan", "1", 1e-6, False), ("1000000.5", "1000000", 1e-6, True), ("1 2", "1", 1e-6, False),
    ],
)  # fmt: skip
def test_printed_text(output: str, expected: str, tolerance: float, equal: bool) -> None:
    assert (same_text(output, expected, tolerance) == "") is equal
