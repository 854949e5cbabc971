"""A route that takes a JSON object, makes a plan of it and answers with that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from rrtf_serve.api import openapi
from rrtf_serve.api.answer import Plan, answer
from rrtf_serve.api.body import read_json
from rrtf_serve.api.fields import Field
from rrtf_serve.api.kinds import Schema
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings, Served
from rrtf_serve.api.sse import unless_gone

Body = dict[str, object]
Find = Callable[[Request, Body], Awaitable[Served]]
Planner = Callable[[Request, Served, ApiSettings, Body], Awaitable[Plan]]


def by_model(models: Models) -> Find:
    """The model that the body names."""

    async def find(_: Request, body: Body) -> Served:
        return await models.get(body.get("model"))

    return find


def add_endpoint(
    app: FastAPI,
    path: str,
    find: Find,
    planner: Planner,
    *,
    settings: ApiSettings,
    table: tuple[Field, ...],
    summary: str,
    errors: Schema = openapi.ERROR,
) -> None:
    """POST `path`: `find` says which model is asked, `planner` what of it."""

    async def endpoint(request: Request) -> Response:
        body = await read_json(request, settings.max_body_bytes)
        served = await find(request, body)
        plan = await unless_gone(request.receive, _run(planner(request, served, settings, body)))
        return await answer(request, served, plan)

    app.add_api_route(
        path,
        endpoint,
        methods=["POST"],
        response_class=Response,
        responses={**ANSWER, **openapi.errors(400, 401, 404, 408, 413, 415, 429, 500, 503, schema=errors)},
        openapi_extra=openapi.request_body(table),
        summary=summary,
    )


async def _run(plan: Awaitable[Plan]) -> Plan:
    return await plan


ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer",
        "content": {
            "application/json": {"schema": {"anyOf": [{"type": "object"}, {"type": "array"}]}},
            "text/event-stream": {"schema": {"type": "string", "description": "With stream: events."}},
        },
    }
}
