"""The HTTP API: OpenAI's completions, chat and models over the served models, and the dialects.

    app = create_app(Models([Served(...)]), settings=ApiSettings(api_keys=frozenset({digest})))

Bodies are checked by api/fields, never by FastAPI, so that every error has OpenAI's shape.
"""

from __future__ import annotations

from fastapi import FastAPI, Request
from starlette.responses import Response

from rrtf_serve import __version__
from rrtf_serve.api import errors, listing, openapi
from rrtf_serve.api.answer import Plan, answer
from rrtf_serve.api.body import read_json
from rrtf_serve.api.chat import plan_chat
from rrtf_serve.api.completions import plan_completion
from rrtf_serve.api.dialects import add_dialects, tabby
from rrtf_serve.api.fields import CHAT_FIELDS, COMPLETION_FIELDS
from rrtf_serve.api.gate import Gate
from rrtf_serve.api.infill import editor_of
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.shapes import Record
from rrtf_serve.api.sse import ClientGone, unless_gone

_FAILURES = openapi.errors(400, 401, 404, 413, 415, 429, 500, 503)
# Nobody reads it; the status is what proxies log for a client that went away.
_GONE = 499
# With "true" the request is an editor's: its prompt is cut to the latency budget, its answer trimmed.
INTERACTIVE = "x-rrtf-interactive"


def create_app(models: Models, *, settings: ApiSettings) -> FastAPI:
    """The caller owns the schedulers: it closes them once the server has stopped."""
    app = FastAPI(
        title="RRTF",
        version=__version__,
        description="OpenAI-compatible completions, fill in the middle and chat from a local code model.",
        docs_url=None,  # both pages load their scripts from elsewhere
        redoc_url=None,
    )
    errors.install(app)
    app.add_middleware(Gate, settings=settings)

    @app.post(
        "/v1/completions",
        response_class=Response,
        responses={**openapi.answer("text_completion", "text_completion"), **_FAILURES},
        openapi_extra=openapi.request_body(COMPLETION_FIELDS),
    )
    async def completions(request: Request) -> Response:
        """Text after a prompt, or between a prompt and a suffix."""
        try:
            body = await read_json(request, settings.max_body_bytes)
            served = await models.get(body.get("model"))
            plan = await unless_gone(request.receive, _plan(request, served, settings, body))
            return await answer(request, served, plan)
        except ClientGone:
            return Response(status_code=_GONE)

    @app.post(
        "/v1/chat/completions",
        response_class=Response,
        responses={**openapi.answer("chat.completion", "chat.completion.chunk"), **_FAILURES},
        openapi_extra=openapi.request_body(CHAT_FIELDS),
    )
    async def chat(request: Request) -> Response:
        """The assistant's next message."""
        try:
            body = await read_json(request, settings.max_body_bytes)
            served = await models.get(body.get("model"))
            plan = await unless_gone(request.receive, plan_chat(served, settings, body))
            return await answer(request, served, plan)
        except ClientGone:
            return Response(status_code=_GONE)

    @app.get("/v1/models", responses=openapi.errors(401))
    async def model_list() -> Record:
        """The served models, with context lengths (`max_model_len`, tokens) and conversion cards."""
        return listing.list_models(models)

    @app.get("/v1/models/{name:path}", responses=openapi.errors(401, 404))
    async def model(name: str) -> Record:
        """One model, by its name or an alias."""
        return await listing.find_model(models, name)

    @app.get("/health")
    async def health() -> Record:
        """Answers as long as requests are accepted."""
        return {"status": "ok", "model": models.all[0].name}

    @app.get("/version")
    async def version() -> Record:
        return {"version": __version__}

    add_dialects(app, models, settings)
    return app


async def _plan(request: Request, served: Served, settings: ApiSettings, body: dict[str, object]) -> Plan:
    """/v1/completions takes OpenAI's request, an editor's where a header says so, and Tabby's."""
    if body.get("segments") is not None:
        return await tabby.plan_segments(request, served, settings, body)
    interactive = request.headers.get(INTERACTIVE, "").strip().lower() in ("true", "1")
    editor = (lambda infill: editor_of(request, "openai", infill)) if interactive else None
    return await plan_completion(served, settings, body, editor=editor)


__all__ = ["ApiSettings", "Models", "Served", "create_app"]
