"""Mistral's POST /v1/fim/completions, as Continue, Tabby's server and Mistral's SDKs ask it.

https://docs.mistral.ai/api/#tag/fim. The answer is shaped like a chat's, streamed and whole. Not as there:
without a temperature it is greedy, as suits an editor, and `max_tokens` shrinks where the context is short.
"""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.requests import Request

from rrtf_serve.api import fields
from rrtf_serve.api.answer import Plan
from rrtf_serve.api.dialects.endpoint import Body, add_endpoint, by_model
from rrtf_serve.api.fields import Field, parse
from rrtf_serve.api.infill import DEFAULT_MAX_TOKENS, Infill, editor_of, infill_job
from rrtf_serve.api.kinds import Boolean, Integer, Number, Object, Stops, Text
from rrtf_serve.api.models import Models
from rrtf_serve.api.options import include_usage
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import ChatShape
from rrtf_serve.engine.protocol import Sampling

FIELDS = (
    Field("model", Text(), note="A served name or alias; absent: the first model."),
    Field("prompt", Text(), required=True, note="The text before the cursor."),
    Field("suffix", Text(), default="", note="The text after it."),
    Field("temperature", Number(0, 2), default=0.0, note="0 is greedy decoding."),
    Field("top_p", Number(0, 1), default=1.0),
    Field("max_tokens", Integer(0, fields.MAX_TOKENS), default=DEFAULT_MAX_TOKENS),
    Field("min_tokens", Integer(0, fields.MAX_TOKENS), default=0, note="Other than 0: nothing is trimmed."),
    Field("stop", Stops(fields.MAX_STOPS, fields.MAX_STOP_CHARACTERS), default=()),
    Field("stream", Boolean(), default=False),
    Field("stream_options", Object((("include_usage", Boolean()),)), fields.stream_options),
    Field("random_seed", Integer(-(2**63), 2**64 - 1), fields.seed),
    Field("metadata", Object(), fields.neutral),
)


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    add_endpoint(
        app,
        "/v1/fim/completions",
        by_model(models),
        _plan,
        settings=settings,
        table=FIELDS,
        summary="What stands between a prompt and a suffix",
    )


async def _plan(request: Request, served: Served, settings: ApiSettings, body: Body) -> Plan:
    parsed = parse(FIELDS, body, served.scheduler.capabilities)
    values = parsed.values
    infill = Infill(
        values["prompt"],
        values["suffix"],
        max_tokens=values["max_tokens"],
        min_tokens=values["min_tokens"],
        stops=values["stop"],
    )
    greedy = values["temperature"] == 0 or values["top_p"] == 0
    sampling = (
        Sampling(temperature=0.0)
        if greedy
        else Sampling(values["temperature"], values["top_p"], seed=values["random_seed"])
    )
    return Plan(
        job=await infill_job(
            served, settings, infill, sampling, editor=editor_of(request, "mistral", infill)
        ),
        shape=ChatShape(
            served.tokenizer,
            served.name,
            int(time.time()),
            logprobs=False,
            include_usage=include_usage(values),
        ),
        stream=values["stream"],
        include_usage=include_usage(values),
        dropped=parsed.dropped,
    )
