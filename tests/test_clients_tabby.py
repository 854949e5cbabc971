"""Tabby's agent, which all of its plug-ins run, as an editor drives it.

Version 1.5.0 takes other files and events over its older protocol alone, lines of JSON; over LSP it takes
neither.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx
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


def program(address: str, home: Path, key: str) -> list[str]:
    """The agent's command line, its settings written."""
    settings = home / ".tabby-client" / "agent" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text(
        f'[server]\nendpoint = "{address}"\ntoken = "{key}"\n[anonymousUsageTracking]\ndisable = true\n'
    )
    return [node(), str(packages() / "node_modules" / "tabby-agent" / "dist" / "cli.js")]


class Lines:
    """Calls the agent's functions: [number, {func, args}] a line, answered by [number, result]; 0 numbers
    what it tells without being asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._to, self._from = process.stdin, process.stdout
        self._numbers = count(1)

    def call(self, function: str, *args: object) -> Any:
        number = next(self._numbers)
        self._to.write(json.dumps([number, {"func": function, "args": args}]) + "\n")
        self._to.flush()
        for line in self._from:
            answered, result = json.loads(line)
            if answered == number:
                return result
        raise AssertionError(f"the agent ended before it answered {function}")


@contextmanager
def lines(address: str, home: Path) -> Iterator[Lines]:
    with subprocess.Popen(
        program(address, home, KEY),
        env=environment(home),
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            client = Lines(process)
            assert client.call("initialize", {"clientProperties": {"user": {}, "session": {}}})
            yield client
        finally:
            process.terminate()


@contextmanager
def agent(address: str, home: Path, key: str = KEY) -> Iterator[tuple[LspClient, dict[str, Any]]]:
    command = [*program(address, home, key), "--lsp", "--stdio"]
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


def test_other_files_come_into_the_prompt_and_events_are_counted(tmp_path: Path) -> None:
    engine = FakeEngine(script=lambda prompt: [*b"a + b", END_OF_TEXT])
    request = {
        "filepath": str(tmp_path / "sums.py"),
        "language": "python",
        "text": TEXT,
        "position": TEXT.index("return ") + len("return "),
        "git": {
            "root": str(tmp_path),
            "remotes": [{"name": "origin", "url": "https://me:secret@example.com/team/project.git"}],
        },
        "declarations": [
            {"filepath": str(tmp_path / "words.py"), "offset": 0, "text": "def called(): ...\n"}
        ],
        "relevantSnippetsFromChangedFiles": [
            {"filepath": str(tmp_path / "far.py"), "offset": 0, "text": "far = 1\n", "score": 0.1},
            {"filepath": str(tmp_path / "near.py"), "offset": 0, "text": "near = 1\n", "score": 0.9},
        ],
    }
    with serving(engine, settings=SETTINGS) as server:
        with lines(server.address, tmp_path) as client:
            answer = client.call("provideCompletions", request)
            seen = {"completion_id": answer["id"], "choice_index": 0}
            for kind in ("view", "view", "select"):
                assert client.call("postEvent", {"type": kind, **seen}) is True
        figures = httpx.get(f"{server.address}/metrics", headers={"authorization": f"Bearer {KEY}"}).text
        [asked] = engine.started
        prompt = server.served.tokenizer.decode(asked.prompt, skip_specials=False)
    assert answer["choices"][0]["text"].endswith("a + b")
    around, after = TEXT[: request["position"]], TEXT[request["position"] :]
    assert prompt == (
        "<|repo_name|>team/project\n"
        "<|file_sep|>far.py\nfar = 1\n<|file_sep|>near.py\nnear = 1\n"
        "<|file_sep|>words.py\ndef called(): ...\n"
        f"<|file_sep|>sums.py\n<|fim_prefix|>{around}<|fim_suffix|>{after}<|fim_middle|>"
    )
    for kind, times in (("view", 2), ("select", 1)):
        assert f'rrtf:editor_events_total{{type="{kind}"}} {times}.0' in figures
