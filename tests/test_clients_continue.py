"""Continue: the adapters that its plug-ins ask servers with, and its program for the command line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from client_servers import KEY, crowded, gated
from live import LiveServer
from node_clients import SECONDS, Failure, ask, environment, node, packages

pytestmark = pytest.mark.clients

COMPLETIONS = ("openai completion", "vllm completion", "lmstudio completion")
CHATS = ("openai chat", "mistral chat", "ollama chat", "llama.cpp chat")


@pytest.fixture(scope="module")
def said(live_keyed: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ask(
        live_keyed.address,
        "continue.js",
        *("models", *COMPLETIONS, "mistral infill", *CHATS, "whole chat", "wrong key", "unknown model"),
        home=tmp_path_factory.mktemp("home"),
        key=KEY,
        model=live_keyed.model,
    )


def test_models(said: dict[str, Any], live_keyed: LiveServer) -> None:
    assert [model["id"] for model in said["models"]] == [live_keyed.model]


@pytest.mark.parametrize("name", COMPLETIONS)
def test_a_prompt_of_markers(said: dict[str, Any], name: str) -> None:
    """As the extension makes it; the template here is this test's, since no adapter has one."""
    assert said[name]["text"].startswith("a + b")


def test_infill(said: dict[str, Any]) -> None:
    assert said["mistral infill"]["text"] == "a + b"


@pytest.mark.parametrize("name", CHATS)
def test_chat(said: dict[str, Any], name: str) -> None:
    assert said[name]["text"] == said["whole chat"]["choices"][0]["message"]["content"]
    assert "def " in said[name]["text"]


def test_the_chat_counts_tokens(said: dict[str, Any]) -> None:
    assert said["openai chat"]["usage"] == said["whole chat"]["usage"]


def test_errors_are_told_to_the_user(said: dict[str, Any]) -> None:
    assert isinstance(said["wrong key"], Failure)
    assert "API key" in said["wrong key"].message
    assert "'unknown' does not exist" in said["unknown model"].message


def test_a_full_queue(tmp_path: Path) -> None:
    with crowded() as server:
        failure = ask(server.address, "continue.js", "full", home=tmp_path, key=KEY, model="tiny")["full"]
    assert isinstance(failure, Failure)
    assert "queue" in failure.message


def test_cancelling(tmp_path: Path) -> None:
    with gated() as (server, gate):
        answer = ask(server.address, "continue.js", "cancelled", home=tmp_path, key=KEY, model="tiny")
    assert isinstance(answer["cancelled"], str)
    assert gate.steps < 400  # 480 where the first request had gone on to its end


def test_the_command_line(live_keyed: LiveServer, tmp_path: Path) -> None:
    model = {
        "name": "local",
        "provider": "openai",
        "model": live_keyed.model,
        "apiBase": live_keyed.base_url,
        "apiKey": KEY,
        "roles": ["chat"],
        "defaultCompletionOptions": {"temperature": 0, "maxTokens": 60},
    }
    configuration = tmp_path / "config.yaml"  # every JSON text is a YAML text
    configuration.write_text(json.dumps({"name": "t", "version": "0.0.1", "schema": "v1", "models": [model]}))
    program = packages() / "node_modules" / "@continuedev" / "cli" / "dist" / "cn.js"
    question = "Write a Python function that adds two numbers."
    ended = subprocess.run(
        [node(), str(program), "-p", question, "--config", str(configuration)],
        env=environment(tmp_path, CONTINUE_TELEMETRY_ENABLED="0", CI="1"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "def " in ended.stdout
