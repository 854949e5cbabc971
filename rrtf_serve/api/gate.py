"""What every request passes first: a request id, and the check of its API key.

Both are left in the scope: `rrtf.request_id`, and `rrtf.owner`, the key's digest (None where no key is asked
for).
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rrtf_serve.api.errors import ApiError, error_response
from rrtf_serve.api.settings import ApiSettings

# A client's own id is kept when it can stand in a header and a log line.
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class Gate:
    """Plain ASGI: starlette's BaseHTTPMiddleware hides disconnects from streaming answers."""

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope["rrtf.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            scope["rrtf.owner"] = self._owner(scope["path"], headers)
        except ApiError as problem:
            await error_response(problem, scope["path"])(scope, receive, send_with_id)
        else:
            await self._app(scope, receive, send_with_id)

    def _owner(self, path: str, headers: Headers) -> str | None:
        """Raises ApiError 401."""
        settings = self._settings
        if not settings.api_keys or not any(_below(path, prefix) for prefix in settings.protected):
            return None
        keys = _keys(headers)
        owners = [owner for key in keys if (owner := settings.owner(key)) is not None]
        if owners:
            return owners[0]
        how = "send it as 'Authorization: Bearer KEY'"
        problem = f"Incorrect API key provided; {how}." if keys else f"You didn't provide an API key; {how}."
        challenge = {"www-authenticate": "Bearer"}
        raise ApiError(401, problem, "invalid_api_key", headers=challenge)


def _below(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}/")


def _keys(headers: Headers) -> list[bytes]:
    """The key in any of the places where OpenAI's, Anthropic's and Azure's clients put it."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    found = [token.strip()] if scheme.lower() == "bearer" else []
    found += [headers.get("x-api-key", ""), headers.get("api-key", "")]
    return [key.encode("latin-1") for key in found if key]  # the bytes that were sent
