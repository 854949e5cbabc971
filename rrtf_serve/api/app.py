"""The HTTP API: OpenAI's completions, chat and models over the served models, and the dialects.

    app = create_app(Models([Served(...)]), settings=ApiSettings(api_keys=frozenset({digest})))

Bodies are checked by api/fields, never by FastAPI, so that every error has OpenAI's shape.
"""

from __future__ import annotations

import re
import secrets
import time

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import ASGIApp, Scope

from rrtf_serve import __version__
from rrtf_serve.api import errors, listing, openapi
from rrtf_serve.api.answer import Plan, answer
from rrtf_serve.api.body import read_json
from rrtf_serve.api.chat import plan_chat
from rrtf_serve.api.completions import INTERACTIVE, plan_completion
from rrtf_serve.api.dialects import add_dialects, tabby
from rrtf_serve.api.fields import CHAT_FIELDS, COMPLETION_FIELDS
from rrtf_serve.api.gate import Gate
from rrtf_serve.api.keys import Key, Keyring
from rrtf_serve.api.log import RequestLog
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.models import Models
from rrtf_serve.api.origin import OriginCheck
from rrtf_serve.api.probes import Readiness, add_probes
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import Record
from rrtf_serve.api.sse import ClientGone, unless_gone
from rrtf_serve.api.visit import Visit, Visits

_FAILURES = openapi.errors(400, 401, 403, 404, 408, 413, 415, 429, 500, 503, 504)
# A client's own id is kept when it can stand in a header and a log line.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
_INTERACTIVE_HEADER = {
    "name": INTERACTIVE,
    "in": "header",
    "description": "true: an editor waits. The prompt is cut to what is read in the latency budget, and the "
    "answer ends where an editor's should. false: neither. Without it both are done where the request has a "
    "suffix or a prompt made of fill-in-the-middle markers.",
    "schema": {"type": "string"},
}


class _App(FastAPI):
    """With layers around all others, those that are added later (the page's) and FastAPI's own included."""

    def __init__(
        self, settings: ApiSettings, keys: Keyring, metrics: Metrics, log: RequestLog | None
    ) -> None:
        super().__init__(
            title="RRTF",
            version=__version__,
            description="OpenAI-compatible completions, fill in the middle and chat from a local code model.",
            docs_url=None,  # both pages load their scripts from elsewhere
            redoc_url=None,
        )
        self._settings = settings
        self._keys = keys
        self._tell = (metrics.count,) if log is None else (metrics.count, log.tell)

    def build_middleware_stack(self) -> ASGIApp:
        gate = Gate(super().build_middleware_stack(), settings=self._settings, keys=self._keys)
        checked = OriginCheck(gate, origins=self._settings.origins)
        return Visits(checked, begin=self._begin, find=self._find, tell=self._tell)

    def _find(self, scope: Scope) -> str:
        """The template of the request's path, also where it was refused before the router saw it."""
        path = scope["path"]
        page = self._settings.page
        if path == page or path.startswith(f"{page}/"):
            return page  # it has a router of its own, whose paths hold random parts
        matched = scope.get("route")
        for route in self.routes if matched is None else [matched]:
            if route is matched or route.matches(scope)[0] is Match.FULL:
                return str(getattr(route, "path", "unmatched"))
        return "unmatched"

    def _begin(self, scope: Scope) -> Visit:
        settings = self._settings
        now = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        return Visit(
            request_id=given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}",
            method=scope["method"],
            path=scope["path"],
            client=scope["client"][0] if scope.get("client") else "",
            started=now,
            deadline=None if settings.request_seconds is None else now + settings.request_seconds,
            max_prompt_tokens=settings.max_prompt_tokens,
            receive_seconds=settings.receive_seconds,
            keep_prompts=settings.log_prompts,
        )


def create_app(
    models: Models,
    *,
    settings: ApiSettings,
    keys: Keyring | None = None,
    metrics: Metrics | None = None,
    log: RequestLog | None = None,
) -> FastAPI:
    """The caller owns the schedulers: it closes them once the server has stopped, and then the log.

    keys: in place of settings.api_keys. metrics: whose observers the schedulers were given. No log: none is
    kept. `app.state.readiness.draining` is set by who stops the server.
    """
    if keys is None:
        keys = Keyring(Key(f"key-{digest[:8]}", digest) for digest in sorted(settings.api_keys))
    if metrics is None:
        metrics = Metrics()
    app = _App(settings, keys, metrics, log)
    app.state.readiness = Readiness()
    app.state.metrics = metrics
    errors.install(app)
    app.add_exception_handler(ClientGone, _on_gone)

    @app.post(
        "/v1/completions",
        response_class=Response,
        responses={**openapi.answer("text_completion", "text_completion"), **_FAILURES},
        openapi_extra={**openapi.request_body(COMPLETION_FIELDS), "parameters": [_INTERACTIVE_HEADER]},
    )
    async def completions(request: Request) -> Response:
        """Text after a prompt, or between a prompt and a suffix."""
        body = await read_json(request, settings.max_body_bytes)
        served = await models.get(body.get("model"))
        plan = await unless_gone(request.receive, _plan(request, served, settings, body))
        return await answer(request, served, plan)

    @app.post(
        "/v1/chat/completions",
        response_class=Response,
        responses={**openapi.answer("chat.completion", "chat.completion.chunk"), **_FAILURES},
        openapi_extra=openapi.request_body(CHAT_FIELDS),
    )
    async def chat(request: Request) -> Response:
        """The assistant's next message."""
        body = await read_json(request, settings.max_body_bytes)
        served = await models.get(body.get("model"))
        plan = await unless_gone(request.receive, plan_chat(served, settings, body))
        return await answer(request, served, plan)

    # Without a route of its own /models would be led to /models/, which is no place to read.
    @app.get("/models", responses=openapi.errors(401))
    @app.get("/v1/models", responses=openapi.errors(401))
    async def model_list() -> Record:
        """The served models, with context lengths (`max_model_len`, tokens) and conversion cards."""
        return listing.list_models(models)

    @app.get("/v1/models/{name:path}", responses=openapi.errors(401, 404))
    async def model(name: str) -> Record:
        """One model, by its name or an alias."""
        return listing.find_model(models, name)

    add_probes(app, models, metrics, app.state.readiness)
    add_dialects(app, models, settings)
    return app


async def _on_gone(_: Request, error: Exception) -> Response:
    """Nobody reads it; the status is what proxies log for a client that went away."""
    assert isinstance(error, ClientGone)
    return Response(status_code=499)


async def _plan(request: Request, served: Served, settings: ApiSettings, body: dict[str, object]) -> Plan:
    """/v1/completions takes OpenAI's request and Tabby's."""
    if body.get("segments") is not None:
        return await tabby.plan_segments(request, served, settings, body)
    return await plan_completion(request, served, settings, body, dialect="openai")


__all__ = ["ApiSettings", "Models", "Served", "create_app"]
