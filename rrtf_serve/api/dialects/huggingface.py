"""Hugging Face's inference API, as llm-ls asks it: POST /models/{id}.

The body is that of TGI's /generate, the answer a list of one. The id is a served name or an alias.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.requests import Request

from rrtf_serve.api.answer import Plan
from rrtf_serve.api.dialects.endpoint import Body, add_endpoint
from rrtf_serve.api.dialects.tgi import plan_generate
from rrtf_serve.api.dialects.tgi_fields import FIELDS
from rrtf_serve.api.dialects.tgi_shape import ERROR, error_body
from rrtf_serve.api.errors import SHAPES
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings, Served


def add(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    SHAPES["/models/"] = error_body

    async def find(request: Request, _: Body) -> Served:
        return await models.get(request.path_params["name"])

    add_endpoint(
        app,
        "/models/{name:path}",
        find,
        _plan,
        settings=settings,
        table=FIELDS,
        summary="Text after a text, in a list",
        errors=ERROR,
    )


async def _plan(request: Request, served: Served, settings: ApiSettings, body: Body) -> Plan:
    return await plan_generate(request, served, settings, body, listed=True)
