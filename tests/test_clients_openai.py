"""The official OpenAI SDKs, in Python and in JavaScript, against `rrtf-serve` on the default model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest
from client_servers import KEY, crowded, gated
from live import LiveServer
from node_clients import Failure, ask
from openai import OpenAI

pytestmark = pytest.mark.clients

PREFIX = "def add(a, b):\n    return "
SUFFIX = "\n\n\nprint(add(1, 2))\n"


@pytest.fixture(scope="module")
def said(live_keyed: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    names = ("models", "completion", "infill", "streamed infill", "chat", "streamed chat", "collected chat")
    return ask(
        live_keyed.address,
        "openai.js",
        *names,
        *("wrong key", "unknown model", "too long"),
        home=tmp_path_factory.mktemp("home"),
        key=KEY,
        model=live_keyed.model,
    )


def test_javascript_lists_the_model(said: dict[str, Any], live_keyed: LiveServer) -> None:
    assert said["models"] == [live_keyed.model]


def test_javascript_completes(said: dict[str, Any]) -> None:
    assert said["completion"]["choices"][0]["text"].startswith(" a + b")
    assert said["completion"]["usage"]["completion_tokens"] <= 8


def test_javascript_fills_in_the_middle(said: dict[str, Any]) -> None:
    [choice] = said["infill"]["choices"]
    assert choice["text"].startswith("a + b")
    assert said["streamed infill"] == choice["text"]


def test_javascript_chats(said: dict[str, Any]) -> None:
    message = said["chat"]["choices"][0]["message"]
    assert "def " in message["content"]
    assert said["streamed chat"] == message["content"]
    assert said["collected chat"]["choices"][0]["message"]["content"] == message["content"]


def test_javascript_raises_its_own_errors(said: dict[str, Any]) -> None:
    wrong, unknown, long = said["wrong key"], said["unknown model"], said["too long"]
    assert (wrong.name, wrong.status, wrong.code) == ("AuthenticationError", 401, "invalid_api_key")
    assert (unknown.name, unknown.status, unknown.code) == ("NotFoundError", 404, "model_not_found")
    assert (long.name, long.status) == ("BadRequestError", 400)


def test_javascript_sees_a_full_queue(tmp_path: Path) -> None:
    with crowded() as server:
        failure = ask(server.address, "openai.js", "full", home=tmp_path, key=KEY, model="tiny")["full"]
    assert isinstance(failure, Failure)
    assert (failure.name, failure.status) == ("RateLimitError", 429)


def test_javascript_cancels(tmp_path: Path) -> None:
    with gated() as (server, gate):
        answer = ask(server.address, "openai.js", "cancelled", home=tmp_path, key=KEY, model="tiny")
    assert answer == {"cancelled": "a"}
    assert gate.steps < 400  # 480 where the first request had gone on to its end


def test_python_fills_in_the_middle_and_cancels(live_keyed: LiveServer) -> None:
    middle: Any = {"prompt": PREFIX, "suffix": SUFFIX, "max_tokens": 16, "temperature": 0}
    with OpenAI(base_url=live_keyed.base_url, api_key=KEY, max_retries=0) as client:
        ask_for: Any = partial(client.completions.create, model=live_keyed.model)
        whole = ask_for(**middle).choices[0].text
        assert whole.startswith("a + b")
        assert "".join(chunk.choices[0].text for chunk in ask_for(**middle, stream=True)) == whole
        with ask_for(prompt="#", max_tokens=4000, stream=True) as stream:
            next(iter(stream))
        assert ask_for(**middle).choices[0].text == whole


def test_python_raises_its_own_errors(live_keyed: LiveServer) -> None:
    with (
        OpenAI(base_url=live_keyed.base_url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()
    with (
        OpenAI(base_url=live_keyed.base_url, api_key=KEY, max_retries=0) as client,
        pytest.raises(openai.NotFoundError),
    ):
        client.completions.create(model="gpt-9", prompt="a")
