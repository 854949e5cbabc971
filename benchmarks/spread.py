"""How repeated measurements are reported: medians with their range."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest, largest and count of repeated measurements."""
    return {"median": median(values), "min": min(values), "max": max(values), "n": len(values)}
