"""Tabby's agent, which all of its plug-ins run, over LSP as an editor drives it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from client_servers import KEY, SETTINGS
from fake_engine import FakeEngine
from live import LiveServer, serving
from lsp_client import LspClient, language_server
from node_clients import environment, node, packages

pytestmark = pytest.mark.clients

TEXT = "def add(a, b):\n    return \n\n\nprint(add(1, 2))\n"
CURSOR = {"line": 1, "character": len("    return ")}
END_OF_TEXT = 256  # as fake_engine numbers it


@contextmanager
def agent(address: str, home: Path, key: str = KEY) -> Iterator[tuple[LspClient, dict[str, Any]]]:
    settings = home / ".tabby-client" / "agent" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        f'[server]\nendpoint = "{address}"\ntoken = "{key}"\n[anonymousUsageTracking]\ndisable = true\n'
    )
    program = packages() / "node_modules" / "tabby-agent" / "dist" / "cli.js"
    command = [node(), str(program), "--lsp", "--stdio"]
    with language_server(command, environment(home), home) as client:
        about = client.request(
            "initialize",
            {
                "processId": None,
                "rootUri": home.as_uri(),
                "clientInfo": {"name": "test", "version": "1"},
                "capabilities": {"textDocument": {"completion": {}}, "tabby": {"agent": True}},
            },
        )
        client.notify("initialized", {})
        yield client, about
        client.request("shutdown", None)
        client.notify("exit", None)


def complete(client: LspClient, home: Path) -> list[str]:
    """What is offered at the cursor of a new document."""
    uri = (home / "sums.py").as_uri()
    document = {"uri": uri, "languageId": "python", "version": 1, "text": TEXT}
    client.notify("textDocument/didOpen", {"textDocument": document})
    found = client.request(
        "textDocument/completion",
        {"textDocument": {"uri": uri}, "position": CURSOR, "context": {"triggerKind": 1}},
    )
    items = found["items"] if isinstance(found, dict) else found or []
    return [item.get("textEdit", {}).get("newText") or item.get("insertText") or "" for item in items]


def test_completes_with_the_default_model(live_keyed: LiveServer, tmp_path: Path) -> None:
    with agent(live_keyed.address, tmp_path) as (client, about):
        assert "completionProvider" in about["capabilities"]
        assert any("a + b" in text for text in complete(client, tmp_path))


def test_offers_what_the_model_said(tmp_path: Path) -> None:
    engine = FakeEngine(script=lambda prompt: [*b"a + b", END_OF_TEXT])
    with serving(engine, settings=SETTINGS) as server, agent(server.address, tmp_path) as (client, _):
        assert complete(client, tmp_path) == ["a + b"]
        [asked] = engine.started
    assert bytes(token for token in asked.prompt if token < 256).decode() == TEXT


def test_a_wrong_key_gives_nothing(tmp_path: Path) -> None:
    """Version 1.5.0 tells the editor of no status over LSP."""
    engine = FakeEngine()
    with (
        serving(engine, settings=SETTINGS) as server,
        agent(server.address, tmp_path, "wrong") as (client, _),
    ):
        assert complete(client, tmp_path) == []
    assert not engine.started
