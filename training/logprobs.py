"""Log-probabilities of answer tokens, without a tensor of B x L x V.

Only the states that predict answer tokens meet the output matrix, a chunk of them at a time; a chunk's logits
are dropped once they are read, and made again for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**25  # float32 logits that exist at a time: 128 MiB


def logprobs_of(hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """hidden: [N, d], targets: [N], weight: [V, d], the output matrix whole in memory; the result: [N],
    float32 or wider.

    Under autocast the products are made in its type, with the weights rounded once for all chunks.
    """
    result: Tensor = _Logprobs.apply(hidden, targets, weight)  # type: ignore[no-untyped-call]
    return result


def logprobs_through(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int
) -> Tensor:
    """The same through the output layer's own forward, for one that is sharded, quantised, adapted or biased.
    head: [n, d] -> [n, V] logits."""
    size = max(1, CHUNK_LOGITS // vocabulary)
    parts = [
        checkpoint(_chunk, states, tokens, head, use_reentrant=False)
        for states, tokens in zip(torch.split(hidden, size), torch.split(targets, size), strict=True)
    ]
    return torch.cat(parts)


def answer_sums(logprobs: Tensor, owner: Tensor, answers: int) -> Tensor:
    """[N] token log-probabilities to [A] sums; owner: [N], whose token each is."""
    return logprobs.new_zeros(answers).index_add(0, owner, logprobs)


def _chunk(states: Tensor, tokens: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
    logits = _wide(head(states))
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


class _Logprobs(torch.autograd.Function):
    """With s = softmax(W h): d log P(y) / d h = W_y - s W, and d log P(y) / d W = (e_y - s) h^T."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        size = max(1, CHUNK_LOGITS // len(weight))
        with torch.autocast(kind, enabled=False):
            states, matrix = hidden.to(dtype), weight.to(dtype)
            chosen, norms = [], []
            for part, tokens in zip(torch.split(states, size), torch.split(targets, size), strict=True):
                logits = _wide(part @ matrix.T)
                chosen.append(logits.gather(1, tokens[:, None])[:, 0])
                norms.append(logits.logsumexp(1))
        norm = torch.cat(norms)
        ctx.save_for_backward(states, targets, weight, norm)
        ctx.size, ctx.dtypes = size, (hidden.dtype, weight.dtype)
        return torch.cat(chosen) - norm

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor | None]:
        states, targets, weight, norm = ctx.saved_tensors
        of_hidden, of_weight = ctx.dtypes
        matrix = weight.to(states.dtype)
        state_parts = []
        grown = torch.zeros_like(weight) if ctx.needs_input_grad[2] else None
        pieces = (torch.split(each, ctx.size) for each in (states, targets, norm, gradients[0]))
        for part, tokens, least, gradient in zip(*pieces, strict=True):
            flow = _wide(part @ matrix.T)
            flow.sub_(least[:, None]).exp_().mul_(-gradient[:, None])
            flow.scatter_add_(1, tokens[:, None], gradient[:, None])
            narrow = flow.to(states.dtype)
            state_parts.append((narrow @ matrix).to(of_hidden))
            if grown is not None:
                grown += (narrow.T @ part).to(of_weight)
        return torch.cat(state_parts), None, grown
