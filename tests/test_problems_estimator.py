"""pass@k against counting, intervals against published values, and the properties that both must have."""

from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.problems.estimator import (
    compare,
    mcnemar_exact,
    mean_pass_at_k,
    pass_at_k,
    pass_at_k_interval,
    wilson_interval,
)

COUNTS = st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))


@pytest.mark.parametrize("samples", range(1, 8))
def test_pass_at_k_is_the_share_of_draws_with_a_pass(samples: int) -> None:
    for passed in range(samples + 1):
        outcomes = [True] * passed + [False] * (samples - passed)
        for k in range(1, samples + 1):
            draws = [any(draw) for draw in combinations(outcomes, k)]
            assert pass_at_k(samples, passed, k) == pytest.approx(sum(draws) / len(draws), abs=1e-15)


@given(COUNTS, st.integers(1, 300))
def test_pass_at_k_equals_the_product_form(counts: tuple[int, int], k: int) -> None:
    samples, passed = counts
    k = min(k, samples)
    product = (
        1.0 if samples - passed < k else 1 - np.prod(1 - k / np.arange(samples - passed + 1, samples + 1))
    )
    assert pass_at_k(samples, passed, k) == pytest.approx(product, abs=1e-9)


@given(COUNTS)
def test_pass_at_k_grows_with_k_and_with_passes(counts: tuple[int, int]) -> None:
    samples, passed = counts
    values = [pass_at_k(samples, passed, k) for k in range(1, samples + 1)]
    assert values == sorted(values)
    assert values[0] == passed / samples
    assert values[-1] == (1.0 if passed else 0.0)
    if passed:
        assert pass_at_k(samples, passed - 1, 1) < values[0]


@pytest.mark.parametrize(("samples", "passed", "k"), [(5, 6, 1), (5, -1, 1), (5, 1, 6), (5, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_what_is_not_defined(samples: int, passed: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass"):
        pass_at_k(samples, passed, k)


def test_the_mean_is_over_problems_and_needs_one() -> None:
    assert mean_pass_at_k([(2, 1), (4, 4)], 1) == 0.75
    with pytest.raises(ValueError, match="no problem"):
        mean_pass_at_k([], 1)


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263, 0/20 and 1/29, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)
    with pytest.raises(ValueError, match="passed"):
        wilson_interval(3, 2)


@given(COUNTS)
def test_wilson_interval_holds_the_share_and_is_symmetric(counts: tuple[int, int]) -> None:
    total, passed = counts
    low, high = wilson_interval(passed, total)
    assert 0 <= low <= passed / total <= high <= 1
    mirrored = wilson_interval(total - passed, total)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_one_sample_each_gives_a_wilson_interval() -> None:
    interval = pass_at_k_interval([(1, 1)] * 81 + [(1, 0)] * 182, 1)
    assert interval.method == "wilson"
    assert (interval.low, interval.high) == wilson_interval(81, 263)


def test_bootstrap_is_as_wide_as_theory_says_and_repeatable() -> None:
    random = np.random.default_rng(1)
    counts = [(20, int(c)) for c in random.integers(0, 21, 400)]
    values = np.array([c / 20 for _, c in counts])
    interval = pass_at_k_interval(counts, 1)
    expected = 2 * 1.96 * values.std() / 20
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)
    assert interval.low < values.mean() < interval.high
    assert interval == pass_at_k_interval(counts, 1)


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_sided_binomial_test(a: int, b: int) -> None:
    n = a + b
    # Sum of all outcomes no likelier than the one seen; for a fair coin that is both tails.
    tails = sum(comb(n, i) for i in range(n + 1) if comb(n, i) <= comb(n, a)) / 2**n
    assert mcnemar_exact(a, b) == pytest.approx(tails, rel=1e-12)
    assert mcnemar_exact(a, b) == mcnemar_exact(b, a)


def test_mcnemar_known_value_and_bad_input() -> None:
    assert mcnemar_exact(1, 9) == 22 / 1024
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(-1, 2)


def test_greedy_runs_are_compared_by_mcnemar() -> None:
    found = compare([1] * 10 + [0] * 9 + [1], [1] * 10 + [1] * 9 + [0])
    assert (found.only_a, found.only_b) == (1, 9)
    assert found.p_value == 22 / 1024
    assert found.difference == pytest.approx(0.4)
    assert found.interval.low < 0.4 < found.interval.high
    assert found.test.startswith("McNemar")


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
def test_comparison_is_antisymmetric(pairs: list[tuple[int, int]]) -> None:
    a, b = [x / 8 for x, _ in pairs], [y / 8 for _, y in pairs]
    there, back = compare(a, b), compare(b, a)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.interval.low, there.interval.high) == pytest.approx(
        (-back.interval.high, -back.interval.low)
    )
    assert 0 < there.p_value <= 1


def test_sampled_runs_differ_only_when_they_do() -> None:
    random = np.random.default_rng(3)
    base = random.random(120)
    clearly = compare(list(base), list(np.clip(base + 0.1 + random.normal(0, 0.05, 120), 0, 1)))
    assert clearly.p_value < 0.01
    assert clearly.interval.low > 0
    hardly = compare(list(base), list(base + random.normal(0, 0.1, 120)))
    assert hardly.p_value > 0.01
    assert compare([0.5, 0.25], [0.5, 0.25]).p_value == 1.0


def test_sign_flips_match_full_enumeration() -> None:
    a, b = [0.0] * 6, [0.5, 0.25, 0.5, -0.125, 0.75, 0.25]
    observed = abs(sum(b))
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    exact = float((np.abs(signs.T @ np.abs(b)) >= observed - 1e-12).mean())
    assert compare(a, b).p_value == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 0])])
def test_comparison_needs_the_same_problems(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="same problems"):
        compare(a, b)
