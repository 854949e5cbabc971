"""Choosing tokens: sets and penalties of transformers' logits processors, and the right distributions."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from rrtf_serve.engine.protocol import Request, Sampling
from rrtf_serve.engine.torch import choice
from rrtf_serve.engine.torch.rows import Row, new_row

VOCABULARY = 3000
DRAWS = 4000


def row(
    sampling: Sampling, *, prompt: tuple[int, ...] = (1,), made: tuple[int, ...] = (), **limits: Any
) -> Row:
    request = Request(prompt, 50, limits.get("end_ids", frozenset()), sampling, limits.get("min_tokens", 0))
    found = new_row(0, request, context=1000, vocabulary=VOCABULARY)
    for token in made:
        found.take(token, None)
    return found


def logits(spread: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * spread


def frequencies(sampling: Sampling, scores: torch.Tensor) -> torch.Tensor:
    """How often each token is drawn by one row's generator among DRAWS, as shares of 1."""
    drawing = [row(sampling)] * 500
    counts: Counter[int] = Counter()
    for _ in range(DRAWS // len(drawing)):
        chosen = choice.choose(scores.expand(len(drawing), -1), drawing)
        counts.update(token for token in chosen if token is not None)
    shares = torch.zeros(scores.shape[1])
    for token, count in counts.items():
        shares[token] = count / DRAWS
    return shares


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(seed=1), []),
        (Sampling(temperature=0.5, seed=2), [TemperatureLogitsWarper(0.5)]),
        (Sampling(top_k=7, seed=3), [TopKLogitsWarper(7)]),
        (Sampling(top_p=0.6, seed=4), [TopPLogitsWarper(0.6)]),
        (Sampling(min_p=0.02, seed=5), [MinPLogitsWarper(0.02)]),
        (
            Sampling(temperature=2.0, top_k=300, top_p=0.9, min_p=0.003, seed=6),
            [
                TemperatureLogitsWarper(2.0),
                TopKLogitsWarper(300),
                TopPLogitsWarper(0.9),
                MinPLogitsWarper(0.003),
            ],
        ),
    ],
)
def test_tokens_are_drawn_as_often_as_transformers_would(sampling: Sampling, warpers: list[Any]) -> None:
    scores = logits()[:, :600]
    expected = scores
    for warper in warpers:
        expected = warper(torch.tensor([[1]]), expected)
    probabilities = expected.softmax(-1)[0]
    drawn = frequencies(sampling, scores)
    assert not drawn[probabilities == 0].any()
    # Five standard deviations of a binomial count for each of the likely tokens, and for all others together.
    likely = probabilities.topk(20).indices
    for share, p in [
        *zip(drawn[likely].tolist(), probabilities[likely].tolist(), strict=True),
        (1 - float(drawn[likely].sum()), 1 - float(probabilities[likely].sum())),
    ]:
        assert share == pytest.approx(p, abs=5 * math.sqrt(max(p, 1 / DRAWS) / DRAWS))


def test_top_p_finds_its_tokens_also_where_they_are_many() -> None:
    flat = torch.linspace(0, 0.001, VOCABULARY).unsqueeze(0)  # 256 tokens hold a twelfth
    threshold = choice._nucleus(flat.softmax(-1), torch.tensor([[0.95]]))
    kept = int((flat.softmax(-1) >= threshold).sum())
    expected = int((TopPLogitsWarper(0.95)(torch.tensor([[1]]), flat) > -math.inf).sum())
    assert abs(kept - expected) <= 1  # sums of floats in another order
    assert kept > 2800


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, seed=1),
        Sampling(temperature=1e-6, seed=1),
        Sampling(top_k=1, seed=1),
        Sampling(top_p=0, seed=1),
        Sampling(top_p=1e-9, seed=1),
        Sampling(min_p=1, seed=1),
    ],
)
def test_limits_of_sampling_are_greedy(sampling: Sampling) -> None:
    scores = logits()
    for _ in range(5):
        assert choice.choose(scores, [row(sampling)]) == [int(scores.argmax())]


def test_the_repetition_penalty_is_transformers() -> None:
    scores, prompt, made = logits(), (5, 9, 5), (11, 12, 11)
    found = choice._adjusted(scores, [row(Sampling(0, repetition_penalty=1.7), prompt=prompt, made=made)])
    ids = torch.tensor([[*prompt, *made]])
    assert torch.equal(found, RepetitionPenaltyLogitsProcessor(1.7)(ids, scores.clone()))


def test_presence_and_frequency_count_what_was_made_and_biases_add() -> None:
    scores = logits()
    sampling = Sampling(0, presence_penalty=0.5, frequency_penalty=0.25, logit_bias=((7, -100.0), (11, 1.0)))
    before = scores.clone()
    found = choice._adjusted(scores, [row(sampling, prompt=(5,), made=(11, 12, 11))])
    expected = scores.clone()
    expected[0, 11] += -0.5 - 2 * 0.25 + 1
    expected[0, 12] -= 0.75
    expected[0, 7] -= 100
    assert torch.allclose(found, expected)
    assert torch.equal(scores, before)


def test_end_tokens_are_held_back_until_the_minimum() -> None:
    scores = torch.zeros(1, VOCABULARY)
    scores[0, 4], scores[0, 8] = 9, 5
    waiting = row(Sampling(0), end_ids=frozenset({4, 10**9}), min_tokens=1)
    assert choice.choose(scores, [waiting]) == [8]
    assert waiting.take(8, None).finish is None
    assert choice.choose(scores, [waiting]) == [4]
    assert waiting.take(4, None).finish == "stop"


def test_rows_of_one_batch_keep_their_own_options() -> None:
    scores = torch.cat([logits(seed=seed) for seed in range(5)])
    options = [
        Sampling(0),
        Sampling(top_k=3, seed=9),
        Sampling(0, logit_bias=((77, 100.0),)),
        Sampling(top_p=0.5, temperature=0.4, seed=9),
        Sampling(min_p=0.3, seed=9),
    ]
    together = choice.choose(scores, [row(each) for each in options])
    alone = [choice.choose(scores[at : at + 1], [row(each)])[0] for at, each in enumerate(options)]
    assert together == alone
    assert together[2] == 77


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_a_row_whose_logits_are_no_numbers_gets_no_token(wrong: float) -> None:
    scores = torch.cat([logits(seed=seed) for seed in range(4)])
    options = [Sampling(0), Sampling(seed=9), Sampling(0, logit_bias=((77, 100.0),)), Sampling(seed=9)]
    rows = [row(each) for each in options]
    sound = choice.choose(scores, [row(each) for each in options])
    assert None not in sound
    scores[0, 5] = scores[1, VOCABULARY - 1] = wrong
    assert choice.choose(scores, rows) == [None, None, *sound[2:]]


def test_logprobs_in_float32_hold_six_digits_over_a_large_vocabulary() -> None:
    scores = torch.randn(2, 150_000, generator=torch.Generator().manual_seed(1)) * 2
    exact = scores.double().log_softmax(-1)
    none, record = choice.logprobs(scores, [3, 4], [None, 5])
    assert none is None and record is not None
    assert record.logprob == pytest.approx(float(exact[1, 4]), rel=1e-6)
    assert [token for token, _ in record.top] == exact[1].topk(5).indices.tolist()
