"""Texts become tokens in turns: nobody's many prompts hold up another's one, and nobody's an editor's."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import httpx
import pytest
from live import Running, serving

from rrtf_serve.api.encoding import Encoded, encode, encode_each
from rrtf_serve.api.errors import ApiError


def test_who_has_many_prompts_queues_anew_for_each() -> None:
    order: list[str] = []

    def prompt(name: str) -> Encoded:
        order.append(name)
        return (1,), 1

    async def both(server: Running) -> None:
        many = encode_each(server.served, 1, [partial(prompt, f"many {number}") for number in range(20)])
        one = encode_each(server.served, 1, [partial(prompt, "one")])
        await asyncio.gather(many, one)

    with serving() as server:
        asyncio.run(both(server))
    assert len(order) == 21
    assert order.index("one") <= 2


def test_what_is_larger_than_the_server_accepts_is_not_encoded_to_its_end() -> None:
    encoded: list[int] = []

    def prompt(number: int) -> Encoded:
        encoded.append(number)
        return (1,) * 30, 10

    with (
        serving(max_queue_tokens=200) as server,
        pytest.raises(ApiError, match="needs 240 tokens") as refusal,
    ):
        asyncio.run(encode_each(server.served, 2, [partial(prompt, number) for number in range(100)]))
    assert (refusal.value.status, refusal.value.path) == (400, ("prompt",))
    assert encoded == [0, 1, 2]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/fim/completions", {"prompt": "a", "suffix": "b", "max_tokens": 2}),
        ("/infill", {"input_prefix": "a", "input_suffix": "b", "n_predict": 2}),
        ("/api/generate", {"model": "tiny", "prompt": "a", "suffix": "b", "stream": False}),
        ("/generate", {"inputs": "<fim_prefix>a<fim_suffix>b<fim_middle>"}),
    ],
)
def test_an_editor_waits_for_nobodys_long_texts(path: str, body: dict[str, object]) -> None:
    done = threading.Event()

    async def crowd(address: str) -> httpx.Response:
        others = [asyncio.ensure_future(encode(done.wait)) for _ in range(20)]
        try:
            async with httpx.AsyncClient(base_url=address, timeout=30) as client:
                return await client.post(path, json=body)
        finally:
            done.set()
            await asyncio.gather(*others)

    with serving() as server:
        assert asyncio.run(crowd(server.address)).status_code == 200
