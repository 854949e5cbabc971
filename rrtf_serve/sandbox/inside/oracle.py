"""Whether an output is what was expected (jobs.Oracle says what each kind means).

Runs in the examiner's process: outputs are hostile data, and hashing or comparing them may never end.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from decimal import Decimal
from typing import Any

DEFAULT_ATOL = 1e-6  # EvalPlus: floats are held to this where a problem states no tolerance


def accepts(kind: str, output: Any, expected: Any, atol: float, rtol: float) -> bool:
    """Raises whatever comparing raises; the caller counts that as a failure."""
    if kind == "exact":
        return same(output, expected)
    if kind == "close":
        return close(output, expected, atol, rtol)
    if kind == "unordered":
        return unordered(output, expected)
    if kind == "set":
        return set(output) == set(expected)
    if kind == "not_none":
        return bool(output == expected) if isinstance(output, bool) else expected == (output is not None)
    return bool(output == expected)


def same(left: Any, right: Any) -> bool:
    """Equal and of the same types throughout, without recursion; NaN is the same as NaN, 0.0 is not -0.0."""
    pending = [(left, right)]
    seen = set()
    while pending:
        a, b = pending.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, (list, tuple, deque, dict)):
            if len(a) != len(b):
                return False
            if (id(a), id(b)) not in seen:
                seen.add((id(a), id(b)))
                pairs = _pairs(a, b)
                if pairs is None:
                    return False
                pending.extend(pairs)
        elif not _same_leaf(a, b):
            return False
    return True


def _pairs(a: Any, b: Any) -> list[tuple[Any, Any]] | None:
    """The values of two containers that must be the same; None where their keys differ."""
    if not isinstance(a, dict):
        return list(zip(a, b, strict=True))
    if {_typed(key) for key in a} != {_typed(key) for key in b}:
        return None
    return [(a[key], b[key]) for key in a]


def _same_leaf(a: Any, b: Any) -> bool:
    if isinstance(a, (set, frozenset)):
        return {_typed(x) for x in a} == {_typed(x) for x in b}
    if isinstance(a, (float, complex, Decimal)):
        return repr(a) == repr(b)  # tells signs of zero apart, and no NaN from another
    if _is_array(a):
        return a.dtype == b.dtype and a.shape == b.shape and same(a.tolist(), b.tolist())
    return bool(a == b)


def _typed(value: Any) -> Any:
    """What may be a key or in a set, such that it equals only what is also of the same types throughout."""
    if isinstance(value, tuple):
        return tuple, tuple(map(_typed, value))
    if isinstance(value, frozenset):
        return frozenset, frozenset(map(_typed, value))
    if isinstance(value, (float, complex, Decimal)):
        return type(value), repr(value)
    return type(value), value


def close(output: Any, expected: Any, atol: float, rtol: float) -> bool:
    """EvalPlus's rule: equal, or the same outer type and length and each number within tolerance."""
    if _equal(output, expected):
        return True
    if atol == 0 and _is_floats(expected):
        atol = DEFAULT_ATOL
    if atol == 0 or type(output) is not type(expected):
        return False
    return _near(output, expected, atol, rtol)


def _near(left: Any, right: Any, atol: float, rtol: float) -> bool:
    pending = [(left, right)]
    while pending:
        a, b = pending.pop()
        if isinstance(b, (list, tuple)):
            if not isinstance(a, (list, tuple)) or len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif (
            not isinstance(a, (int, float, complex))
            or not isinstance(b, (int, float, complex))
            or (a != b and not _within(a, b, atol, rtol))
        ):
            return False
    return True


def _within(a: complex, b: complex, atol: float, rtol: float) -> bool:
    """Nothing but infinity is near infinity, though every tolerance relative to it is infinite."""
    return not math.isinf(abs(b)) and abs(a - b) <= atol + rtol * abs(b)


def unordered(output: Any, expected: Any) -> bool:
    """Same outer type and the same elements as often, in any order."""
    if (
        type(output) is not type(expected)
        or not isinstance(output, (list, tuple))
        or len(output) != len(expected)
    ):
        return False
    try:
        return Counter(output) == Counter(expected)
    except TypeError:  # lists and sets can't be counted
        left = list(output)
        for item in expected:
            if item not in left:
                return False
            left.remove(item)
        return not left


def _equal(left: Any, right: Any) -> bool:
    if _is_array(left) or _is_array(right):
        return same(left, right)
    return bool(left == right)


def _is_floats(value: Any) -> bool:
    if isinstance(value, float):
        return True
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(x, float) for x in value)


def _is_array(value: object) -> bool:
    return type(value).__module__ == "numpy" and type(value).__name__ == "ndarray"
