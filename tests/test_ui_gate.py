"""The page's gate, on the real mounted page: who gets in, and what is open at all."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from ui.gate import KEY_HEADER, MAX_SESSIONS, SESSION_SECONDS, Gate
from ui.page import mount

BASE = "http://127.0.0.1:9/v1"  # nobody listens there
KEYS = {"first-key": "inner-one", "second-key": "inner-two"}  # a visitor's, and the page's for them
GRADIO_API = [
    ("GET", "/ui/gradio_api/info"),
    ("POST", "/ui/gradio_api/queue/join"),
    ("GET", "/ui/gradio_api/queue/data?session_hash=x"),
    ("POST", "/ui/gradio_api/cancel"),
    ("POST", "/ui/gradio_api/upload"),
    ("POST", "/ui/gradio_api/run/predict"),
    ("POST", "/ui/gradio_api/call/predict"),
    ("GET", "/ui/gradio_api/heartbeat/x"),
    ("GET", "/ui/gradio_api/startup-events"),
    ("GET", "/ui/gradio_api/app_id"),
    ("GET", "/ui/gradio_api/file=/etc/hostname"),
    ("GET", "/ui/gradio_api/proxy=http://127.0.0.1/"),
    ("GET", "/ui/config"),
    ("GET", "/ui/theme.css"),
    ("GET", "/ui/static/img/logo.svg"),
    ("GET", "/ui/assets/x.js"),
    ("GET", "/ui/no-such-thing"),
    ("POST", "/ui/"),
    ("PUT", "/ui"),
    ("GET", "/ui//gradio_api/info"),
    ("GET", "/ui/../ui/config"),
    ("GET", "/ui/sign-in/../config"),
]


def mounted(exchange: Callable[[str], str | None] | None, path: str = "/ui") -> FastAPI:
    """An app with the page, mounted as the server does it: while an event loop runs."""

    async def make() -> FastAPI:
        return mount(FastAPI(), path=path, base_url=BASE, exchange=exchange)

    return asyncio.run(make())


@pytest.fixture(scope="module")
def keyed() -> FastAPI:
    """A page behind keys."""
    app = mounted(KEYS.get)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": []}

    return app


@pytest.fixture
def client(keyed: FastAPI) -> TestClient:
    return TestClient(keyed, follow_redirects=False)


def sign_in(client: TestClient, key: str = "first-key") -> None:
    reply = client.post("/ui/sign-in", data={"key": key})
    assert reply.status_code == 303
    assert reply.headers["location"] == "/ui/"


@pytest.mark.parametrize(("method", "path"), GRADIO_API)
def test_nothing_of_the_page_answers_a_stranger(client: TestClient, method: str, path: str) -> None:
    reply = client.request(method, path)
    assert reply.status_code == 401
    assert reply.json()["error"]["code"] == "invalid_api_key"


def test_a_stranger_is_sent_to_the_sign_in_and_from_there_in(client: TestClient) -> None:
    for path in ("/ui", "/ui/"):
        reply = client.get(path)
        assert (reply.status_code, reply.headers["location"]) == (303, "/ui/sign-in")
    page = client.get("/ui/sign-in")
    assert page.status_code == 200
    assert 'action="/ui/sign-in"' in page.text
    sign_in(client)
    page = client.get("/ui/")
    assert page.status_code == 200
    assert "gradio_config" in page.text
    assert client.get("/ui/config").status_code == 200
    assert client.get("/ui/sign-in").headers["location"] == "/ui/"


def test_a_wrong_key_is_told_so_and_gets_no_session(client: TestClient) -> None:
    for key in ("wrong", "", "first-key-and-more", "ключ"):
        reply = client.post("/ui/sign-in", data={"key": key})
        assert reply.status_code == 401
        assert "not a key of this server" in reply.text
        assert "set-cookie" not in reply.headers
    assert client.get("/ui/config").status_code == 401


@pytest.mark.parametrize(
    "body", [b"", b"\xff\xfe", b"other=first-key", b"key=" + b"a" * 5000, b'{"key": "first-key"}']
)
def test_a_form_that_is_none_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/ui/sign-in", content=body).status_code == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_other_sites(client: TestClient) -> None:
    cookie = client.post("/ui/sign-in", data={"key": "first-key"}).headers["set-cookie"]
    assert re.match(r"rrtf-session-\w{8}=[\w-]{43};", cookie)
    assert "first-key" not in cookie
    for attribute in ("HttpOnly", "SameSite=lax", "Path=/ui", f"Max-Age={SESSION_SECONDS}"):
        assert attribute in cookie
    assert "Secure" not in cookie
    secure = TestClient(client.app, base_url="https://testserver", follow_redirects=False)
    assert "Secure" in secure.post("/ui/sign-in", data={"key": "first-key"}).headers["set-cookie"]


def test_a_forged_cookie_is_no_session(client: TestClient) -> None:
    sign_in(client)
    name = next(iter(client.cookies))
    client.cookies.clear()
    for value in ("", "x", "0" * 43):
        assert client.get("/ui/config", headers={"cookie": f"{name}={value}"}).status_code == 401
    assert client.get("/ui/config", headers={"cookie": "=;;[}=="}).status_code == 401


def test_a_session_ends_with_sign_out(client: TestClient) -> None:
    sign_in(client)
    cookie = "; ".join(f"{name}={value}" for name, value in client.cookies.items())
    assert client.get("/ui/sign-out").headers["location"] == "/ui/sign-in"
    assert client.get("/ui/config", headers={"cookie": cookie}).status_code == 401


def test_no_visitor_s_key_is_kept() -> None:
    key = "a key that is found nowhere else"
    asked: list[str] = []

    def exchange(given: str) -> str | None:
        asked.append(given)
        return "inner" if given == key else None

    gate = Gate(FastAPI(), path="/ui", exchange=exchange, realm="r")
    client = TestClient(gate, follow_redirects=False)
    sign_in(client, key)
    assert client.get("/ui/config").status_code == 404, "signed in; there is no page below this gate"
    assert asked == [key]
    assert len(gate._sessions) == 1
    kept = {name: value for name, value in vars(gate).items() if value is not exchange}
    assert key not in repr(kept)


@pytest.mark.parametrize("keyed", [True, False])
def test_each_visitor_s_requests_reach_the_page_with_the_page_s_key_for_them(keyed: bool) -> None:
    page = FastAPI()

    @page.get("/ui/config")
    def config(request: Request) -> list[str]:
        return request.headers.getlist(KEY_HEADER)

    gate = Gate(page, path="/ui", exchange=KEYS.get if keyed else None, realm="r")
    forged = {KEY_HEADER.upper(): "inner-two"}
    if not keyed:
        assert TestClient(gate).get("/ui/config", headers=forged).json() == []
        return
    for key, inner in KEYS.items():
        client = TestClient(gate, follow_redirects=False)
        sign_in(client, key)
        assert client.get("/ui/config").json() == [inner]
        assert client.get("/ui/config", headers=forged).json() == [inner]


def test_a_session_expires(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    sign_in(client)
    import ui.gate

    later = ui.gate.time.monotonic() + SESSION_SECONDS + 1
    monkeypatch.setattr(ui.gate.time, "monotonic", lambda: later)
    assert client.get("/ui/config").status_code == 401


def test_sessions_are_bounded_and_the_oldest_goes_first() -> None:
    gate = Gate(FastAPI(), path="/ui", exchange=KEYS.get, realm="r")
    first = TestClient(gate, follow_redirects=False)
    sign_in(first)
    for _ in range(MAX_SESSIONS):
        sign_in(TestClient(gate, follow_redirects=False))
    assert len(gate._sessions) == MAX_SESSIONS
    assert first.get("/ui/config").status_code == 401


@pytest.mark.parametrize(
    "path",
    [
        "/ui/gradio_api/upload",
        "/ui/gradio_api/file=/etc/hostname",
        "/ui/gradio_api/proxy=http://127.0.0.1/",
        "/ui/gradio_api/info",
        "/ui/gradio_api/vibe-code",
        "/ui/gradio_api/run/send",
        "/ui/monitoring",
        "/ui/login",
    ],
)
def test_what_the_page_does_not_need_is_closed_to_guests_too(client: TestClient, path: str) -> None:
    sign_in(client)
    for method in ("GET", "POST"):
        assert client.request(method, path).status_code == 404


def test_the_rest_of_the_server_is_left_alone(client: TestClient) -> None:
    reply = client.get("/v1/models")
    assert reply.status_code == 200
    assert "content-security-policy" not in reply.headers
    assert client.get("/uix").status_code == 404


def test_the_page_may_load_from_its_own_server_only(client: TestClient) -> None:
    sign_in(client)
    policy = client.get("/ui/").headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "*" not in policy


def test_icon_and_manifest_are_there_for_everyone(client: TestClient) -> None:
    for path in ("/favicon.ico", "/ui/favicon.ico"):
        reply = client.get(path)
        assert (reply.status_code, reply.headers["content-type"]) == (200, "image/svg+xml")
        assert reply.text.startswith("<svg")
    assert client.get("/manifest.json").json()["start_url"] == "/ui/"


def test_without_keys_the_page_is_open() -> None:
    client = TestClient(mounted(None), follow_redirects=False)
    assert client.get("/ui/").status_code == 200
    assert client.get("/ui/sign-in").status_code == 404
    assert "Sign out" not in client.get("/ui/config").text


@pytest.mark.parametrize("path", ["ui", "/ui/", "/", ""])
def test_a_path_of_another_form_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="path must look like /ui"):
        mounted(None, path)
