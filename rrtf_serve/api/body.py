"""A request's JSON body, read within a limit."""

from __future__ import annotations

import asyncio
import json
from typing import NoReturn

from starlette.requests import ClientDisconnect, Request

from rrtf_serve.api.errors import ApiError, json_type
from rrtf_serve.api.sse import ClientGone
from rrtf_serve.api.visit import current

PROGRESS_BYTES = 1024  # of a body: an upload of which so much comes in `receive_seconds` goes on

# What programs send that name no type: nothing, or what their library or curl puts there.
_UNNAMED = ("", "text/plain", "application/x-www-form-urlencoded")


async def read_json(request: Request, max_bytes: int) -> dict[str, object]:
    """The body as an object. Raises ApiError 400, 408, 413 or 415, ClientGone when it never arrives whole."""
    kind = _content_type(request)
    # A browser sends any other type, or none, to any address without asking first: a page anywhere on the web
    # could make a server on the user's machine work for it.
    if kind != "application/json":
        raise ApiError(
            415,
            f"Content-Type must be application/json, but is {kind or 'absent'}.",
            "unsupported_media_type",
        )
    return await _read(request, max_bytes)


async def read_json_of_program(request: Request, max_bytes: int) -> dict[str, object]:
    """As read_json, for dialects whose clients often name no type: it may be missing, though not in a request
    that a web page made. Browsers mark those with Origin or Sec-Fetch-Site, which no page can change:
    https://fetch.spec.whatwg.org/#origin-header"""
    by_page = "origin" in request.headers or "sec-fetch-site" in request.headers
    if not by_page and _content_type(request) in _UNNAMED:
        return await _read(request, max_bytes)
    return await read_json(request, max_bytes)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";", 1)[0].strip().lower()


async def _read(request: Request, max_bytes: int) -> dict[str, object]:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise _too_large(max_bytes)
    body = bytearray()
    patience = current().receive_seconds
    counted = 0
    try:
        async with asyncio.timeout(patience) as limit:
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                if patience is not None and len(body) >= counted + PROGRESS_BYTES:
                    counted = len(body)
                    limit.reschedule(asyncio.get_running_loop().time() + patience)
    except ClientDisconnect as error:
        raise ClientGone from error
    except TimeoutError as error:
        raise _too_slow(patience) from error
    return parse_object(bytes(body))


def parse_object(body: bytes) -> dict[str, object]:
    """Raises ApiError 400 saying where the JSON ends being JSON."""
    try:
        record = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _invalid(f"it is not UTF-8 (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} (line {error.lineno}, column {error.colno})") from error
    except RecursionError as error:
        raise _invalid("it is nested too deeply") from error
    except ValueError as error:  # Python's limit on the digits of an integer
        raise _invalid("it holds a number that is too long") from error
    if not isinstance(record, dict):
        raise ApiError(400, f"The body must be a JSON object, but it is {json_type(record)}.", "invalid_type")
    return record


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"it holds {name}, which is not JSON")


def _invalid(problem: str) -> ApiError:
    return ApiError(400, f"The body can't be read as JSON: {problem}.", "invalid_json")


def _too_slow(seconds: float | None) -> ApiError:
    """The rest of the body may still come: the connection can't be used again."""
    return ApiError(
        408,
        f"The body did not arrive: less than {PROGRESS_BYTES} bytes of it came in {seconds:g} s.",
        "request_timeout",
        type="timeout_error",
        headers={"connection": "close"},
    )


def _too_large(max_bytes: int) -> ApiError:
    return ApiError(413, f"The body is too large: at most {max_bytes} bytes are taken.", "request_too_large")
