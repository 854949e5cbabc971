"""llama.cpp's server, as llama.vim, llama.vscode, Continue and Tabby's server ask it.

POST /infill, /completion, /completions, /tokenize, /detokenize, /apply-template; GET /props and /slots.
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md

Not as there: a prompt isn't read ahead of its use (n_predict 0 answers at once), no part of it is reported
as cached, and what stands beyond the context is refused by /completion, never cut.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rrtf_serve import __version__
from rrtf_serve.api import openapi
from rrtf_serve.api.body import read_json
from rrtf_serve.api.dialects import llamacpp_fields as fields
from rrtf_serve.api.dialects.continuation import continuation_job, middle_tokens
from rrtf_serve.api.dialects.endpoint import ANSWER
from rrtf_serve.api.dialects.llamacpp_shape import ERROR, Ending, Shape, error_body
from rrtf_serve.api.dialects.timed import TimedGeneration, Times
from rrtf_serve.api.encoding import encode
from rrtf_serve.api.errors import SHAPES, ApiError, invalid_value
from rrtf_serve.api.fields import Field, Parsed, Values, parse
from rrtf_serve.api.generation import Job
from rrtf_serve.api.infill import Infill, Snippet, editor_of, infill_job
from rrtf_serve.api.messages import read_messages
from rrtf_serve.api.models import Models
from rrtf_serve.api.options import check_length
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import Record
from rrtf_serve.api.sse import EventStream, event, unless_gone
from rrtf_serve.engine.protocol import Sampling

DIALECT = "llama.cpp"
PATHS = (
    "/infill", "/completion", "/completions", "/props", "/slots", "/tokenize", "/detokenize",
    "/apply-template",
)  # fmt: skip
MAX_TEXT = 1_000_000  # characters of /tokenize: encoding takes seconds per million, and shares one lock
_FAILURES = openapi.errors(400, 401, 404, 408, 413, 415, 429, 500, 501, 503, schema=ERROR)

Plan = Callable[[Request, Served, ApiSettings, Values], Coroutine[Any, Any, Job]]
Tell = Callable[[Served, Values], Record]


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    SHAPES.update(dict.fromkeys(PATHS, error_body))

    async def read(request: Request, table: tuple[Field, ...]) -> tuple[Served, Parsed]:
        body = await read_json(request, settings.max_body_bytes)
        served = await _find(models, body.get("model"))
        return served, parse(table, body, served.scheduler.capabilities)

    def generating(path: str, table: tuple[Field, ...], plan: Plan, summary: str) -> None:
        async def endpoint(request: Request) -> Response:
            served, parsed = await read(request, table)
            if parsed.values["n_predict"] == 0:
                return _warmed_up(served, parsed, likeliest=path == "/infill")
            job = await unless_gone(request.receive, plan(request, served, settings, parsed.values))
            return await _answer(request, served, job, parsed)

        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_class=Response,
            responses={**ANSWER, **_FAILURES},
            openapi_extra=openapi.request_body(table),
            summary=summary,
            operation_id=f"llamacpp{path.replace('/', '_')}",
        )

    def telling(path: str, table: tuple[Field, ...], tell: Tell, summary: str) -> None:
        async def endpoint(request: Request) -> Response:
            served, parsed = await read(request, table)
            return _json(await encode(tell, served, parsed.values))

        app.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            response_class=Response,
            responses={200: {"content": {"application/json": {"schema": {"type": "object"}}}}, **_FAILURES},
            openapi_extra=openapi.request_body(table),
            summary=summary,
            operation_id=f"llamacpp{path.replace('/', '_')}",
        )

    generating("/infill", fields.INFILL_FIELDS, _plan_infill, "What stands between a prefix and a suffix")
    for path in ("/completion", "/completions"):
        generating(path, fields.COMPLETION_FIELDS, _plan_completion, "Text after a prompt")
    telling("/tokenize", fields.TOKENIZE_FIELDS, _tokenize, "A text's tokens")
    telling("/detokenize", fields.DETOKENIZE_FIELDS, _detokenize, "The text of tokens")
    telling("/apply-template", fields.TEMPLATE_FIELDS, _apply_template, "A conversation as one prompt")

    @app.get("/props", responses=openapi.errors(401, schema=ERROR))
    async def props(model: str = "") -> Record:
        """What clients ask for the context's size and the chat template."""
        return _props(await _find(models, model))

    @app.get("/slots", responses=openapi.errors(401, 501, schema=ERROR))
    async def slots() -> Record:
        """Not offered: it would show to one client what others ask."""
        raise ApiError(501, "This server does not show its slots; /metrics has its load.", "not_supported")


async def _find(models: Models, name: object) -> Served:
    """A server of one model answers to any name, as llama.cpp's does. Raises ApiError 404."""
    if name == "":
        return await models.get(None)
    try:
        return await models.get(name)
    except ApiError:
        if len(models.all) > 1:
            raise
        return await models.get(None)


async def _plan_infill(request: Request, served: Served, settings: ApiSettings, values: Values) -> Job:
    if not served.prompts.has_infill:
        raise ApiError(
            501,
            f"The model '{served.name}' can't fill in the middle. Serve one that can, such as qwen2.5-coder "
            "or starcoder.",
            "not_supported",
        )
    engine = served.scheduler.capabilities
    infill = Infill(
        values["input_prefix"] + values["prompt"],
        values["input_suffix"],
        # Editors put what was looked at last at the end.
        snippets=tuple(
            Snippet(extra.get("filename") or "", extra.get("text") or "")
            for extra in reversed(values["input_extra"])
        ),
        max_tokens=middle_tokens(served, values["n_predict"]),
        stops=values["stop"],
        first_token_seconds=fields.seconds(values["t_max_prompt_ms"]),
    )
    return await infill_job(
        served,
        settings,
        infill,
        fields.sampling(values, engine, likeliest=True),
        copies=fields.copies(values),
        editor=editor_of(request, DIALECT, infill),
    )


async def _plan_completion(request: Request, served: Served, settings: ApiSettings, values: Values) -> Job:
    engine = served.scheduler.capabilities
    job = await continuation_job(
        request,
        served,
        settings,
        values["prompt"],
        fields.sampling(values, engine, likeliest=False),
        typed=fields.sampling(values, engine, likeliest=True),
        dialect=DIALECT,
        asked=values["n_predict"],
        stops=values["stop"],
        copies=fields.copies(values),
    )
    return replace(job, end_ids=frozenset()) if values["ignore_eos"] else job


async def _answer(request: Request, served: Served, job: Job, parsed: Parsed) -> Response:
    values = parsed.values
    shape = _shape(served, values, job.sampling, max(job.max_tokens))
    headers = _headers(parsed)
    generation = TimedGeneration(
        served,
        job,
        request.scope["rrtf.owner"],
        predict_seconds=fields.seconds(values["t_max_predict_ms"]),
    )
    if values["stream"]:
        return EventStream(_events(generation, shape), generation.cancel, headers, Ending())
    try:
        rows = await unless_gone(request.receive, generation.whole())
    finally:
        generation.cancel()
    records = [
        shape.final(index, made.text, made.scored, times)
        for index, (made, times) in enumerate(zip(rows, generation.times, strict=True))
    ]
    return _json(records if job.rows > 1 else records[0], headers)


async def _events(generation: TimedGeneration, shape: Shape) -> AsyncIterator[bytes]:
    async for pieces in generation.pieces():
        for piece in pieces:
            times = generation.times[piece.row]
            if piece.text or piece.scored:
                yield event(shape.partial(piece.row, piece.text, piece.scored, times))
            if piece.finish is not None:
                yield event(shape.final(piece.row, "", (), times))


def _warmed_up(served: Served, parsed: Parsed, *, likeliest: bool) -> Response:
    """Editors ask for no tokens ahead of a real request, so that the prompt is in the cache by then; here it
    would stand in others' way."""
    sampling = fields.sampling(parsed.values, served.scheduler.capabilities, likeliest=likeliest)
    shape = _shape(served, parsed.values, sampling, 0)
    record = shape.final(0, "", (), Times(0.0, 0, stop="limit"))
    if parsed.values["stream"]:
        return Response(event(record), media_type=Ending.media_type)
    return _json(record, _headers(parsed))


def _shape(served: Served, values: Values, sampling: Sampling, tokens: int) -> Shape:
    """tokens: that each row may have."""
    return Shape(
        served.name,
        {
            **fields.in_effect(sampling),
            "n_predict": tokens,
            "n_ctx": served.scheduler.capabilities.max_context,
            "stop": list(values["stop"]),
            "stream": values["stream"],
        },
        served.tokenizer,
        values["response_fields"],
        probabilities=values["n_probs"] > 0,
    )


def _headers(parsed: Parsed) -> dict[str, str]:
    return {"x-rrtf-dropped": ", ".join(parsed.dropped)} if parsed.dropped else {}


def _json(record: object, headers: dict[str, str] | None = None) -> Response:
    # No space after a colon: llama.vim takes nothing for an answer but what holds `"content":"`.
    text = json.dumps(record, separators=(",", ":"))
    return Response(text, headers=headers, media_type="application/json")


def _props(served: Served) -> Record:
    engine = served.scheduler.capabilities
    return {
        "default_generation_settings": {
            "id": 0,
            "n_ctx": engine.max_context,
            "is_processing": False,
            "params": {
                "n_predict": -1,
                "temperature": fields.TEMPERATURE,
                "top_k": fields.TOP_K,
                "top_p": fields.TOP_P,
                "min_p": fields.MIN_P if engine.min_p else 0.0,
                "stop": [],
                "stream": False,
            },
        },
        "total_slots": engine.max_batch,
        "model_alias": served.name,
        "model_path": served.name,
        "chat_template": served.card.chat_template,
        "chat_template_caps": {},
        "modalities": {"vision": False, "audio": False},
        "build_info": f"rrtf-serve {__version__}",
        "is_sleeping": False,
    }


def _tokenize(served: Served, values: Values) -> Record:
    content: str = values["content"]
    if len(content) > MAX_TEXT:
        raise invalid_value(("content",), f"at most {MAX_TEXT} characters, but got {len(content)}.")
    ids = served.tokenizer.encode(content, specials=values["parse_special"])
    card = served.card
    if values["add_special"] and card.add_bos:
        bos = served.tokenizer.token_id(card.bos_token)
        ids = ids if bos is None else [bos, *ids]
    if not values["with_pieces"]:
        return {"tokens": ids}
    return {"tokens": [{"id": token, "piece": _piece(served, token)} for token in ids]}


def _piece(served: Served, token: int) -> str | list[int]:
    raw = served.tokenizer.token_bytes(token)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return list(raw)


def _detokenize(served: Served, values: Values) -> Record:
    return {"content": served.tokenizer.decode(values["tokens"], skip_specials=False)}


def _apply_template(served: Served, values: Values) -> Record:
    messages = read_messages(values["messages"])
    check_length(served, "".join(message["content"] for message in messages), ("messages",))
    try:
        ids = served.prompts.chat(messages)
    except ValueError as error:  # PromptError, or what the model's own template says
        raise invalid_value(("messages",), str(error)) from error
    return {"prompt": served.tokenizer.decode(ids, skip_specials=False)}
