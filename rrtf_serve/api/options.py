"""What both endpoints read from their parsed fields in the same way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from rrtf_serve.api.errors import ApiError, invalid_value
from rrtf_serve.api.fields import Values
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.engine.protocol import Sampling

LONG_TEXT = 4000  # characters; tokenising more would hold up every other request for milliseconds

Result = TypeVar("Result")


def check_model(served: Served, model: str | None) -> None:
    """Raises ApiError 404. A request that names no model gets the one there is."""
    if model is not None and model != served.name and model not in served.aliases:
        raise ApiError(
            404,
            f"The model '{model[:200]}' does not exist here. This server has '{served.name}'.",
            "model_not_found",
            path=("model",),
        )


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


async def off_loop(size: int, work: Callable[[], Result]) -> Result:
    """Run what handles `size` characters here, or in a thread where it would take long."""
    return work() if size <= LONG_TEXT else await asyncio.to_thread(work)
