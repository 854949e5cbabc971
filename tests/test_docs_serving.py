"""docs/serving.md: every field of every dialect stands there, and every route that it names is there."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from live import Running, serving
from starlette.routing import Match, Route

from rrtf_serve.api.app import create_app
from rrtf_serve.api.fields import Field
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings

PAGE = (Path(__file__).parent.parent / "docs" / "serving.md").read_text("utf-8")
# What a section is about, and its text up to the next one.
SECTIONS = re.findall(r"<!-- fields: (.*?) -->\n(.*?)(?=\n<!-- fields|\n## |\Z)", PAGE, re.DOTALL)
# The tables hold these, too, and the page tells them once.
REPEATED = {
    "llamacpp_fields.INFILL_FIELDS": "llamacpp_fields.SHARED",
    "llamacpp_fields.COMPLETION_FIELDS": "llamacpp_fields.SHARED",
}


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
        scope = {"type": "http", "method": method, "path": path, "headers": [(b"user-agent", b"ollama/1")]}
        assert any(route.matches(scope)[0] is Match.FULL for route in routes), f"{method} {path}"
    written = {re.sub(r"\{\w+\}", "{}", path) for path in re.findall(r"`(?:\w+ )?(/[^`\s]*)`", PAGE)}
    written |= {f"/api/{action}" for action in re.findall(r"`(\w+)`", PAGE)}
    for route in routes:
        path = re.sub(r"\{\w+(?::path)?\}", "{}", route.path)
        assert path in written | {"/", "/openapi.json"}, f"{route.path} is not on the page"
