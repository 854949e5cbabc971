"""Errors as OpenAI's clients read them.

Body: {"error": {"message", "type", "param", "code"}, "detail": [{"loc", "msg", "type"}]}. `error` is what
the OpenAI SDKs parse (https://platform.openai.com/docs/guides/error-codes); `detail` is the only shape that
llm-ls parses for an OpenAI back-end: as FastAPI's own errors, but `loc` is one string, as its type asks for.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from rrtf_serve.engine.protocol import EngineError

log = logging.getLogger(__name__)

FieldPath = tuple[str | int, ...]  # where in the body: ("messages", 0, "content")

INVALID = "invalid_request_error"


@dataclass
class ApiError(Exception):
    """One answer that isn't a success. `path` locates the field; `extra` is added to the error object."""

    status: int
    message: str
    code: str
    type: str = INVALID
    path: FieldPath = ()
    extra: Mapping[str, int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, object]:
        error = {
            "message": self.message,
            "type": self.type,
            "param": param(self.path) or None,
            "code": self.code,
            **self.extra,
        }
        loc = ".".join(filter(None, ("body", param(self.path))))
        detail = {"loc": loc, "msg": self.message, "type": self.code}
        return {"error": error, "detail": [detail]}


# What stands in the body of errors under a path that other servers' clients use; elsewhere OpenAI's envelope.
SHAPES: dict[str, Callable[[ApiError], dict[str, object]]] = {}


def param(path: FieldPath) -> str:
    """("messages", 0, "content") -> "messages[0].content"."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def invalid_type(path: FieldPath, expected: str, value: object) -> ApiError:
    return ApiError(
        400,
        f"Invalid type for '{param(path)}': expected {expected}, but got {json_type(value)} instead.",
        "invalid_type",
        path=path,
    )


def invalid_value(path: FieldPath, problem: str) -> ApiError:
    return ApiError(400, f"Invalid value for '{param(path)}': {problem}", "invalid_value", path=path)


def missing(path: FieldPath, what: str) -> ApiError:
    return ApiError(
        400, f"Missing required parameter: '{param(path)}'. {what}", "missing_required_parameter", path=path
    )


def unsupported(path: FieldPath, problem: str) -> ApiError:
    return ApiError(
        400, f"Unsupported parameter: '{param(path)}'. {problem}", "unsupported_parameter", path=path
    )


def context_length_exceeded(prompt: int, completion: int, context: int, path: FieldPath) -> ApiError:
    """All three in tokens. llama.vscode reads n_prompt_tokens and n_ctx."""
    place = "messages" if path[:1] == ("messages",) else "prompt"
    message = (
        f"This model's maximum context length is {context} tokens. However, you requested "
        f"{prompt + completion} tokens ({prompt} in the {place}, {completion} in the completion). "
        f"Please reduce the length of the {place} or completion."
    )
    numbers = {"n_prompt_tokens": prompt, "n_ctx": context}
    return ApiError(400, message, "context_length_exceeded", path=path, extra=numbers)


def queue_full(retry_after_s: float) -> ApiError:
    seconds = max(1, math.ceil(retry_after_s))
    return ApiError(
        429,
        f"The server is busy: its queue is full. Try again in about {seconds} s.",
        "rate_limit_exceeded",
        type="requests",
        headers={
            "retry-after": str(seconds),
            "retry-after-ms": str(max(1, math.ceil(retry_after_s * 1000))),
        },
    )


def deadline_exceeded() -> ApiError:
    """504 and not 408: it was not the client who was slow. SDKs would try both again at once, and in vain."""
    return ApiError(
        504,
        "The answer was not ready within this server's time limit. Ask for fewer tokens, or try when it is "
        "less busy.",
        "deadline_exceeded",
        type="timeout_error",
        headers={"x-should-retry": "false"},
    )


def replaced() -> ApiError:
    """Its editor asked for something newer; seldom is anybody left who reads this."""
    return ApiError(
        409,
        "A newer request of the same editor took this one's place.",
        "replaced",
        headers={"x-should-retry": "false"},
    )


def shutting_down() -> ApiError:
    return ApiError(
        503,
        "The server is shutting down. Try again shortly.",
        "server_shutting_down",
        type="service_unavailable_error",
        headers={"retry-after": "5"},
    )


def internal(request_id: str) -> ApiError:
    return ApiError(
        500,
        f"The server failed on this request. Its log holds the cause under request id {request_id}.",
        "internal_error",
        type="server_error",
    )


def json_type(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "an integer", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "an object")


def error_response(error: ApiError, path: str) -> Response:
    """In the shape that clients of this path read; `path` is the URL's."""
    shape = next((shape for prefix, shape in SHAPES.items() if path.startswith(prefix)), ApiError.body)
    return Response(
        json.dumps(shape(error)),
        status_code=error.status,
        headers=dict(error.headers),
        media_type="application/json",
    )


def note(scope: Scope, error: ApiError) -> None:
    """Leave the code where the log and the figures find it."""
    scope["rrtf.error"] = error.code


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    note(request.scope, error)
    return error_response(error, request.url.path)


async def _on_http_error(request: Request, error: Exception) -> Response:
    """What the router itself refuses: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    known = {
        404: ("unknown_url", f"Unknown request URL: {where}. Check the URL; the API lies under /v1."),
        405: ("method_not_allowed", f"Not allowed: {where}. See the Allow header for the methods."),
    }
    code, message = known.get(error.status_code, ("http_error", str(error.detail)))
    kind = INVALID if error.status_code < 500 else "server_error"
    problem = ApiError(error.status_code, message, code, type=kind, headers=error.headers or {})
    note(request.scope, problem)
    return error_response(problem, request.url.path)


async def _on_engine_error(request: Request, error: Exception) -> Response:
    """Not as a fault of ours, below: the connection is kept, and other requests go on over it."""
    assert isinstance(error, EngineError)
    request_id = request.scope.get("rrtf.request_id", "unknown")
    log.error("request %s failed", request_id, exc_info=error)
    problem = internal(request_id)
    note(request.scope, problem)
    return error_response(problem, request.url.path)


async def _on_failure(request: Request, _: Exception) -> Response:
    """A fault of ours. Starlette raises it again after this answer, so that uvicorn logs the traceback and
    closes the connection: the client hears of it, else its next request would be lost there."""
    problem = replace(
        internal(request.scope.get("rrtf.request_id", "unknown")), headers={"connection": "close"}
    )
    note(request.scope, problem)
    return error_response(problem, request.url.path)


def install(app: FastAPI) -> None:
    app.add_exception_handler(ApiError, _on_api_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(EngineError, _on_engine_error)
    app.add_exception_handler(Exception, _on_failure)
