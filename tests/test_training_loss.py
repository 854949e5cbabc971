"""The RRTF loss against hand-computed cases, a slow reference written apart, and what must always hold."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tuples import encoded

from training.encoding import Encoded
from training.fit_options import LossOptions
from training.loss import loss_terms, rank_loss
from training.packing import Rows, pack
from training.records import Pair

PAPER = LossOptions()


def rows_of(items: list[Encoded]) -> Rows:
    return pack(items, "shared")


def token_logprobs(items: list[Encoded], seed: int = 0) -> list[list[list[float]]]:
    """Made-up log-probabilities of every token, by tuple and answer."""
    generator = torch.Generator().manual_seed(seed)

    def some(answer: tuple[int, ...]) -> list[float]:
        return (-3 * torch.rand(len(answer), generator=generator, dtype=torch.float64)).tolist()

    return [[some(answer) for answer in item.answers] for item in items]


def sums_of(logprobs: list[list[list[float]]]) -> Tensor:
    return torch.tensor([sum(answer) for item in logprobs for answer in item], dtype=torch.float64)


def reference(items: list[Encoded], logprobs: list[list[list[float]]], options: LossOptions) -> list[float]:
    """arXiv 2307.14936, section 3.3, in plain arithmetic: the loss of each tuple."""
    losses = []
    for item, answers in zip(items, logprobs, strict=True):
        p = [math.fsum(answer) / len(answer) for answer in answers]
        rank = 0.0
        for teacher, student, gap in item.pairs:
            rank -= gap * min(0.0, p[teacher] - p[student] - options.margin)
        ft = -math.fsum(answers[item.chosen])
        if options.ft_reduction == "mean":
            ft /= len(answers[item.chosen])
        losses.append(options.rank_weight * rank + options.ft_weight * ft)
    return losses


def test_by_hand() -> None:
    """Teacher: -1, -3 (mean -2); student: -1 (mean -1); r_tea - r_stu = 0.6."""
    item = replace(encoded(0, 2), answers=((5, 6), (7,)), pairs=(Pair(0, 1, 0.6),))
    terms = loss_terms(torch.tensor([-4.0, -1.0]), rows_of([item]), PAPER)
    assert terms.p.tolist() == [-2, -1]
    assert terms.gap.tolist() == [-1]
    assert terms.rank.item() == pytest.approx(0.6)  # -(0.6) min(0, -2 + 1)
    assert terms.ft.item() == 4
    assert terms.total.item() == pytest.approx(4.6)
    mean = loss_terms(
        torch.tensor([-4.0, -1.0]), rows_of([item]), LossOptions(ft_reduction="mean", rank_weight=10)
    )
    assert mean.total.item() == pytest.approx(2 + 6)


def test_ordered_pairs_cost_nothing_and_a_margin_asks_for_more() -> None:
    gap, weight = torch.tensor([0.0, 0.3, -0.2]), torch.tensor([1.0, 1.0, 0.5])
    assert rank_loss(gap, weight).tolist() == pytest.approx([0, 0, 0.1])
    assert rank_loss(gap, weight, margin=0.4).tolist() == pytest.approx([0.4, 0.1, 0.3])


def test_a_tuple_without_pairs_has_its_cross_entropy_alone() -> None:
    items = [replace(encoded(1, 1), pairs=()), encoded(2)]
    sums = sums_of(token_logprobs(items))
    terms = loss_terms(sums, rows_of(items), PAPER)
    assert terms.rank[0] == 0
    assert terms.total[0] == -sums[0]


def test_gradients_of_sums_are_the_derivative_and_flow_to_both_answers() -> None:
    items = [encoded(seed) for seed in range(4)]
    rows = rows_of(items)
    sums = sums_of(token_logprobs(items)).requires_grad_()
    options = LossOptions(margin=0.1)
    assert torch.autograd.gradcheck(lambda each: loss_terms(each, rows, options).total, (sums,))
    item = replace(encoded(0, 2), answers=((5, 6), (7, 8, 9, 3)), pairs=(Pair(0, 1, 0.5),))
    sums = torch.tensor([-4.0, -1.0], requires_grad=True)
    loss_terms(sums, rows_of([item]), replace(PAPER, ft_weight=0)).total.sum().backward()
    assert sums.grad is not None
    assert sums.grad.tolist() == [-0.25, 0.125]  # 0.5 / 2 tokens up, 0.5 / 4 down


SEEDS = st.lists(st.integers(0, 10_000), min_size=1, max_size=6, unique=True)


OPTIONS = st.builds(
    LossOptions,
    st.sampled_from(["sum", "mean"]),
    st.sampled_from([0.0, 1.0]),
    st.floats(0, 50),
    st.floats(0, 2),
)


@given(SEEDS, st.integers(1, 4), OPTIONS)
@settings(max_examples=60, deadline=None)
def test_equals_the_reference(seeds: list[int], answers: int, options: LossOptions) -> None:
    items = [encoded(seed, 1 + (seed + answers) % 4) for seed in seeds]
    logprobs = token_logprobs(items, seed=answers)
    terms = loss_terms(sums_of(logprobs), rows_of(items), options)
    assert terms.total.tolist() == pytest.approx(reference(items, logprobs, options), rel=1e-12)
    assert (terms.rank >= 0).all()


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_order_in_the_batch_and_padding_change_nothing(seeds: list[int]) -> None:
    items = [encoded(seed, 1 + seed % 4) for seed in seeds]
    logprobs = token_logprobs(items)
    together = loss_terms(sums_of(logprobs), rows_of(items), PAPER).total.tolist()
    backwards = loss_terms(sums_of(logprobs[::-1]), rows_of(items[::-1]), PAPER).total.tolist()
    alone = [
        loss_terms(sums_of([each]), rows_of([item]), PAPER).total.item()
        for item, each in zip(items, logprobs, strict=True)
    ]
    assert together == pytest.approx(backwards[::-1], rel=1e-12)
    assert together == pytest.approx(alone, rel=1e-12)


def test_raising_the_teacher_until_it_leads_brings_the_rank_loss_to_zero() -> None:
    item = encoded(3, 2)
    rows = rows_of([item])
    behind = torch.tensor([-9.0 * rows.lengths[0], -1.0 * rows.lengths[1]])
    ahead = torch.tensor([-0.5 * rows.lengths[0], -1.0 * rows.lengths[1]])
    assert loss_terms(behind, rows, PAPER).rank.item() == pytest.approx(8 * item.pairs[0].weight)
    assert loss_terms(ahead, rows, PAPER).rank.item() == 0


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"ft_reduction": "max"}, "--ft-reduction max"), ({"rank_weight": -1.0}, "--rank-weight"),
     ({"margin": float("nan")}, "--margin"), ({"ft_weight": float("inf")}, "--ft-weight")],
)  # fmt: skip
def test_wrong_options_are_named(options: dict[str, object], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        LossOptions(**options)  # type: ignore[arg-type]
