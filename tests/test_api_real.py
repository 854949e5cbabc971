"""The API on a real model: what only real weights, real batches and a real process can show."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from live import LiveServer


def complete(live: LiveServer, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{live.base_url}/completions", json=body, timeout=300)
    assert answer.status_code == 200, answer.text
    record: dict[str, Any] = answer.json()
    return record


def test_greedy_answers_do_not_depend_on_what_else_is_asked(live_server: LiveServer) -> None:
    bodies = [
        {"prompt": f"The number {5 * count} is", "max_tokens": 16, "temperature": 0} for count in range(16)
    ]
    alone = [complete(live_server, body)["choices"][0]["text"] for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: complete(live_server, body)["choices"][0]["text"], bodies))
    assert together == alone
    assert len(set(alone)) > 4  # or the prompts tell nothing


@pytest.mark.parametrize("top_p", [1e-50, 1e-9])
def test_a_tiny_top_p_is_greedy(live_server: LiveServer, top_p: float) -> None:
    body = {"prompt": "The capital of France is", "max_tokens": 4}
    greedy = complete(live_server, body | {"temperature": 0})["choices"][0]["text"]
    assert complete(live_server, body | {"top_p": top_p})["choices"][0]["text"] == greedy
