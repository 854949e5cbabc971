"""POST /v1/engines/{engine}/completions: OpenAI's completions as Codex's first clients and FauxPilot's ask
them.

The body is that of /v1/completions, and an editor's request is told in the same way. Engines are named after
models that nobody has here (copilot-codex, codegen): a name that isn't served means the first model.

There is no /copilot_internal/v2/token: today's Copilot clients can't be pointed elsewhere, and a token that
everybody gets is worth nothing.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request

from rrtf_serve.api.answer import Plan
from rrtf_serve.api.completions import plan_completion
from rrtf_serve.api.dialects.endpoint import Body, add_endpoint
from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.fields import COMPLETION_FIELDS
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings, Served


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    async def find(request: Request, _: Body) -> Served:
        try:
            return await models.get(request.path_params["engine"])
        except ApiError as error:
            if error.status != 404:
                raise
            return await models.get(None)

    add_endpoint(
        app,
        "/v1/engines/{engine}/completions",
        find,
        _plan,
        settings=settings,
        table=COMPLETION_FIELDS,
        summary="Text after a prompt, or between a prompt and a suffix",
    )


async def _plan(request: Request, served: Served, settings: ApiSettings, body: Body) -> Plan:
    return await plan_completion(request, served, settings, body, dialect="codex")
