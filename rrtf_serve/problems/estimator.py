"""pass@k, its uncertainty, and the comparison of two runs over the same problems.

All functions take plain counts, in the same order of problems on both sides of a comparison. Random draws are
seeded: the same input always gives the same interval.

Intervals speak of the problems as a sample from all that might have been asked. None has no width: where all
problems have the same score, they are as wide as the number of problems leaves room for others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from statistics import NormalDist, fmean

import numpy as np
from numpy.typing import NDArray

DRAWS = 10_000
_CHUNK = 2_000_000  # random numbers held at once; bounds memory for suites of thousands of problems


@dataclass(frozen=True)
class Interval:
    low: float
    high: float
    method: str
    confidence: float = 0.95


def pass_at_k(samples: int, passed: int, k: int) -> float:
    """Unbiased chance that at least one of `k` samples passes, from `passed` of `samples`.

    1 - C(n - c, k) / C(n, k): arXiv 2107.03374, section 2.1. Computed in whole numbers, so exact to the last
    rounding.
    Raises ValueError where it is not defined (k > n, or counts out of range).
    """
    if not 0 <= passed <= samples:
        raise ValueError(f"passed must be between 0 and {samples}, not {passed}")
    if not 1 <= k <= samples:
        raise ValueError(f"pass@{k} needs at least {max(k, 1)} samples of every problem, there are {samples}")
    every = math.comb(samples, k)
    return (every - math.comb(samples - passed, k)) / every


def mean_pass_at_k(counts: Sequence[tuple[int, int]], k: int) -> float:
    """pass@k averaged over problems; `counts` holds (samples, passed) of each. Raises ValueError on none."""
    return fmean(_per_problem(counts, k))


def pass_at_k_interval(
    counts: Sequence[tuple[int, int]], k: int, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of `mean_pass_at_k`: Wilson's for one sample each, else `bounded_interval`.

    The latter counts what problems and their samples vary together; it needs no share of each.
    """
    if all(samples == 1 for samples, _ in counts):
        low, high = wilson_interval(sum(passed for _, passed in counts), len(counts), confidence)
        return Interval(low, high, "wilson", confidence)
    return bounded_interval(_per_problem(counts, k), 0.0, 1.0, confidence=confidence, seed=seed)


def bounded_interval(
    values: Sequence[float], least: float, most: float, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """The interval of the mean of what can only lie between `least` and `most`, from draws of it.

    N. Gaffke's bounds (Mathematical Methods of Statistics 14, 2005; also arXiv 1905.06208): the values and
    one more, the worst that was possible, are given uniformly random weights that add up to 1; the bound is
    a quantile of the weighted mean. For 0/1 values this is Clopper and Pearson's interval; for many values it
    nears the bootstrap's. It is never narrower than what no variation in n values leaves open: of n zeros
    between 0 and 1 the upper bound at 95 % is 1 - 0.025^(1/n).
    Raises ValueError on no values, or one outside the bounds (NaN, too).
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    if not all(least <= value <= most for value in values):
        raise ValueError(f"values must be between {least:g} and {most:g}")
    sums, extra = _weighted_means(np.array(values, dtype=float), seed)
    tail = (1 - confidence) / 2
    low = float(np.quantile(sums + extra * least, tail))
    high = float(np.quantile(sums + extra * most, 1 - tail))
    # Weights add up to 1 but for rounding.
    return Interval(max(low, least), min(high, most), f"Gaffke's bounds ({DRAWS} draws)", confidence)


def wilson_interval(passed: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927)."""
    if not 0 <= passed <= total or total == 0:
        raise ValueError(f"passed must be between 0 and total > 0, not {passed} of {total}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = passed / total
    centre = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    # At the ends the exact bounds are 0 and 1; rounding would leave 1e-17 beside them.
    return (0.0 if passed == 0 else centre - half), (1.0 if passed == total else centre + half)


@dataclass(frozen=True)
class Comparison:
    """Run B against run A on the problems both have; differences are B - A."""

    problems: int
    mean_a: float
    mean_b: float
    difference: float
    interval: Interval
    p_value: float
    test: str
    only_a: int  # problems on which A is better
    only_b: int

    def record(self) -> dict[str, object]:
        return asdict(self)


def compare(
    a: Sequence[tuple[int, int]], b: Sequence[tuple[int, int]], k: int = 1, *, seed: int = 0
) -> Comparison:
    """Paired comparison of pass@k, from (samples, passed) of each problem.

    McNemar's exact test where both sides have one sample of every problem, else a sign-flip permutation test
    of the per-problem scores. The interval of the difference is `bounded_interval`'s in both cases. Raises
    ValueError on empty or unequal lengths, and as `pass_at_k` does.
    """
    if len(a) != len(b) or not a:
        raise ValueError(f"a paired comparison needs the same problems on both sides: {len(a)} and {len(b)}")
    first, second = _per_problem(a, k), _per_problem(b, k)
    only_a = sum(x > y for x, y in zip(first, second, strict=True))
    only_b = sum(x < y for x, y in zip(first, second, strict=True))
    differences = [y - x for x, y in zip(first, second, strict=True)]
    if all(samples == 1 for samples, _ in (*a, *b)):
        p_value, test = mcnemar_exact(only_a, only_b), "McNemar, exact, two-sided"
    else:
        p_value = _sign_flip_p_value(np.array(differences), seed)
        test = f"paired sign-flip permutation, two-sided ({DRAWS} draws)"
    return Comparison(
        problems=len(a),
        mean_a=fmean(first),
        mean_b=fmean(second),
        difference=fmean(differences),
        interval=bounded_interval(differences, -1.0, 1.0, seed=seed),
        p_value=p_value,
        test=test,
        only_a=only_a,
        only_b=only_b,
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test (Psychometrika 12, 1947) from the two discordant counts.

    The binomial test of `only_a` successes in only_a + only_b tosses of a fair coin.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts must not be negative, not {only_a} and {only_b}")
    tosses = only_a + only_b
    tail: int = sum(math.comb(tosses, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, float(Fraction(2 * tail, 2**tosses)))


def _per_problem(counts: Sequence[tuple[int, int]], k: int) -> list[float]:
    if not counts:
        raise ValueError("no problem has a sample")
    return [pass_at_k(samples, passed, k) for samples, passed in counts]


def _weighted_means(
    values: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """For DRAWS uniformly random sets of len(values) + 1 weights that add up to 1: (DRAWS,) the weighted
    sums of the values, and (DRAWS,) the last weights."""
    random = np.random.default_rng(seed)
    rows = max(1, _CHUNK // (len(values) + 1))
    sums, extra = np.empty(DRAWS), np.empty(DRAWS)
    for start in range(0, DRAWS, rows):
        weights = random.standard_exponential((min(rows, DRAWS - start), len(values) + 1))
        weights /= weights.sum(axis=1, keepdims=True)
        sums[start : start + rows] = weights[:, :-1] @ values
        extra[start : start + rows] = weights[:, -1]
    return sums, extra


def _sign_flip_p_value(differences: NDArray[np.float64], seed: int) -> float:
    """Under no difference each problem's sign is a coin toss; the p-value counts itself, so it is never 0."""
    moved = np.abs(differences[differences != 0])
    if not len(moved):
        return 1.0
    random = np.random.default_rng(seed)
    observed = abs(float(differences.sum()))
    rows = max(1, _CHUNK // len(moved))
    extreme = 0
    for start in range(0, DRAWS, rows):
        signs = random.integers(2, size=(min(rows, DRAWS - start), len(moved))) * 2 - 1
        # Sums in another order differ in the last bits; an equal sum must count as equal.
        extreme += int((np.abs(signs @ moved) >= observed * (1 - 1e-12)).sum())
    return (extreme + 1) / (DRAWS + 1)
