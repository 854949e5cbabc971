"""Ollama's API, as its SDKs, Continue, Zed, llm-ls and JetBrains ask it.

POST /api/generate, /api/chat, /api/show; GET /api/tags, /api/ps, /api/version; HEAD /.
https://github.com/ollama/ollama/blob/main/docs/api.md

Not as there: a prompt that doesn't fit is refused, never cut without a word; a prompt in
fill-in-the-middle markers is asked for as a middle, raw or not; no `context` is given back; models are
fetched and chosen on the command line alone.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from rrtf_serve.api import openapi
from rrtf_serve.api.body import read_json_of_program
from rrtf_serve.api.dialects import ollama_fields as fields
from rrtf_serve.api.dialects import ollama_models as listing
from rrtf_serve.api.dialects.continuation import continuation_job, conversation_job, middle_tokens
from rrtf_serve.api.dialects.timed import TimedGeneration, Times
from rrtf_serve.api.errors import SHAPES, ApiError
from rrtf_serve.api.fields import Field, Parsed, Values, parse
from rrtf_serve.api.generation import Job
from rrtf_serve.api.infill import Infill, editor_of, infill_job, is_marked
from rrtf_serve.api.kinds import Schema
from rrtf_serve.api.messages import read_messages
from rrtf_serve.api.models import Models
from rrtf_serve.api.ndjson import MEDIA_TYPE, LinesEnding, line
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import Record
from rrtf_serve.api.sse import EventStream, unless_gone
from rrtf_serve.engine.protocol import NO_ENGINE
from rrtf_serve.models.families import ChatFormat

DIALECT = "ollama"
# What clients hold against the features that they know: one with suffix, chat, tools and thinking.
VERSION = "0.12.0"
RUNNING = "Ollama is running"
# Formats of models that take a request as such; the others go on with a text.
INSTRUCTED = (ChatFormat.CHATML, ChatFormat.STARCHAT, ChatFormat.ALPACA)

ERROR: Schema = {
    "type": "object",
    "properties": {"error": {"type": "string"}},
    "required": ["error"],
}
_FAILURES = openapi.errors(400, 401, 404, 408, 413, 415, 429, 500, 503, schema=ERROR)
_GENERATED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer",
        "content": {
            MEDIA_TYPE: {"schema": {"type": "string", "description": "One line a piece."}},
            "application/json": {"schema": {"type": "object"}},
        },
    }
}


def error_body(error: ApiError) -> dict[str, object]:
    return {"error": error.message}


@dataclass(frozen=True)
class _Asked:
    """One request to generate."""

    served: Served
    parsed: Parsed
    options: Parsed
    name: str  # of the model, as the client wrote it: it is answered by the same
    begun: float  # time.monotonic() seconds
    loading: float  # seconds until its model was there

    @property
    def values(self) -> Values:
        return self.parsed.values

    @property
    def headers(self) -> dict[str, str]:
        dropped = self.parsed.dropped + self.options.dropped
        return {"x-rrtf-dropped": ", ".join(dropped)} if dropped else {}

    def record(self, **fields: object) -> Record:
        return {"model": self.name, "created_at": listing.timestamp(datetime.now(UTC)), **fields}


Say = Callable[[str], Record]


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    SHAPES["/api"] = error_body
    app.router.routes.append(_Greeting("/", _greet, methods=["GET", "HEAD"], include_in_schema=False))

    async def read(request: Request, table: tuple[Field, ...]) -> _Asked:
        begun = time.monotonic()
        body = await read_json_of_program(request, settings.max_body_bytes)
        arrived = time.monotonic()
        served = await models.open(listing.find_model(models, body.get("model")))
        loading = time.monotonic() - arrived
        engine = served.scheduler.capabilities
        parsed = parse(table, body, engine)
        options = fields.parse_options(parsed.values["options"], engine)
        return _Asked(served, parsed, options, parsed.values["model"], begun, loading)

    @app.post(
        "/api/generate",
        response_class=Response,
        responses={**_GENERATED, **_FAILURES},
        openapi_extra=openapi.request_body(fields.GENERATE_FIELDS),
    )
    async def generate(request: Request) -> Response:
        """Text after a prompt, or between a prompt and a suffix."""
        asked = await read(request, fields.GENERATE_FIELDS)
        if not (asked.values["prompt"] or asked.values["suffix"]):
            return _loaded(asked, _response)
        job = await unless_gone(request.receive, _plan_generate(request, settings, asked))
        return await _answer(request, asked, job, _response)

    @app.post(
        "/api/chat",
        response_class=Response,
        responses={**_GENERATED, **_FAILURES},
        openapi_extra=openapi.request_body(fields.CHAT_FIELDS),
    )
    async def chat(request: Request) -> Response:
        """The assistant's next message."""
        asked = await read(request, fields.CHAT_FIELDS)
        if not asked.values["messages"]:
            return _loaded(asked, _message)
        job = await unless_gone(request.receive, _plan_chat(settings, asked))
        return await _answer(request, asked, job, _message)

    @app.post(
        "/api/show",
        responses=openapi.errors(400, 401, 404, 408, 413, 415, schema=ERROR),
        openapi_extra=openapi.request_body(fields.SHOW_FIELDS),
    )
    async def show(request: Request) -> Response:
        """What a model can do: editors look for `.Suffix` in its template."""
        body = await read_json_of_program(request, settings.max_body_bytes)
        known = listing.find_model(models, body.get("model") or body.get("name"))
        parse(fields.SHOW_FIELDS, body, NO_ENGINE)
        return _json(listing.show_record(known))

    @app.get("/api/tags", responses=openapi.errors(401, schema=ERROR))
    async def tags() -> Record:
        """The served models, by names with tags."""
        return {"models": [listing.tags_record(known) for known in models.all]}

    @app.get("/api/ps", responses=openapi.errors(401, schema=ERROR))
    async def running() -> Record:
        """The models in memory."""
        return {"models": [listing.running_record(served) for served in models.loaded]}

    @app.get("/api/version", responses=openapi.errors(401, schema=ERROR))
    async def version() -> Record:
        """The version of Ollama's API that this is like; /version has the server's own."""
        return {"version": VERSION}

    def refuse(method: str, path: str, advice: str) -> None:
        async def refusal() -> Record:
            problem = f"This server does not do {method} {path}. {advice}"
            raise ApiError(501, problem, "not_supported", type="not_supported_error")

        app.add_api_route(path, refusal, methods=[method], include_in_schema=False)

    start = "Start it with `rrtf-serve --model NAME` instead: that fetches, converts and serves a model."
    for action in ("pull", "create", "copy", "push"):
        refuse("POST", f"/api/{action}", start)
    refuse("DELETE", "/api/delete", "Use `rrtf-models rm NAME` instead.")
    for action in ("embed", "embeddings"):
        refuse("POST", f"/api/{action}", "It serves models that write code; none of them embeds.")


class _Greeting(Route):
    """The root belongs to browsers; of others, only those that ask whether Ollama is there are answered."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http":
            agents = [value.lower() for name, value in scope["headers"] if name == b"user-agent"]
            if scope["method"] != "HEAD" and not any(agent.startswith(b"ollama") for agent in agents):
                return Match.NONE, {}
        return super().matches(scope)


async def _greet(_: Request) -> Response:
    return PlainTextResponse(RUNNING)


async def _plan_generate(request: Request, settings: ApiSettings, asked: _Asked) -> Job:
    served, values, options = asked.served, asked.values, asked.options.values
    prompt: str = values["prompt"]
    if values["suffix"]:
        return await _plan_infill(request, settings, asked)
    if not values["raw"] and not is_marked(served, prompt):
        system = [{"role": "system", "content": values["system"]}] if values["system"] else []
        if served.card.chat_template or served.prompts.family.chat in INSTRUCTED:
            return await conversation_job(
                served,
                settings,
                [*system, {"role": "user", "content": prompt}],
                fields.sampling(options, likeliest=False),
                asked=options["num_predict"],
                stops=options["stop"],
                path=("prompt",),
            )
        prompt = f"{values['system']}\n\n{prompt}" if system else prompt
    return await continuation_job(
        request,
        served,
        settings,
        (prompt,),
        fields.sampling(options, likeliest=False),
        typed=fields.sampling(options, likeliest=True),
        dialect=DIALECT,
        asked=options["num_predict"],
        stops=options["stop"],
    )


async def _plan_infill(request: Request, settings: ApiSettings, asked: _Asked) -> Job:
    served, values, options = asked.served, asked.values, asked.options.values
    if not served.prompts.has_infill:
        raise ApiError(
            400,
            f"{asked.name[:200]} does not support insert: it has no fill-in-the-middle tokens. Leave "
            "'suffix' out, or serve a model that has them, such as qwen2.5-coder or starcoder.",
            "unsupported_parameter",
            path=("suffix",),
        )
    infill = Infill(
        values["prompt"],
        values["suffix"],
        max_tokens=middle_tokens(served, options["num_predict"]),
        stops=options["stop"],
    )
    return await infill_job(
        served,
        settings,
        infill,
        fields.sampling(options, likeliest=True),
        editor=editor_of(request, DIALECT, infill),
    )


async def _plan_chat(settings: ApiSettings, asked: _Asked) -> Job:
    messages = asked.values["messages"]
    for index, message in enumerate(messages):
        if message.get("images"):
            raise ApiError(
                400,
                f"messages[{index}].images: this model reads text only; leave them out.",
                "unsupported_parameter",
                path=("messages", index, "images"),
            )
    options = asked.options.values
    return await conversation_job(
        asked.served,
        settings,
        read_messages(messages),
        fields.sampling(options, likeliest=False),
        asked=options["num_predict"],
        stops=options["stop"],
        path=("messages",),
    )


def _response(text: str) -> Record:
    return {"response": text}


def _message(text: str) -> Record:
    return {"message": {"role": "assistant", "content": text}}


def _loaded(asked: _Asked, say: Say) -> Response:
    """Without a prompt a model is only loaded, or let go; here it is there at any time."""
    unload = asked.values["keep_alive"] in (0, "0", "0s", "0m")
    return _json(asked.record(**say(""), done=True, done_reason="unload" if unload else "load"))


async def _answer(request: Request, asked: _Asked, job: Job, say: Say) -> Response:
    generation = TimedGeneration(asked.served, job, request.scope["rrtf.owner"])
    if asked.values["stream"]:
        lines = _lines(generation, asked, say)
        return EventStream(lines, generation.cancel, asked.headers, LinesEnding())
    try:
        [made] = await unless_gone(request.receive, generation.whole())
    finally:
        generation.cancel()
    return _json(_final(asked, say(made.text), generation.times[0]), asked.headers)


async def _lines(generation: TimedGeneration, asked: _Asked, say: Say) -> AsyncIterator[bytes]:
    async for pieces in generation.pieces():
        text = "".join(piece.text for piece in pieces)
        if text:
            yield line(asked.record(**say(text), done=False))
    yield line(_final(asked, say(""), generation.times[0]))


def _final(asked: _Asked, said: Record, times: Times) -> Record:
    return asked.record(
        **said,
        done=True,
        done_reason="length" if times.stop == "limit" else "stop",
        total_duration=_nanoseconds(time.monotonic() - asked.begun),
        load_duration=_nanoseconds(asked.loading),
        prompt_eval_count=times.prompt_tokens,
        prompt_eval_duration=_nanoseconds(times.prompt_seconds),
        eval_count=times.predicted_tokens,
        eval_duration=_nanoseconds(times.predicted_seconds),
    )


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _json(record: Record, headers: dict[str, str] | None = None) -> Response:
    return Response(line(record), headers=headers, media_type="application/json")
