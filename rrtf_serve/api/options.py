"""What both endpoints read from their parsed fields in the same way."""

from __future__ import annotations

from dataclasses import replace

from rrtf_serve.api.errors import FieldPath, context_length_exceeded, invalid_value
from rrtf_serve.api.fields import Values
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.engine.protocol import Sampling

PLAUSIBLE_CHARACTERS = 8  # per token, of code or prose; more than that is looked at in pieces first
PIECE_CHARACTERS = 50_000


def check_length(served: Served, text: str, path: FieldPath) -> None:
    """Refuse a text far beyond the context without encoding all of it, which takes seconds per megabyte.

    Raises ApiError context_length_exceeded; the number of tokens in it is then that of the text's beginning.
    """
    context = served.scheduler.capabilities.max_context
    if len(text) <= PLAUSIBLE_CHARACTERS * context:
        return
    tokens = 0
    for start in range(0, len(text), PIECE_CHARACTERS):
        # Each cut may add a few tokens that the whole would not have.
        tokens += len(served.tokenizer.encode(text[start : start + PIECE_CHARACTERS], specials=True)) - 64
        if tokens > context:
            raise context_length_exceeded(tokens, 1, context, path)


def check_rows(settings: ApiSettings, prompts: int, copies: int) -> None:
    if prompts * copies > settings.max_rows:
        raise invalid_value(
            ("n",), f"{prompts} prompts x {copies} choices; at most {settings.max_rows} in one request."
        )


def sampling(values: Values, logprobs: int | None) -> Sampling:
    """`logprobs`: alternatives per token, 0 for the chosen token alone, None for nothing."""
    greedy = Sampling(
        temperature=0.0,
        repetition_penalty=values["repetition_penalty"],
        logprobs=logprobs,
        presence_penalty=values["presence_penalty"],
        frequency_penalty=values["frequency_penalty"],
        logit_bias=values["logit_bias"],
    )
    if values["temperature"] == 0 or values["top_p"] == 0:
        # What greedy decoding doesn't look at is left out, so that such requests can share a batch.
        return greedy
    return replace(
        greedy,
        temperature=values["temperature"],
        top_p=values["top_p"],
        top_k=max(0, values["top_k"]),
        min_p=values["min_p"],
        seed=values["seed"],
    )


def include_usage(values: Values) -> bool:
    options = values["stream_options"] or {}
    return bool(options.get("include_usage"))
