"""Tabby's server, as its editors' agent asks it: POST /v1/completions with `segments`, /v1/events,
/v1beta/chat/completions; GET and POST /v1/health; GET /v1beta/server_setting.

https://tabby.tabbyml.com/api. /v1/completions is OpenAI's path, too; api/app sends what has `segments` here.
Declarations and snippets of other files go into the prompt where they fit; the clipboard, which may hold
anything, and the editing history do not. Events are counted by type, and nothing of them is kept.
"""

from __future__ import annotations

import os
import platform
import re
import secrets
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rrtf_serve import __version__
from rrtf_serve.api import openapi
from rrtf_serve.api.answer import Plan
from rrtf_serve.api.body import read_json
from rrtf_serve.api.chat import plan_chat
from rrtf_serve.api.dialects.endpoint import Body, add_endpoint, by_model
from rrtf_serve.api.fields import CHAT_FIELDS, MAX_STOPS, Field, parse
from rrtf_serve.api.generation import Piece
from rrtf_serve.api.infill import Infill, Snippet, editor_of, infill_job
from rrtf_serve.api.kinds import Array, Integer, Number, Object, Text
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import Record
from rrtf_serve.api.sse import OpenAiEnding, event
from rrtf_serve.engine.protocol import NO_ENGINE, Sampling

MAX_TOKENS = 64  # as Tabby's own server; an agent names no limit
EVENTS = ("view", "select", "dismiss")
# What the agent compares with the versions that learnt something: it fetches settings from 0.9.0 on.
_SPEAKS = "v0.9.0"

_PIECES = Array(
    Object((("filepath", Text()), ("body", Text()), ("score", Number())), ("filepath", "body")), MAX_STOPS
)
_SEGMENTS = Object(
    (
        ("prefix", Text()),
        ("suffix", Text()),
        ("filepath", Text()),
        ("git_url", Text()),
        ("declarations", _PIECES),
        ("relevant_snippets_from_changed_files", _PIECES),
        ("relevant_snippets_from_recently_opened_files", _PIECES),
    ),
    ("prefix",),
)
FIELDS = (
    Field("segments", _SEGMENTS, required=True),
    Field("temperature", Number(0, 2), default=0.0, note="0 is greedy decoding."),
    Field("seed", Integer(-(2**63), 2**64 - 1)),
)
_EVENT_FIELDS = (Field("type", Text(), required=True, note=f"Counted: {', '.join(EVENTS)}."),)


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    seen: Metrics = app.state.metrics

    async def health() -> Record:
        """What runs here, as far as Tabby's agent wants to know."""
        return _health(models)

    for method in ("GET", "POST"):
        app.add_api_route(
            "/v1/health",
            health,
            methods=[method],
            responses=openapi.errors(401),
            operation_id=f"tabby_health_{method.lower()}",
        )

    @app.get("/v1beta/server_setting", responses=openapi.errors(401))
    async def server_setting() -> Record:
        """Asks editors to send no statistics of their own anywhere."""
        return {"disable_client_side_telemetry": True}

    @app.post(
        "/v1/events",
        response_class=Response,
        responses={200: {"description": "Counted"}, **openapi.errors(400, 401, 408, 413, 415)},
        openapi_extra=openapi.request_body(_EVENT_FIELDS),
    )
    async def events(request: Request) -> Response:
        """What became of a completion: seen, taken or dismissed."""
        body = await read_json(request, settings.max_body_bytes)
        values = parse(_EVENT_FIELDS, body, NO_ENGINE).values
        # A client's own words must not become names of figures.
        seen.editor_events.labels(values["type"] if values["type"] in EVENTS else "other").inc()
        return Response()

    add_endpoint(
        app,
        "/v1beta/chat/completions",
        by_model(models),
        _plan_chat,
        settings=settings,
        table=CHAT_FIELDS,
        summary="The assistant's next message, as /v1/chat/completions",
    )


async def _plan_chat(_: Request, served: Served, settings: ApiSettings, body: Body) -> Plan:
    return await plan_chat(served, settings, body)


async def plan_segments(request: Request, served: Served, settings: ApiSettings, body: Body) -> Plan:
    """Raises ApiError."""
    parsed = parse(FIELDS, body, served.scheduler.capabilities)
    values = parsed.values
    infill = _infill(values["segments"])
    temperature: float = values["temperature"]
    sampling = (
        Sampling(temperature, seed=values["seed"] if served.scheduler.capabilities.seed else None)
        if temperature
        else Sampling(temperature=0.0)
    )
    return Plan(
        job=await infill_job(served, settings, infill, sampling, editor=editor_of(request, "tabby", infill)),
        shape=_Shape(),
        dropped=parsed.dropped,
    )


def _infill(segments: Any) -> Infill:
    def pieces(name: str) -> list[Any]:
        return sorted(segments.get(name) or (), key=lambda piece: -(piece.get("score") or 0.0))

    # What the code near the cursor calls tells more than what was open before.
    found = [
        *pieces("declarations"),
        *pieces("relevant_snippets_from_changed_files"),
        *pieces("relevant_snippets_from_recently_opened_files"),
    ]
    return Infill(
        segments["prefix"],
        segments.get("suffix") or "",
        filename=segments.get("filepath"),
        snippets=tuple(Snippet(piece["filepath"], piece["body"]) for piece in found),
        repository=_repository(segments.get("git_url") or ""),
        max_tokens=MAX_TOKENS,
    )


def _repository(git_url: str) -> str | None:
    """owner/name of https://user:token@host/owner/name.git or git@host:owner/name.git: no part of it that
    opens a door."""
    found = re.search(r"([^/:@\s]+/[^/:@\s]+?)(?:\.git)?/?$", git_url)
    return found[1] if found else None


def _health(models: Models) -> Record:
    """The agent wants every one of these; what they say of the machine is for its log alone."""
    return {
        "model": models.all[0].name,
        "device": "local",
        "arch": platform.machine(),
        "cpu_info": "",
        "cpu_count": os.cpu_count() or 1,
        "cuda_devices": [],
        "version": {
            "build_date": "",
            "build_timestamp": "",
            "git_sha": f"rrtf-serve {__version__}",
            "git_describe": _SPEAKS,
        },
    }


class _Shape(OpenAiEnding):
    """Never streamed: the agent reads whole answers only."""

    def __init__(self) -> None:
        self.id = f"cmpl-{secrets.token_hex(12)}"

    def opening(self, _rows: int, /) -> bytes:
        return b""

    def chunk(self, piece: Piece) -> bytes:
        return event(self.whole([piece], {}))

    def usage(self, _: Record, /) -> bytes:
        return b""

    def whole(self, choices: Sequence[Piece], _usage: Record, /) -> Record:
        return {"id": self.id, "choices": [{"index": piece.row, "text": piece.text} for piece in choices]}
