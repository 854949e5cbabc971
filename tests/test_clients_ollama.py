"""The official Ollama clients, in Python and in JavaScript, against `rrtf-serve` on the default model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from client_servers import KEY, crowded, gated
from live import LiveServer
from node_clients import Failure, ask, python_package

pytestmark = pytest.mark.clients

MESSAGES = [{"role": "user", "content": "Write a Python function that adds two numbers."}]
MIDDLE: dict[str, Any] = {
    "prompt": "def add(a, b):\n    return ",
    "suffix": "\n\n\nprint(add(1, 2))\n",
    "options": {"num_predict": 40, "temperature": 0},
}


@pytest.fixture(scope="module")
def said(live_keyed: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return ask(
        live_keyed.address,
        "ollama.js",
        *("version", "models", "running", "show", "infill", "streamed infill", "generate", "chat"),
        *("streamed chat", "wrong key", "unknown model", "pull"),
        home=tmp_path_factory.mktemp("home"),
        key=KEY,
        model="qwen2.5-coder:0.5b",
    )


def test_javascript_lists_the_model(said: dict[str, Any]) -> None:
    [listed] = said["models"]["models"]
    # Editors tell the family by what stands before the colon.
    assert listed["name"].split(":")[0] == "qwen2.5-coder"
    assert [running["name"] for running in said["running"]["models"]] == [listed["name"]]
    assert said["version"]["version"]


def test_javascript_is_told_that_the_model_fills_in(said: dict[str, Any]) -> None:
    assert ".Suffix" in said["show"]["template"]
    assert "insert" in said["show"]["capabilities"]
    assert said["show"]["details"]["parameter_size"]


def test_javascript_fills_in_the_middle(said: dict[str, Any]) -> None:
    assert said["infill"]["response"] == "a + b"
    assert said["infill"]["done_reason"] == "stop"
    assert said["infill"]["eval_count"] > 0
    assert said["streamed infill"]["text"] == "a + b"
    assert said["streamed infill"]["last"]["done"] is True


def test_javascript_chats(said: dict[str, Any]) -> None:
    content = said["chat"]["message"]["content"]
    assert "def " in content
    assert said["streamed chat"]["text"] == content
    # Without raw a prompt is a message of the user's.
    assert said["generate"]["response"] == content


def test_javascript_raises_its_own_errors(said: dict[str, Any]) -> None:
    for name, status in (("wrong key", 401), ("unknown model", 404)):
        assert isinstance(said[name], Failure)
        assert (said[name].name, said[name].status) == ("ResponseError", status)
        assert "{" not in said[name].message  # the text of {"error": text}, not the whole
    assert "pull" in said["pull"].message or "rrtf-models" in said["pull"].message


def test_javascript_sees_a_full_queue(tmp_path: Path) -> None:
    with crowded() as server:
        failure = ask(server.address, "ollama.js", "full", home=tmp_path, key=KEY, model="tiny")["full"]
    assert (failure.name, failure.status) == ("ResponseError", 429)


def test_javascript_cancels(tmp_path: Path) -> None:
    with gated() as (server, gate):
        answer = ask(server.address, "ollama.js", "cancelled", home=tmp_path, key=KEY, model="tiny")
    assert isinstance(answer["cancelled"], str)
    assert gate.steps < 400  # 480 where the first request had gone on to its end


def test_python(live_keyed: LiveServer) -> None:
    ollama = python_package("ollama")
    options = {"num_predict": 40, "temperature": 0}
    with ollama.Client(live_keyed.address, headers={"Authorization": f"Bearer {KEY}"}) as client:
        model = client.list().models[0].model
        assert "insert" in client.show(model).capabilities
        assert client.generate(model, **MIDDLE).response == "a + b"
        parts = list(client.generate(model, **MIDDLE, stream=True))
        assert "".join(part.response for part in parts) == "a + b"
        assert parts[-1].done_reason == "stop"
        whole = client.chat(model, MESSAGES, options=options).message.content
        stream = client.chat(model, MESSAGES, options=options, stream=True)
        assert "def " in whole
        assert "".join(part.message.content for part in stream) == whole
        left = client.generate(model, "#", raw=True, stream=True)
        next(left)
        left.close()
        assert client.generate(model, **MIDDLE).response == "a + b"
        with pytest.raises(ollama.ResponseError) as unknown:
            client.generate("unknown", "a")
        assert unknown.value.status_code == 404
    with ollama.Client(live_keyed.address) as client, pytest.raises(ollama.ResponseError) as refused:
        client.list()
    assert refused.value.status_code == 401
