"""Log-probabilities of answer tokens, without a tensor of B x L x V.

Only the states that predict answer tokens meet the output matrix, a chunk of them at a time; a chunk's logits
are dropped once read and made again for the gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**25  # float32 logits that exist at a time: 128 MiB


def token_logprobs(
    hidden: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], vocabulary: int
) -> Tensor:
    """hidden: [N, d], targets: [N], head: [n, d] -> [n, V] logits; the result: [N], float32 or wider."""
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
    logits = head(states)
    if logits.dtype != torch.float64:
        logits = logits.float()
    return logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)
