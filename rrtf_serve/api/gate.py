"""What a request passes before any endpoint: the check of its API key, and its client's limits.

The key's digest is left in the scope as `rrtf.owner` (None where no key is asked for).
"""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from rrtf_serve.api.errors import ApiError, error_response, note
from rrtf_serve.api.keys import Key, Keyring
from rrtf_serve.api.limits import Account, Accounts
from rrtf_serve.api.settings import ApiSettings
from rrtf_serve.api.visit import current


class Gate:
    """Plain ASGI, as Visits, within which it stands."""

    def __init__(self, app: ASGIApp, *, settings: ApiSettings, keys: Keyring) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys
        self._accounts = Accounts(settings.limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = current()
        try:
            key = self._key(scope)
            scope["rrtf.owner"] = visit.owner = key.digest if key is not None else None
            visit.key = key.name if key is not None else None
            visit.account = self._account(scope, key)
            if visit.account is not None:
                visit.account.enter()
        except ApiError as problem:
            note(scope, problem)
            await error_response(problem, scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if visit.account is not None:
                visit.account.give_back(visit.reserved - visit.prompt_tokens - visit.completion_tokens)
                visit.account.leave()

    def _key(self, scope: Scope) -> Key | None:
        """Raises ApiError 401."""
        if not self._keys.required or self._settings.is_open(scope["path"]):
            return None
        given = _given(Headers(scope=scope))
        for each in given:
            if (found := self._keys.find(each)) is not None:
                return found
        how = "send it as 'Authorization: Bearer KEY'"
        problem = f"Incorrect API key provided; {how}." if given else f"You didn't provide an API key; {how}."
        challenge = {"www-authenticate": "Bearer"}
        raise ApiError(401, problem, "invalid_api_key", headers=challenge)

    def _account(self, scope: Scope, key: Key | None) -> Account | None:
        """Whose limits count. Reading (the models, the figures) is free: nothing is computed for it."""
        if (
            not self._settings.limits.any
            or scope["method"] != "POST"
            or self._settings.is_open(scope["path"])
        ):
            return None
        # Without a key clients are told apart by address; the prefixes keep names and addresses apart.
        return self._accounts.of(f"key {key.name}" if key is not None else f"at {current().client}")


def _given(headers: Headers) -> list[bytes]:
    """The key in any of the places where OpenAI's, Anthropic's and Azure's clients put it."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    found = [token.strip(" \t")] if scheme.lower() == "bearer" else []
    found += [headers.get("x-api-key", ""), headers.get("api-key", "")]
    return [key.encode("latin-1") for key in found if key]  # the bytes that were sent
