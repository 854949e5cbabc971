"""The ollama package from PyPI, as a program uses it: pip install ollama, then pytest -m clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import SPECIALS, FakeEngine
from live import Running, serving

pytestmark = pytest.mark.clients
ollama = pytest.importorskip("ollama")

MODEL = "tiny-coder:latest"
END = 256 + SPECIALS.index("<|endoftext|>")
SAID = "a + b  # größe\u2028漢字 🙂"
MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(lambda prompt: [*SAID.encode(), END])) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with ollama.Client(server.address) as made:
        yield made


def test_lists_and_shows(client: Any) -> None:
    [listed] = client.list().models
    [running] = client.ps().models
    assert listed.model == running.model == MODEL
    assert listed.digest == running.digest
    assert running.context_length == 512
    shown = client.show(MODEL)
    assert ".Suffix" in shown.template
    assert shown.capabilities == ["completion", "insert"]
    assert shown.modelinfo["qwen2.context_length"] == 512
    assert shown.modified_at == listed.modified_at


def test_generates_with_a_suffix(client: Any, server: Running) -> None:
    answer = client.generate(MODEL, "def add(a, b):\n    return ", suffix="\n\nx = 1\n")
    assert answer.response == SAID
    assert (answer.done, answer.done_reason) == (True, "stop")
    assert answer.eval_count == len(SAID.encode())
    assert answer.prompt_eval_count == len(server.engine.started[-1].prompt)
    assert answer.total_duration >= answer.prompt_eval_duration + answer.eval_duration > 0


def test_streams_generate_and_chat(client: Any) -> None:
    parts = list(client.generate(MODEL, "hello", stream=True))
    assert "".join(part.response for part in parts) == SAID
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    parts = list(client.chat(MODEL, MESSAGES, stream=True, options={"num_predict": 5}))
    assert "".join(part.message.content for part in parts) == SAID[:5]
    assert parts[-1].done_reason == "length"


def test_chats(client: Any) -> None:
    answer = client.chat(MODEL, MESSAGES, options=ollama.Options(temperature=0, stop=["#"]), keep_alive="5m")
    assert (answer.message.role, answer.message.content) == ("assistant", "a + b  ")


def test_loads_without_a_prompt(client: Any) -> None:
    assert client.generate(MODEL).done_reason == "load"
    assert client.generate(MODEL, keep_alive=0).done_reason == "unload"


def test_reads_our_errors(client: Any) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'gpt-9' not found") as caught:
        client.generate("gpt-9", "hello")
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="rrtf-serve --model"):
        client.pull("llama3.2")
    with pytest.raises(ollama.ResponseError, match="images"):
        client.generate(MODEL, "hello", images=[b"x"])


def test_reads_an_error_in_mid_stream() -> None:
    with (
        serving(FakeEngine(fails_after=2)) as server,
        ollama.Client(server.address) as client,
        pytest.raises(ollama.ResponseError, match="The server failed"),
    ):
        list(client.generate(MODEL, "hello", stream=True))


def test_several_at_once(server: Running) -> None:
    async def ask() -> list[str]:
        async with ollama.AsyncClient(server.address) as client:
            answers = await asyncio.gather(*(client.generate(MODEL, f"hello {n}") for n in range(8)))
            return [answer.response for answer in answers]

    assert asyncio.run(ask()) == [SAID] * 8
