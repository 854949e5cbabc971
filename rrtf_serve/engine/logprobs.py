"""Log-probabilities out of raw logits, in float32."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rrtf_serve.engine.protocol import TokenLogprob


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Natural-log probabilities over the last axis: [..., V] -> [..., V]. A logit of -inf stays -inf."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    # float64 only for the sum: 150,000 small float32 terms lose three digits otherwise.
    total = np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)
    result: NDArray[np.float32] = shifted - np.log(total).astype(np.float32)
    return result


def token_logprob(logprobs: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """The record of one position. `logprobs`: [V]. Tokens of probability 0 are never among the best."""
    if not top:
        return TokenLogprob(token, float(logprobs[token]))
    top = min(top, logprobs.size)
    best = np.argpartition(logprobs, -top)[-top:]
    best = best[np.argsort(-logprobs[best], kind="stable")]
    return TokenLogprob(
        token,
        float(logprobs[token]),
        tuple((int(index), float(logprobs[index])) for index in best if np.isfinite(logprobs[index])),
    )
