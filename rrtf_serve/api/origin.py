"""Which names and which web pages may reach the server: the Host and Origin headers, and CORS.

A page from anywhere can make its visitor's browser send requests to this machine or this network, under a
name of the page's own that it points here (DNS rebinding), or across origins. Browsers say so in Host and
Origin, and nothing that runs in a page can change these; other programs send what they like, and no Origin.
https://fetch.spec.whatwg.org/#origin-header
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from rrtf_serve.api.errors import ApiError, error_response, note

ANY = "*"
_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[^\[\]:/@\s]+)(:(?P<port>[0-9]{1,5}))?")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>[^/\s]+)")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_EXPOSED = (
    "x-request-id", "x-rrtf-dropped", "retry-after", "retry-after-ms", "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens", "x-ratelimit-remaining-requests", "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Origins:
    """The settings. hosts: names that Host may hold, besides this machine's own; "*": any. origins: web pages
    that may call the API: `https://name[:port]`, `null`, `scheme://*` for the schemes of editors and browser
    extensions, "*": any."""

    hosts: tuple[str, ...] = (ANY,)
    literals: bool = True  # any address in numbers: a page elsewhere can't take one as its name
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for host in self.hosts:
            found = _HOST.fullmatch(host)
            if host != ANY and _address(host) is None and (found is None or found["port"]):
                raise ValueError(f"--allowed-host {host}: give a name as in code.example.org, without port")
        for origin in self.origins:
            if origin not in (ANY, "null") and not _well_formed(origin):
                raise ValueError(
                    f"--cors-origin {origin}: give https://name or http://name:port without a path, "
                    "scheme://* (not for http), null, or *"
                )

    def serves(self, host: str) -> bool:
        """Whether a request may have this Host header."""
        found = _HOST.fullmatch(host)
        if found is None:
            return False
        name = found["name"].lower().rstrip(".").strip("[]")
        if _is_loopback(name) or any(each == ANY or name == each.lower().strip("[]") for each in self.hosts):
            return True
        return self.literals and _address(name) is not None

    def allows(self, origin: str) -> bool:
        """Whether a page of another origin may call."""
        scheme = origin.partition("://")[0]
        return any(each in (ANY, origin, f"{scheme}://*") for each in self.origins)


class OriginCheck:
    """Plain ASGI, as Visits, within which it stands."""

    def __init__(self, app: ASGIApp, *, origins: Origins) -> None:
        self._origins = origins
        self._app = _with_cors(app, origins.origins) if origins.origins else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        try:
            self._check(Headers(scope=scope))
        except ApiError as problem:
            note(scope, problem)
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await error_response(problem, scope["path"])(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        """Raises ApiError 403."""
        hosts = headers.getlist("host")
        host = hosts[0] if hosts else ""
        # Browsers always send one; HTTP/1.0 probes send none.
        if len(hosts) > 1 or (hosts and not self._origins.serves(host)):
            raise ApiError(
                403,
                f"This server does not answer to the name {host[:200]!r}. If it should, start it with "
                "--allowed-host NAME.",
                "host_not_allowed",
            )
        for origin in headers.getlist("origin"):
            if not (_same(origin, host) or self._origins.allows(origin)):
                raise ApiError(
                    403,
                    f"Pages of {origin[:200]!r} may not call this server. If they should, start it with "
                    "--cors-origin ORIGIN.",
                    "origin_not_allowed",
                )


def is_loopback(address: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    found = _address(address)
    return found is not None and found.is_loopback


def _with_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    schemes = [re.escape(each.removesuffix("*")) for each in origins if each.endswith("://*")]
    return CORSMiddleware(
        app,
        allow_origins=list(origins),
        allow_origin_regex="|".join(f"{scheme}.*" for scheme in schemes) or None,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=(ANY,),
        expose_headers=_EXPOSED,
    )


def _well_formed(origin: str) -> bool:
    found = _ORIGIN.fullmatch(origin)
    if found is None:
        return False
    return (
        found["scheme"] not in _DEFAULT_PORTS
        if found["host"] == ANY
        else bool(_HOST.fullmatch(found["host"]))
    )


def _same(origin: str, host: str) -> bool:
    """Whether the page came from here. The scheme is left out: a proxy may speak TLS for us."""
    found = _ORIGIN.fullmatch(origin)
    if found is None or found["scheme"] not in _DEFAULT_PORTS:
        return False
    port = _DEFAULT_PORTS[found["scheme"]]
    theirs, ours = _HOST.fullmatch(found["host"]), _HOST.fullmatch(host)
    if theirs is None or ours is None:
        return False
    return (theirs["name"].lower(), theirs["port"] or port) == (ours["name"].lower(), ours["port"] or port)


def _is_loopback(name: str) -> bool:
    return name == "localhost" or name.endswith(".localhost") or is_loopback(name)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
