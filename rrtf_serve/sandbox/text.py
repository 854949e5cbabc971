"""Comparing what a programme printed with what it should have printed."""

from __future__ import annotations

import math

SHOWN = 80


def same_text(output: str, expected: str, tolerance: float = 0.0) -> str:
    """ "" where equal (jobs.StdioJob says what that means), else the first difference in words."""
    got, want = _lines(output), _lines(expected)
    for number, (left, right) in enumerate(zip(got, want, strict=False), 1):
        if left != right and not (tolerance and _near(left, right, tolerance)):
            return f"line {number}: {left[:SHOWN]!r}, expected {right[:SHOWN]!r}"
    if len(got) != len(want):
        return f"{len(got)} lines, expected {len(want)}"
    return ""


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _near(left: str, right: str, tolerance: float) -> bool:
    a, b = left.split(), right.split()
    return len(a) == len(b) and all(
        x == y or _near_numbers(x, y, tolerance) for x, y in zip(a, b, strict=True)
    )


def _near_numbers(left: str, right: str, tolerance: float) -> bool:
    try:
        a, b = float(left), float(right)
    except ValueError:
        return False
    return a == b or (not math.isinf(b) and abs(a - b) <= tolerance * max(1.0, abs(b)))
