"""Mistral's /v1/fim/completions: requests as Continue sends them, over an engine whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, byte_tokenizer
from live import Running, serving

PATH = "/v1/fim/completions"
# Continue's Mistral provider
CONTINUE: dict[str, Any] = {
    "model": "tiny-coder", "prompt": "def f():\n    ", "suffix": "\n\nprint(f())\n", "max_tokens": 64,
    "temperature": 0.01, "top_p": 1, "stop": ["[PREFIX]", "[SUFFIX]", "\n+++++ "], "stream": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=lambda _: list("return 'é😀'\n\nmore".encode()))) as running:
        yield running


def post(server: Running, body: dict[str, Any], **headers: str) -> httpx.Response:
    return httpx.post(server.address + PATH, json=body, headers={"accept": "application/json", **headers})


def test_chunks_are_a_chats(server: Running) -> None:
    response = post(server, CONTINUE, **{"x-api-key": "k"})
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
    assert "".join(deltas) == "return 'é😀'"
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_whole_answers_are_a_chats(server: Running) -> None:
    record = post(server, {**CONTINUE, "stream": False}).json()
    assert record["object"] == "chat.completion"
    assert record["model"] == "tiny-coder"
    choice = record["choices"][0]
    assert choice["message"]["content"] == "return 'é😀'"
    assert choice["finish_reason"] == "stop"
    assert record["usage"]["prompt_tokens"] == len(server.engine.started[-1].prompt)


def test_the_prompt_is_infilling_and_the_options_arrive(server: Running) -> None:
    post(server, {**CONTINUE, "stream": False, "temperature": 0.4, "top_p": 0.5, "min_tokens": 3})
    request = server.engine.started[-1]
    assert byte_tokenizer().decode(request.prompt, skip_specials=False) == (
        "<|fim_prefix|>def f():\n    <|fim_suffix|>\n\nprint(f())\n<|fim_middle|>"
    )
    assert (request.sampling.temperature, request.sampling.top_p) == (0.4, 0.5)
    assert request.min_tokens == 3
    post(server, {"prompt": "a", "temperature": 0})
    assert server.engine.started[-1].sampling.temperature == 0


def test_min_tokens_are_not_trimmed_away(server: Running) -> None:
    record = post(server, {**CONTINUE, "stream": False, "min_tokens": 18, "max_tokens": 18}).json()
    assert record["choices"][0]["message"]["content"].startswith("return 'é😀'\n")


def test_a_seed_that_the_engine_can_not_take_is_named(server: Running) -> None:
    response = post(server, {"prompt": "a", "temperature": 1, "random_seed": 7, "max_tokens": 4})
    assert response.headers["x-rrtf-dropped"] == "random_seed"


def test_no_suffix_and_unknown_fields_are_fine(server: Running) -> None:
    for body in ({"prompt": "a"}, {"prompt": "a", "suffix": None, "max_tokens": None, "n_probs": {"x": []}}):
        assert post(server, body).status_code == 200


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({}, "prompt", 400),
        ({"prompt": ["a"]}, "prompt", 400),
        ({"prompt": "a", "suffix": 1}, "suffix", 400),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens", 400),
        ({"prompt": "a", "temperature": 9}, "temperature", 400),
        ({"prompt": "a", "model": "codestral"}, "model", 404),
        ({"prompt": "a", "stream_options": {"include_usage": True}}, "stream_options", 400),
    ],
)
def test_mistakes_are_named(server: Running, body: dict[str, Any], param: str, status: int) -> None:
    response = post(server, body)
    assert response.status_code == status
    assert response.json()["error"]["param"] == param


def test_a_model_without_markers_refuses_a_suffix() -> None:
    with serving(family="smollm2") as server:
        assert "no fill-in-the-middle" in post(server, CONTINUE).json()["error"]["message"]
        assert post(server, {**CONTINUE, "suffix": "", "stream": False}).status_code == 200
