"""What every engine refuses of a request before it starts: ValueErrors that name the field."""

from __future__ import annotations

import math

from rrtf_serve.engine.protocol import Capabilities, Request, Sampling


def check_ids(ids: tuple[int, ...], vocabulary: int) -> None:
    """`vocabulary`: number of tokens that the model knows."""
    if not ids:
        raise ValueError("the prompt is empty: the model needs at least one token to start from")
    wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise ValueError(f"token id {wrong} is outside the vocabulary of {vocabulary} tokens")


def check_request(request: Request, capabilities: Capabilities, vocabulary: int) -> None:
    check_ids(request.prompt, vocabulary)
    context = capabilities.max_context
    if len(request.prompt) >= context:
        raise ValueError(
            f"the prompt has {len(request.prompt)} tokens, which leaves no room in a context of {context}"
        )
    if request.max_tokens < 1:
        raise ValueError(f"max_tokens is {request.max_tokens}; it must be at least 1")
    check_sampling(request.sampling, capabilities.max_logprobs)
    wrong = next((token for token, _ in request.sampling.logit_bias if not 0 <= token < vocabulary), None)
    if wrong is not None:
        raise ValueError(f"logit_bias: token id {wrong} is outside the vocabulary of {vocabulary} tokens")


def check_sampling(sampling: Sampling, max_logprobs: int) -> None:
    # Comparisons are written so that NaN fails them.
    if not 0 <= sampling.temperature < math.inf:
        raise ValueError(f"temperature is {sampling.temperature}; it must be 0 or more")
    if not 0 <= sampling.top_p <= 1:
        raise ValueError(f"top_p is {sampling.top_p}; it must be from 0 to 1")
    if not 0 <= sampling.min_p <= 1:
        raise ValueError(f"min_p is {sampling.min_p}; it must be from 0 to 1")
    if sampling.top_k < 0:
        raise ValueError(f"top_k is {sampling.top_k}; it must be 0 (no limit) or more")
    if not 0 < sampling.repetition_penalty < math.inf:
        raise ValueError(f"repetition_penalty is {sampling.repetition_penalty}; it must be above 0")
    for name in ("presence_penalty", "frequency_penalty"):
        if not math.isfinite(getattr(sampling, name)):
            raise ValueError(f"{name} is {getattr(sampling, name)}; it must be a finite number")
    if not all(math.isfinite(bias) for _, bias in sampling.logit_bias):
        raise ValueError("logit_bias: every bias must be a finite number")
    if sampling.logprobs is not None and not 0 <= sampling.logprobs <= max_logprobs:
        raise ValueError(f"logprobs is {sampling.logprobs}; it must be from 0 to {max_logprobs}")
