"""What stands before the page: sign-in with an API key, a list of open routes, a content policy.

Pure ASGI and outside Gradio, so that nothing under the page's path answers without a session: not its assets,
not its queue, not a route that a later Gradio adds.
"""

from __future__ import annotations

import asyncio
import hashlib
import html
import re
import secrets
import time
from collections.abc import Callable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SESSION_SECONDS = 12 * 3600
MAX_SESSIONS = 1000
MAX_FORM_BYTES = 4096
KEY_HEADER = "x-rrtf-page-key"  # from here to the page's handlers; never from outside

# All that the page asks for, relative to its path. Gradio serves much more (uploads, files, a proxy, an API
# description); what the page does not need is closed.
OPEN_ROUTES = re.compile(
    r"/?|/(config|theme\.css|favicon\.ico|manifest\.json)|/(assets|static)/.+"
    r"|/gradio_api/(queue/(join|data)|cancel|reset|run/predict|heartbeat/\w+|startup-events|app_id|theme\.css|login_check)/?"
)

# Everything comes from the server itself. Gradio's start-up needs inline scripts and styles; blob: is for
# downloads of the editor's text. An image link in a model's answer reaches nobody.
POLICY = "; ".join((
    "default-src 'self'",
    "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",
    "style-src 'self' 'unsafe-inline'",
    "img-src 'self' data: blob:",
    "font-src 'self' data:",
    "connect-src 'self' blob: data:",
    "worker-src 'self' blob:",
    "object-src 'none'",
    "frame-src 'none'",
    "frame-ancestors 'self'",
    "base-uri 'self'",
    "form-action 'self'",
))  # fmt: skip

ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" aria-hidden="true">'
    '<rect width="32" height="32" rx="7" fill="#0f766e"/><path d="M12 9l-6 7 6 7M20 9l6 7-6 7" fill="none" '
    'stroke="#fff" stroke-width="3.2" stroke-linecap="round" stroke-linejoin="round"/></svg>'
)


class Gate:
    """ASGI middleware for `path` and what lies under it; every other request passes untouched.

    Without `exchange` there is no sign-in. It is asked at the sign-in alone, so that no visitor's key needs
    to be kept, and none is. What it gave for the key goes on to the page with each request of the session, in
    the header KEY_HEADER. `admits` is asked for that at each request: once it says no, the session has ended.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        path: str,
        exchange: Callable[[str], str | None] | None,
        realm: str,
        admits: Callable[[str], bool] | None = None,
    ) -> None:
        self._app = app
        self._path = path
        self._exchange = exchange
        self._admits = admits
        # Cookies do not know ports: two servers on one host must not sign each other out.
        self._cookie = f"rrtf-session-{hashlib.sha256(realm.encode()).hexdigest()[:8]}"
        # token -> monotonic time of expiry, and the key with which the page calls the API
        self._sessions: dict[str, tuple[float, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        path: str = scope["path"]
        # Browsers ask the root for these whatever the page says.
        if path in ("/favicon.ico", f"{self._path}/favicon.ico"):
            return await Response(ICON, media_type="image/svg+xml")(scope, receive, send)
        if path == "/manifest.json":
            manifest = {"name": "RRTF code assistant", "start_url": f"{self._path}/", "display": "browser"}
            return await JSONResponse(manifest)(scope, receive, send)
        if path != self._path and not path.startswith(f"{self._path}/"):
            return await self._app(scope, receive, send)
        return await self._guarded(path[len(self._path) :], scope, receive, send)

    async def _guarded(self, route: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # Gradio speaks no WebSocket
            return await send({"type": "websocket.close", "code": 1008})
        send = _with_policy(send)
        response: Response | None = None
        key = self._key_of(scope)
        if route == "/sign-in" and self._exchange is not None:
            response = await self._sign_in(self._exchange, scope, receive)
        elif route == "/sign-out" and self._exchange is not None:
            response = self._sign_out(scope)
        elif key is None:
            if route in ("", "/") and scope["method"] in ("GET", "HEAD"):
                response = RedirectResponse(f"{self._prefix(scope)}/sign-in", 303)
            else:
                response = _refusal(401, "Sign in with an API key first.", "invalid_api_key")
        elif not OPEN_ROUTES.fullmatch(route):
            response = _refusal(404, f"There is no {self._path}{route}.", "not_found")
        if response is not None:
            return await response(scope, receive, send)
        return await self._app({**scope, "headers": _with_key(scope["headers"], key)}, receive, send)

    def _prefix(self, scope: Scope) -> str:
        return str(scope.get("root_path", "")) + self._path

    def _token(self, scope: Scope) -> str:
        try:
            morsel = SimpleCookie(Headers(scope=scope).get("cookie", "")).get(self._cookie)
        except CookieError:
            return ""
        return morsel.value if morsel else ""

    def _key_of(self, scope: Scope) -> str | None:
        """With which key the page calls the API for this visitor: "" where it asks for none, None for who is
        not signed in."""
        if self._exchange is None:
            return ""
        token = self._token(scope)
        expires, key = self._sessions.get(token, (0.0, ""))
        if time.monotonic() >= expires:
            return None
        if self._admits is not None and not self._admits(key):
            del self._sessions[token]
            return None
        return key

    async def _sign_in(
        self, exchange: Callable[[str], str | None], scope: Scope, receive: Receive
    ) -> Response:
        if scope["method"] in ("GET", "HEAD"):
            if self._key_of(scope) is not None:
                return RedirectResponse(f"{self._prefix(scope)}/", 303)
            return _sign_in_page(f"{self._prefix(scope)}/sign-in", "", 200)
        if scope["method"] != "POST":
            return _refusal(405, "Sign in with POST.", "method_not_allowed")
        given = await _form_key(receive)
        key = None if given is None else exchange(given)
        if key is None:
            await asyncio.sleep(0.5)  # guessing is slow
            return _sign_in_page(f"{self._prefix(scope)}/sign-in", "This is not a key of this server.", 401)
        token = secrets.token_urlsafe(32)
        while len(self._sessions) >= MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        self._sessions[token] = time.monotonic() + SESSION_SECONDS, key
        response = RedirectResponse(f"{self._prefix(scope)}/", 303)
        response.set_cookie(
            self._cookie,
            token,
            max_age=SESSION_SECONDS,
            path=self._prefix(scope),
            secure=scope["scheme"] == "https",
            httponly=True,
            samesite="lax",
        )
        return response

    def _sign_out(self, scope: Scope) -> Response:
        self._sessions.pop(self._token(scope), None)
        response = RedirectResponse(f"{self._prefix(scope)}/sign-in", 303)
        response.delete_cookie(self._cookie, path=self._prefix(scope))
        return response


def _with_key(headers: list[tuple[bytes, bytes]], key: str | None) -> list[tuple[bytes, bytes]]:
    """The request's headers with the page's key in KEY_HEADER, whatever a client put there."""
    name = KEY_HEADER.encode()
    own = [(name, key.encode())] if key else []
    return [header for header in headers if header[0].lower() != name] + own


def _with_policy(send: Send) -> Send:
    async def sender(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["content-security-policy"] = POLICY
            headers["referrer-policy"] = "same-origin"
            headers["x-content-type-options"] = "nosniff"
        await send(message)

    return sender


def _refusal(status: int, message: str, code: str) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status)


async def _form_key(receive: Receive) -> str | None:
    """The field `key` of a urlencoded form, or None where there is no such form."""
    body = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > MAX_FORM_BYTES:
            return None
        if not message.get("more_body", False):
            break
    try:
        values = parse_qs(body.decode("ascii")).get("key", [])
    except ValueError:
        return None
    return values[0].strip() if values else None


def _sign_in_page(action: str, problem: str, status: int) -> Response:
    warning = f'<p class="problem" role="alert">{html.escape(problem)}</p>' if problem else ""
    return HTMLResponse(
        SIGN_IN.format(action=html.escape(action, quote=True), problem=warning, icon=ICON),
        status,
        {"cache-control": "no-store"},
    )


SIGN_IN = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in · RRTF code assistant</title>
<style>
:root {{ color-scheme: light dark;
  --ground: #f8fafc; --card: #fff; --text: #0f172a; --dim: #475569; --line: #cbd5e1; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #0b1120; --card: #111827; --text: #f1f5f9; --dim: #a3b1c6; --line: #334155; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; padding: 1rem;
  background: var(--ground); color: var(--text); font: 16px/1.5 system-ui, sans-serif; }}
main {{ width: 100%; max-width: 24rem; padding: 2rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 12px; }}
svg {{ width: 40px; height: 40px; display: block; margin-bottom: 1rem; }}
h1 {{ font-size: 1.25rem; margin: 0 0 .25rem; }}
p {{ margin: 0 0 1.25rem; color: var(--dim); }}
label {{ display: block; font-weight: 600; margin-bottom: .375rem; }}
input, button {{ width: 100%; font: inherit; padding: .6rem .75rem; border-radius: 8px; }}
input {{ border: 1px solid var(--line); background: var(--ground); color: var(--text); }}
button {{ margin-top: 1rem; border: 0; background: #0f766e; color: #fff; font-weight: 600; cursor: pointer; }}
button:hover {{ background: #115e59; }}
:focus-visible {{ outline: 2px solid #14b8a6; outline-offset: 2px; }}
.problem {{ margin: .75rem 0 0; color: #dc2626; }}
@media (prefers-color-scheme: dark) {{ .problem {{ color: #fca5a5; }} }}
</style>
</head>
<body>
<main>
{icon}
<h1>RRTF code assistant</h1>
<p>Sign in with an API key of this server.</p>
<form method="post" action="{action}">
<label for="key">API key</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
{problem}
<button>Sign in</button>
</form>
</main>
</body>
</html>
"""
