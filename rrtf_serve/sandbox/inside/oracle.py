"""Whether an output is what was expected (jobs.Oracle says what each kind means).

Runs in the examiner's process: outputs are hostile data, and hashing or comparing them may never end.
"""

from __future__ import annotations

import math
from collections import deque
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
        if isinstance(a, (list, tuple, deque)):
            if (id(a), id(b)) in seen:
                continue
            seen.add((id(a), id(b)))
            if len(a) != len(b):
                return False
            pending.extend(zip(a, b, strict=True))
        elif isinstance(a, dict):
            if (id(a), id(b)) in seen:
                continue
            seen.add((id(a), id(b)))
            keys = {(type(k), k): k for k in b}
            if len(a) != len(b) or any((type(k), k) not in keys for k in a):
                return False
            pending.extend((a[k], b[k]) for k in a)
        elif isinstance(a, (set, frozenset)):
            if {(type(x), x) for x in a} != {(type(x), x) for x in b}:
                return False
        elif isinstance(a, float):
            if not ((math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))):
                return False
        elif _is_array(a):
            if a.dtype != b.dtype or a.shape != b.shape or not same(a.tolist(), b.tolist()):
                return False
        elif a != b:
            return False
    return True


def close(output: Any, expected: Any, atol: float, rtol: float) -> bool:
    """EvalPlus's rule: equal, or else the same outer type and length and every number within the tolerance."""
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
        elif not isinstance(a, (int, float, complex)) or not isinstance(b, (int, float, complex)):
            return False
        elif a != b and not abs(a - b) <= atol + rtol * abs(b):
            return False
    return True


def unordered(output: Any, expected: Any) -> bool:
    """Same outer type and the same elements as often, in any order."""
    if type(output) is not type(expected) or not isinstance(output, (list, tuple)) or len(output) != len(expected):
        return False
    try:
        return sorted(output) == sorted(expected)
    except TypeError:
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
