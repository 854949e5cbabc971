"""The next token of each row out of logits, and log-probabilities.

In this order: repetition penalty, presence and frequency penalties, logit bias, end tokens held back by
min_tokens, temperature, top_k, top_p, min_p. The repetition penalty looks at the prompt and at what was made
(https://arxiv.org/abs/1909.05858, section 4.1), presence and frequency at what was made
(https://platform.openai.com/docs/api-reference/completions/create).

A row's choice is one number out of its own generator, held against the running sum of the probabilities in
the order of the vocabulary: it depends on nothing else in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rrtf_serve.engine.protocol import TokenLogprob
from rrtf_serve.engine.torch.rows import Row

# Division by less than this makes every token but the best one impossible in float32.
GREEDY_BELOW = 1e-4
_NUCLEUS = 256  # tokens that top_p looks at first; where they don't hold enough, four times as many


def choose(logits: Tensor, rows: Sequence[Row]) -> list[int | None]:
    """One token per row; None where there is none to choose, as the row's logits hold NaN or infinity.

    logits: float32 [R, V]; unchanged.
    """
    adjusted = _adjusted(logits, rows)
    drawn = [at for at, row in enumerate(rows) if not is_greedy(row, logits.shape[1])]
    found: list[int | None] = [None] * len(rows)
    if len(drawn) < len(rows):
        best = adjusted.max(dim=-1)  # NaN is the best of all
        found = _sound(best.indices, best.values)
    if drawn:
        some = _draw(adjusted[drawn], [rows[at] for at in drawn])
        for at, token in zip(drawn, _sound(*some), strict=True):
            found[at] = token
    return found


def is_greedy(row: Row, vocabulary: int) -> bool:
    """Whether only the best token can be chosen. Up to 1/V top_p keeps the best one alone."""
    sampling = row.sampling
    best_alone = sampling.top_k == 1 or sampling.top_p * vocabulary <= 1
    return row.generator is None or sampling.temperature < GREEDY_BELOW or best_alone


def _sound(tokens: Tensor, witnesses: Tensor) -> list[int | None]:
    """The tokens whose witness is a finite number, None for the others. Both: [R]."""
    pairs = zip(tokens.tolist(), witnesses.isfinite().tolist(), strict=True)
    return [token if sound else None for token, sound in pairs]


def _adjusted(logits: Tensor, rows: Sequence[Row]) -> Tensor:
    """Penalties, biases and held-back end tokens: a copy where a row has any, [R, V]."""
    copied = False
    for at, row in enumerate(rows):
        sampling = row.sampling
        plain = (
            sampling.repetition_penalty == 1
            and not (row.made and (sampling.presence_penalty or sampling.frequency_penalty))
            and not sampling.logit_bias
            and not row.least
        )
        if plain:
            continue
        if not copied:
            logits, copied = logits.clone(), True
        _adjust(logits[at], row)
    return logits


def _adjust(logits: Tensor, row: Row) -> None:
    """logits: [V], changed in place."""
    sampling, device = row.sampling, logits.device
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*row.prompt, *row.counts}), device=device)
        values = logits[seen]
        penalty = sampling.repetition_penalty
        logits[seen] = torch.where(values > 0, values / penalty, values * penalty)
    if row.counts and (sampling.presence_penalty or sampling.frequency_penalty):
        made = torch.tensor(list(row.counts), device=device)
        times = torch.tensor(list(row.counts.values()), device=device, dtype=logits.dtype)
        logits[made] -= sampling.presence_penalty + sampling.frequency_penalty * times
    if sampling.logit_bias:
        tokens, biases = zip(*sampling.logit_bias, strict=True)
        logits.index_add_(
            0, torch.tensor(tokens, device=device), torch.tensor(biases, device=device, dtype=logits.dtype)
        )
    if row.least:
        logits[torch.tensor(sorted(row.end_ids), device=device)] = float("-inf")


def _draw(logits: Tensor, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """logits: [R, V] -> tokens [R], and the sum of each row's shares [R], NaN where logits are."""
    vocabulary = logits.shape[1]
    options = [row.sampling for row in rows]
    scores = logits / _column([option.temperature for option in options], logits)
    limits = [option.top_k if 0 < option.top_k < vocabulary else 0 for option in options]
    if any(limits):
        best = scores.topk(max(limits), dim=-1).values
        # A row without a limit keeps what is at least as good as -inf: everything.
        least = [
            best[at, limit - 1] if limit else scores.new_tensor(-torch.inf) for at, limit in enumerate(limits)
        ]
        scores = scores.masked_fill(scores < torch.stack(least).unsqueeze(1), -torch.inf)
    probabilities = scores.softmax(dim=-1)
    if any(option.top_p < 1 for option in options):
        least_p = _nucleus(probabilities, _column([option.top_p for option in options], probabilities))
        probabilities = probabilities.masked_fill(probabilities < least_p, 0)
    if any(option.min_p for option in options):
        share = _column([option.min_p for option in options], probabilities)
        best = probabilities.max(dim=-1, keepdim=True).values
        probabilities = probabilities.masked_fill(probabilities < share * best, 0)
    sums = probabilities.cumsum(dim=-1, dtype=torch.float64)
    chance = [torch.rand(1, generator=row.generator, dtype=torch.float64) for row in rows]
    target = torch.stack(chance).to(logits.device) * sums[:, -1:]
    # right: a token of probability 0 adds nothing to the sum, so it is never the first above the target
    found = torch.searchsorted(sums, target, right=True).squeeze(1)
    # The product may round up to the whole sum: then it is the last token that has a share in it.
    last = torch.searchsorted(sums, sums[:, -1:].contiguous()).squeeze(1)
    return torch.minimum(found, last), sums[:, -1]


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device).unsqueeze(1)


def _nucleus(probabilities: Tensor, top_p: Tensor) -> Tensor:
    """The probability of the last token that is still among those with `top_p` together: [R, 1].

    The token that crosses the sum is among them. probabilities: [R, V], top_p: [R, 1].
    """
    vocabulary = probabilities.shape[1]
    count = min(_NUCLEUS, vocabulary)
    while True:
        best = probabilities.topk(count, dim=-1).values
        sums = best.cumsum(dim=-1, dtype=torch.float64)
        if count == vocabulary or bool((sums[:, -1:] >= top_p).all()):
            break
        count = min(4 * count, vocabulary)
    inside = (sums - best < top_p).sum(dim=-1, keepdim=True)  # at least one, as top_p is above 0
    return best.gather(1, inside - 1).masked_fill(top_p >= 1, 0)


def logprobs(logits: Tensor, tokens: Sequence[int], tops: Sequence[int | None]) -> list[TokenLogprob | None]:
    """The record of each row's token under the model at temperature 1; None where none is wanted.

    logits: float32 [R, V]. `tops`: how many of the best tokens each record lists.
    """
    wanted = [at for at, top in enumerate(tops) if top is not None]
    found: list[TokenLogprob | None] = [None] * len(tops)
    if not wanted:
        return found
    some = logits[wanted] if len(wanted) < len(tops) else logits
    # float64 only for the sum: 150,000 small float32 terms lose digits otherwise.
    highest = some.max(dim=-1, keepdim=True).values
    total = (some - highest).exp().sum(dim=-1, keepdim=True, dtype=torch.float64)
    norm = highest + total.log().to(some.dtype)  # [W, 1]
    ids = torch.tensor([tokens[at] for at in wanted], device=logits.device).unsqueeze(1)
    chosen = _floats((some.gather(1, ids) - norm).squeeze(1))
    most = max(tops[at] or 0 for at in wanted)
    best = some.topk(most, dim=-1)
    values, places = (best.values - norm).tolist(), best.indices.tolist()
    for index, at in enumerate(wanted):
        top = tops[at] or 0
        pairs = zip(places[index][:top], values[index][:top], strict=True)
        found[at] = TokenLogprob(tokens[at], chosen[index], tuple(pairs))
    return found


def _floats(values: Tensor) -> list[float]:
    found: list[float] = values.tolist()
    return found
