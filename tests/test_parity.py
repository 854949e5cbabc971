"""Parity figures against their definitions: torch's KL, hand counts, and intervals that behave."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from convert.parity import Tally, first_difference, summarise, tally
from convert.thresholds import THRESHOLDS, failures, variant

ROWS, WORDS = 70, 501


def log_probabilities(seed: int, spread: float = 3.0) -> np.ndarray:
    logits = np.random.default_rng(seed).normal(size=(ROWS, WORDS)) * spread
    return torch.log_softmax(torch.from_numpy(logits), -1).numpy().astype(np.float32)


def test_tally_equals_torch() -> None:
    p, q = log_probabilities(0), log_probabilities(1)
    following = np.random.default_rng(2).integers(WORDS, size=ROWS).tolist()
    found = tally(p, q, following)
    first, second = (torch.from_numpy(each).double() for each in (p, q))
    expected = torch.nn.functional.kl_div(second, first, reduction="sum", log_target=True).item()
    assert found.divergence == pytest.approx(expected, rel=1e-5)
    targets = torch.tensor(following)
    assert found.surprise == pytest.approx(torch.nn.functional.nll_loss(second, targets).item() * ROWS)
    assert found.reference_surprise == pytest.approx(
        torch.nn.functional.nll_loss(first, targets).item() * ROWS
    )
    assert found.agreed == int((first.argmax(1) == second.argmax(1)).sum())
    assert found.positions == ROWS


def test_rows_need_not_be_normalised_exactly() -> None:
    """Libraries leave errors of 1e-5 in their logarithms; a KL of 1e-5 must not drown in them."""
    p, q = log_probabilities(0), log_probabilities(0) + np.float32(3e-4)
    found = tally(p, q, [0] * ROWS)
    assert abs(found.divergence / ROWS) < 1e-6
    assert found.surprise == pytest.approx(found.reference_surprise, abs=1e-3)


def test_a_token_of_no_probability_adds_nothing_and_does_no_harm() -> None:
    p = np.array([[0.0, -np.inf], [math.log(0.5), math.log(0.5)]], np.float32)
    q = np.array([[math.log(0.5), math.log(0.5)]] * 2, np.float32)
    assert tally(p, q, [0, 1]).divergence == pytest.approx(math.log(2))


def test_damaged_models_and_wrong_shapes_are_errors() -> None:
    p = log_probabilities(0)
    with pytest.raises(ValueError, match="not finite"):
        tally(p, np.full_like(p, np.nan), [0] * ROWS)
    with pytest.raises(ValueError, match="shapes"):
        tally(p, p[:, 1:], [0] * ROWS)
    with pytest.raises(ValueError, match="69 following"):
        tally(p, p, [0] * (ROWS - 1))


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], 8),  # ended alike: no difference
        ([1, 2, 3], [1, 5, 3], 1),
        ([1, 2], [1, 2, 3], 2),  # one ended, the other went on
        ([4], [5], 0),
        ([], [], 8),
    ],
)
def test_first_difference(first: list[int], second: list[int], expected: int) -> None:
    assert first_difference(first, second, 8) == expected


def documents(count: int, seed: int = 0) -> list[Tally]:
    random = np.random.default_rng(seed)
    return [
        Tally(100, int(random.integers(85, 99)), float(random.uniform(1, 5)), 200.0, 200.0 + random.uniform())
        for _ in range(count)
    ]


def test_estimates_are_ratios_of_sums_and_lie_in_their_intervals() -> None:
    tallies = [*documents(20), Tally(1000, 1000, 0.0, 500.0, 500.0)]
    found = summarise(tallies, [3, 9, 64, 64], 64, seed=0)
    positions = sum(each.positions for each in tallies)
    assert found.top1_agreement.value == sum(each.agreed for each in tallies) / positions
    assert found.mean_kl.value == pytest.approx(sum(each.divergence for each in tallies) / positions)
    assert found.perplexity.value / found.perplexity_reference.value == pytest.approx(
        found.perplexity_ratio.value
    )
    for each in (found.top1_agreement, found.mean_kl, found.perplexity_ratio):
        assert each.low < each.value < each.high
        assert each.n == positions
    median = found.greedy_divergence
    assert (median.value, median.n, median.equal, median.limit) == (36.5, 4, 2, 64)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    held = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        rates = random.beta(90, 10, size=30)
        tallies = [Tally(100, int(random.binomial(100, rate)), 1.0, 1.0, 1.0) for rate in rates]
        found = summarise(tallies, [1], 2, seed=seed).top1_agreement
        held += found.low <= 0.9 <= found.high
    assert 86 <= held <= 100


def test_the_seed_decides_the_interval() -> None:
    first, again, other = (summarise(documents(9), [1, 2, 3], 4, seed) for seed in (1, 1, 2))
    assert first == again
    assert first.mean_kl.value == other.mean_kl.value and first.mean_kl != other.mean_kl


def test_one_document_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 documents"):
        summarise(documents(1), [1], 2, 0)


def test_records_are_plain_numbers_of_six_digits() -> None:
    record = summarise(documents(9), [1, 2, 3], 4, 0).record()
    assert set(record) >= {"top1_agreement", "mean_kl", "perplexity_ratio", "greedy_divergence", "interval"}
    kl = record["mean_kl"]
    assert isinstance(kl, dict) and len(f"{kl['value']:.12g}".lstrip("0.").replace(".", "")) <= 6
    assert kl["n"] == 900


@pytest.mark.parametrize(
    ("quantization", "row"),
    [
        ("int8", "int8"),
        ("int8_bfloat16", "int8"),
        ("int16", "int16"),
        ("gptq-4bit-g128", "gptq-4bit"),
        ("gptq-8bit", "gptq-8bit"),
        ("gptq-2bit", ""),
        ("Q4_K_M", ""),
        ("", ""),
    ],
)
def test_variants(quantization: str, row: str) -> None:
    assert variant(quantization) == row
    assert not row or row in THRESHOLDS


def test_failures_say_which_and_by_how_much() -> None:
    limit = THRESHOLDS["int8"]
    good = summarise([Tally(1000, 1000, 0.0, 100.0, 100.0)] * 2, [1], 2, 0)
    assert failures(good, limit) == []
    agreed = round(1000 * limit.least_top1) - 100
    bad = summarise([Tally(1000, agreed, 1000.0, 100.0, 1100.0)] * 2, [1], 2, 0)
    top1, kl, ratio = failures(bad, limit)
    assert "top-1 agreement" in top1 and "(off by 0.1)" in top1
    assert "mean KL" in kl and f"at most {limit.most_kl:g}" in kl
    assert "perplexity ratio is 2.718" in ratio


def test_stricter_variants_have_stricter_limits() -> None:
    order = ["float32", "float16", "gptq-8bit", "gptq-4bit", "gptq-3bit"]
    limits = [THRESHOLDS[name] for name in order]
    for better, worse in pairwise(limits):
        assert better.least_top1 > worse.least_top1
        assert better.most_kl < worse.most_kl
        assert better.most_perplexity_ratio < worse.most_perplexity_ratio
