"""POST /models/{id}: Hugging Face's inference API, as llm-ls asks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from live import Running, serving

LLM_LS: dict[str, Any] = {
    "inputs": "<|fim_prefix|>def f():\n    <|fim_suffix|>\n<|fim_middle|>",
    "parameters": {"max_new_tokens": 60, "temperature": 0.2, "top_p": 0.95, "return_full_text": False},
    "options": {"use_cache": False},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=lambda _: list(b"return 1\n\nmore"))) as running:
        yield running


@pytest.mark.parametrize("name", ["tiny-coder", "org/tiny-coder", "tiny"])
def test_the_answer_is_a_list_of_one(server: Running, name: str) -> None:
    response = httpx.post(f"{server.address}/models/{name}", json=LLM_LS)
    assert response.json() == [{"generated_text": "return 1"}]


def test_a_stream_is_tgis(server: Running) -> None:
    response = httpx.post(f"{server.address}/models/tiny", json={**LLM_LS, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert '"generated_text": "return 1"' in response.text.replace('":', '": ')


def test_errors_are_texts(server: Running) -> None:
    for name, body, status in [("tiny", {}, 400), ("bigcode/starcoder", LLM_LS, 404)]:
        response = httpx.post(f"{server.address}/models/{name}", json=body)
        assert response.status_code == status
        assert isinstance(response.json()["error"], str)
