"""/v1/engines/{engine}/completions: OpenAI's completions under names that nobody serves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from live import Running, serving

FAUXPILOT: dict[str, Any] = {
    "prompt": "def f():\n    ", "suffix": "\n", "max_tokens": 30, "temperature": 0, "top_p": 1, "n": 2,
    "stop": ["\n\n\n"], "nwo": "owner/repo", "extra": {"language": "python"},
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=lambda _: list(b"return 1\n\nmore"))) as running:
        yield running


def post(server: Running, engine: str, body: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{server.address}/v1/engines/{engine}/completions", json=body)


@pytest.mark.parametrize("engine", ["copilot-codex", "codegen", "tiny-coder", "tiny"])
def test_any_engine_is_answered(server: Running, engine: str) -> None:
    record = post(server, engine, FAUXPILOT).json()
    assert record["object"] == "text_completion"
    assert record["model"] == "tiny-coder"
    assert [choice["text"] for choice in record["choices"]] == ["return 1", "return 1"]


def test_without_a_suffix_it_is_a_plain_completion(server: Running) -> None:
    record = post(server, "codegen", {"prompt": "a", "max_tokens": 12, "temperature": 0}).json()
    assert record["choices"][0]["text"] == "return 1\n\nmo"
    assert server.engine.started[-1].prompt == (97,)


def test_streams_end_as_openais(server: Running) -> None:
    response = post(server, "codegen", {**FAUXPILOT, "n": 1, "stream": True})
    assert response.text.endswith("data: [DONE]\n\n")


def test_mistakes_are_named(server: Running) -> None:
    response = post(server, "codegen", {"suffix": "x"})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


def test_there_are_no_tokens_to_get(server: Running) -> None:
    assert httpx.get(server.address + "/copilot_internal/v2/token").status_code == 404
