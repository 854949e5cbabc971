"""docs/serving.md: every field of every dialect stands there, every route that it names is there, and those
that answer without a key are those that it names."""

from __future__ import annotations

import asyncio
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from live import Running, serving
from starlette.routing import Match, Route

from rrtf_serve.api.app import create_app
from rrtf_serve.api.fields import Field
from rrtf_serve.api.keys import Key, Keyring
from rrtf_serve.api.models import Models
from rrtf_serve.api.origin import Origins
from rrtf_serve.api.settings import ApiSettings
from rrtf_serve.config import ServeConfig
from rrtf_serve.main import settings_of
from ui.page import mount

PAGE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text("utf-8")
# What a section is about, and its text up to the next one.
SECTIONS = re.findall(r"<!-- fields: (.*?) -->\n(.*?)(?=\n<!-- fields|\n## |\Z)", PAGE, re.DOTALL)
# The tables hold these, too, and the page tells them once.
REPEATED = {
    "llamacpp_fields.INFILL_FIELDS": "llamacpp_fields.SHARED",
    "llamacpp_fields.COMPLETION_FIELDS": "llamacpp_fields.SHARED",
}

# What stands before the API, and not among its routes.
PAGES_OWN = {"/ui", "/favicon.ico", "/manifest.json"}


def names(table: str) -> set[str]:
    module, _, attribute = table.partition(".")
    fields: tuple[Field, ...] = getattr(
        importlib.import_module(f"rrtf_serve.api.dialects.{module}"), attribute
    )
    return {field.name for field in fields}


@pytest.mark.parametrize(("tables", "text"), SECTIONS, ids=[tables for tables, _ in SECTIONS])
def test_every_field_is_described(tables: str, text: str) -> None:
    written = set(re.findall(r"`(\w+)`", text))
    for table in tables.split(", "):
        missing = names(table) - written
        if table in REPEATED:
            missing -= names(REPEATED[table])
        assert not missing


@pytest.mark.parametrize(("tables", "text"), SECTIONS, ids=[tables for tables, _ in SECTIONS])
def test_no_row_is_of_an_unknown_field(tables: str, text: str) -> None:
    known = set().union(*map(names, tables.split(", ")))
    rows = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", " ".join(rows)):
        assert name in known


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def test_the_routes_are_the_servers(server: Running) -> None:
    app = create_app(Models([server.served]), settings=ApiSettings())
    routes = [route for route in app.router.routes if isinstance(route, Route)]
    named = re.findall(r"`(GET|POST|DELETE) (/[^`\s]*)`", PAGE)
    assert len(named) > 30
    for method, path in named:
        if path in PAGES_OWN:
            continue
        scope = {"type": "http", "method": method, "path": path, "headers": [(b"user-agent", b"ollama/1")]}
        assert any(route.matches(scope)[0] is Match.FULL for route in routes), f"{method} {path}"
    written = {re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"`(?:\w+ )?(/[^`\s]*)`", PAGE)}
    written |= {f"/api/{action}" for action in re.findall(r"`(\w+)`", PAGE)}
    for route in routes:
        path = re.sub(r"\{\w+(?::path)?\}", "{}", route.path)
        assert path in written, f"{route.path} is not on the page"


def test_what_answers_without_a_key_is_listed(server: Running) -> None:
    paragraph = re.search(r"^\*\*Keys\*\*(.*?)They are sent as", PAGE, re.MULTILINE | re.DOTALL)
    assert paragraph is not None
    listed = set(re.findall(r"`(/[^`]*)`", paragraph[1]))
    assert "/metrics" in settings_of(ServeConfig(open_metrics=True), Origins()).open_paths
    open_paths = listed - {"/metrics"}
    keys = Keyring([Key("alice", "0" * 64)])
    app = create_app(Models([server.served]), settings=settings_of(ServeConfig(), Origins()), keys=keys)

    async def mount_page() -> None:
        mount(app, base_url="http://127.0.0.1:1/v1", exchange=keys.page_key)

    asyncio.run(mount_page())  # as the server does it: while an event loop runs
    client = TestClient(app, follow_redirects=False)
    asked = {(method, path) for path in (*listed, "/docs", "/redoc", "/uix") for method in ("GET", "HEAD")}
    for route in app.routes:
        if isinstance(route, Route):
            asked |= {(method, route.path) for method in route.methods or ()}
    for method, path in asked:
        status = client.request(method, path).status_code
        assert (status == 401) is (path not in open_paths), f"{method} {path}: {status}"
    for path in open_paths - {"/"}:
        assert client.get(path).status_code == (303 if path == "/ui" else 200), path
    refusal = client.get("/ui/config")
    assert (refusal.status_code, "Sign in" in refusal.text) == (401, True)
