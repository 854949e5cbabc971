"""pass@k against counting, intervals against published values, and the properties that both must have."""

from itertools import combinations
from math import comb, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.problems.estimator import (
    bounded_interval,
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


def test_many_problems_give_the_width_that_theory_says_and_the_same_each_time() -> None:
    random = np.random.default_rng(1)
    counts = [(20, int(c)) for c in random.integers(0, 21, 400)]
    values = np.array([c / 20 for _, c in counts])
    interval = pass_at_k_interval(counts, 1)
    expected = 2 * 1.96 * values.std() / 20
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)
    assert interval.low < values.mean() < interval.high
    assert interval == pass_at_k_interval(counts, 1)


@pytest.mark.parametrize(("passed", "problems"), [(0, 6), (4, 6), (2, 6), (0, 164), (2, 164)])
def test_equal_problems_do_not_make_a_certain_figure(passed: int, problems: int) -> None:
    interval = pass_at_k_interval([(4, passed)] * problems, 1)
    share = passed / 4
    assert interval.low <= share <= interval.high
    # What n equal draws leave open at 2.5 % on either side.
    room = 1 - 0.025 ** (1 / problems)
    assert interval.high - share == pytest.approx((1 - share) * room, rel=0.1)
    assert share - interval.low == pytest.approx(share * room, rel=0.1)


@pytest.mark.parametrize(("passed", "total"), [(0, 20), (81, 263), (1, 29), (29, 29)])
def test_bounds_of_zeros_and_ones_are_clopper_and_pearsons(passed: int, total: int) -> None:
    interval = bounded_interval([1.0] * passed + [0.0] * (total - passed), 0, 1)

    def tail(share: float, counts: range) -> float:
        return sum(comb(total, i) * share**i * (1 - share) ** (total - i) for i in counts)

    # Each bound is the share at which a result as far off has a chance of 2.5 %.
    if passed < total:
        assert tail(interval.high, range(passed + 1)) == pytest.approx(0.025, abs=0.006)
    if passed:
        assert tail(interval.low, range(passed, total + 1)) == pytest.approx(0.025, abs=0.006)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    # One problem in fifty can be solved at all: the case in which a bootstrap fails most.
    draws = [random.binomial(4, 0.5 * (random.random(100) < 0.02)) for _ in range(100)]
    intervals = [pass_at_k_interval([(4, int(c)) for c in draw], 1) for draw in draws]
    assert sum(interval.low <= 0.01 <= interval.high for interval in intervals) >= 92


@pytest.mark.parametrize(
    ("values", "message"), [([], "at least one"), ([1.5], "between"), ([nan], "between")]
)
def test_bounds_need_bounded_values(values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bounded_interval(values, 0, 1)


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


def greedy(*passed: int) -> list[tuple[int, int]]:
    return [(1, each) for each in passed]


def test_greedy_runs_are_compared_by_mcnemar() -> None:
    found = compare(greedy(*[1] * 10, *[0] * 9, 1), greedy(*[1] * 10, *[1] * 9, 0))
    assert (found.only_a, found.only_b) == (1, 9)
    assert found.p_value == 22 / 1024
    assert found.difference == pytest.approx(0.4)
    assert found.interval.low < 0.4 < found.interval.high
    assert found.test.startswith("McNemar")


def test_the_test_follows_from_the_samples_and_not_from_their_outcome() -> None:
    assert compare(greedy(1, 0), [(4, 4), (4, 0)]).test.startswith("paired sign-flip")
    assert compare([(4, 4), (4, 0)], [(4, 4), (4, 4)]).test.startswith("paired sign-flip")


def test_no_difference_is_no_certainty() -> None:
    interval = compare(greedy(*[0] * 30), greedy(*[0] * 30)).interval
    assert interval.low == pytest.approx(-0.116, abs=0.005)
    assert interval.high == pytest.approx(0.116, abs=0.005)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=30))
def test_comparison_is_antisymmetric(pairs: list[tuple[int, int]]) -> None:
    a, b = [(8, x) for x, _ in pairs], [(8, y) for _, y in pairs]
    there, back = compare(a, b), compare(b, a)
    assert there.difference == pytest.approx(-back.difference)
    assert there.p_value == pytest.approx(back.p_value)
    assert (there.interval.low, there.interval.high) == pytest.approx(
        (-back.interval.high, -back.interval.low)
    )
    assert there.interval.low <= there.difference <= there.interval.high
    assert 0 < there.p_value <= 1


def test_sampled_runs_differ_only_when_they_do() -> None:
    random = np.random.default_rng(3)
    base = random.integers(100, 900, 120)

    def moved(by: int, spread: int) -> list[tuple[int, int]]:
        return [(1000, int(c)) for c in np.clip(base + by + random.normal(0, spread, 120), 0, 1000)]

    clearly = compare([(1000, int(c)) for c in base], moved(100, 50))
    assert clearly.p_value < 0.01
    assert clearly.interval.low > 0
    hardly = compare([(1000, int(c)) for c in base], moved(0, 100))
    assert hardly.p_value > 0.01
    assert compare([(4, 2), (4, 1)], [(4, 2), (4, 1)]).p_value == 1.0


def test_sign_flips_match_full_enumeration() -> None:
    moves = np.array([4, 2, 4, -1, 6, 2])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 6)).reshape(6, -1)
    exact = float((np.abs(signs.T @ np.abs(moves)) >= abs(moves.sum())).mean())
    found = compare([(8, 1)] * 6, [(8, 1 + int(move)) for move in moves])
    assert found.p_value == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize(("a", "b"), [([], []), (greedy(1), greedy(1, 0))])
def test_comparison_needs_the_same_problems(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="same problems"):
        compare(a, b)
