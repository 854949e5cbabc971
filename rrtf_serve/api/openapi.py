"""What /openapi.json says of the endpoints: bodies from the field tables, errors as errors.py writes them."""

from __future__ import annotations

from typing import Any

from rrtf_serve.api import messages
from rrtf_serve.api.fields import Field, schema
from rrtf_serve.api.kinds import Schema

_NULLABLE_TEXT = {"anyOf": [{"type": "string"}, {"type": "null"}]}

ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _NULLABLE_TEXT,
                "code": _NULLABLE_TEXT,
            },
            "required": ["message", "type", "param", "code"],
        },
        "detail": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "loc": {"type": "string"},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
                "required": ["loc", "msg", "type"],
            },
        },
    },
    "required": ["error", "detail"],
}

DESCRIPTIONS = {
    400: "The request can't be taken; `error.param` names the field",
    401: "A key is needed, and none or a wrong one was sent",
    403: "The Host or Origin header is not one that this server answers to",
    404: "No such model",
    408: "The body did not arrive in time",
    413: "The body is too large",
    415: "The body is not declared as application/json",
    429: "The queue is full or a limit is reached; Retry-After says when to try again",
    500: "The server failed; its log holds the cause under the request id",
    501: "This server, or this model, does not do that",
    503: "The model is not loaded yet, or the server is shutting down",
    504: "The answer was not ready within the time limit",
}


def errors(*statuses: int, schema: Schema = ERROR) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": schema}}
    return {status: {"description": DESCRIPTIONS[status], "content": content} for status in statuses}


def request_body(table: tuple[Field, ...]) -> dict[str, Any]:
    """For FastAPI's openapi_extra."""
    described = schema(table)
    if "messages" in described["properties"]:
        described["properties"]["messages"] = messages.schema()
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": described}}}}


def answer(whole: str, chunk: str) -> dict[int | str, dict[str, Any]]:
    """The 200 of an endpoint that can stream."""

    def object_named(name: str) -> Schema:
        return {
            "type": "object",
            "properties": {
                "id": {"type": "string"},
                "object": {"type": "string", "enum": [name]},
                "created": {"type": "integer"},
                "model": {"type": "string"},
                "choices": {"type": "array", "items": {"type": "object"}},
            },
            "required": ["id", "object", "created", "model", "choices"],
        }

    content = {
        "application/json": {"schema": object_named(whole)},
        "text/event-stream": {
            "schema": {"type": "string", "description": f"With stream: events, each a {chunk}, then [DONE]."}
        },
    }
    headers = {
        "x-rrtf-dropped": {
            "description": "Fields of the request that had no effect.",
            "schema": {"type": "string"},
        }
    }
    return {200: {"description": "The answer", "content": content, "headers": headers}}
