"""How figures are reported: medians with their range, proportions with their interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and count of repeated measurements."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}


def wilson_interval(passed: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson score interval of a proportion, 95 % by default (E. B. Wilson, JASA 22, 1927)."""
    if not 0 <= passed <= total or total == 0:
        raise ValueError(f"passed must be between 0 and total > 0, not {passed} of {total}")
    share = passed / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
