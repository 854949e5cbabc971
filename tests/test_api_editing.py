"""Which requests are of one editing: a newer one replaces those, and none that is about other code."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import httpx
import pytest
from counting_engine import until
from fake_engine import FakeEngine
from live import Running, serving

from rrtf_serve.engine.stream import Stream

Ask = tuple[str, dict[str, Any]]


def marked(prefix: str, suffix: str) -> str:
    return f"<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"


def segments(prefix: str, suffix: str, **more: str) -> Ask:
    return "/v1/completions", {"segments": {"prefix": prefix, "suffix": suffix, **more}}


def around(prefix: str, suffix: str, **more: str) -> dict[str, Any]:
    return {"prompt": prefix, "suffix": suffix, "max_tokens": 8, "temperature": 0, **more}


DIALECTS: dict[str, Callable[[str, str], Ask]] = {
    "OpenAI": lambda prefix, suffix: ("/v1/completions", around(prefix, suffix)),
    "OpenAI, markers": lambda prefix, suffix: ("/v1/completions", around(marked(prefix, suffix), "")),
    "Codex": lambda prefix, suffix: ("/v1/engines/x/completions", around(prefix, suffix)),
    "Mistral": lambda prefix, suffix: ("/v1/fim/completions", around(prefix, suffix)),
    "llama.cpp": lambda prefix, suffix: ("/infill", {"input_prefix": prefix, "input_suffix": suffix}),
    "llama.cpp, markers": lambda prefix, suffix: ("/completion", {"prompt": marked(prefix, suffix)}),
    "Ollama": lambda prefix, suffix: (
        "/api/generate", {"model": "tiny", "prompt": prefix, "suffix": suffix, "stream": False}
    ),
    "Ollama, markers": lambda prefix, suffix: (
        "/api/generate", {"model": "tiny", "prompt": marked(prefix, suffix), "stream": False}
    ),
    "TGI": lambda prefix, suffix: ("/generate", {"inputs": marked(prefix, suffix)}),
    "Hugging Face": lambda prefix, suffix: ("/models/tiny", {"inputs": marked(prefix, suffix)}),
    "Tabby": segments,
    "Tabby, one file": lambda prefix, suffix: segments(prefix, suffix, filepath="a.py"),
}  # fmt: skip
LICENCE = "# Copyright of somebody\n" * 8
INDEPENDENT = {
    "one line each": [(f"def f{number}(", "") for number in range(8)],
    "the same beginning": [(f"{LICENCE}\n\ndef f{number}(a):\n    ", "\n\nend()\n") for number in range(8)],
    "the same before the cursor": [("def f(a):\n    ", f"\n\nprint(f({number}))\n") for number in range(8)],
    "nothing before the cursor": [("", f"\n\nprint({number})\n") for number in range(8)],
}  # fmt: skip


@dataclass
class Closed:
    """A server whose engine makes no token until it is opened. taken: requests that the scheduler took."""

    running: Running
    taken: int = 0

    def has_taken(self, count: int) -> bool:
        return self.taken == count


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Closed]:
    engine = FakeEngine(script=lambda _: b"1, 2)\n\nmore")
    engine.open.clear()
    with serving(engine) as running:
        closed = Closed(running)
        submit = running.scheduler.submit

        def counted(*arguments: Any) -> Stream:
            stream = submit(*arguments)
            closed.taken += 1
            return stream

        monkeypatch.setattr(running.scheduler, "submit", counted)
        yield closed
        engine.open.set()


async def statuses(server: Closed, asks: list[Ask]) -> list[int]:
    """Of requests that come one after another, before any of them can be answered."""
    async with httpx.AsyncClient(base_url=server.running.address, timeout=60) as client:
        answers = []
        for number, (path, body) in enumerate(asks, 1):
            answers.append(asyncio.create_task(client.post(path, json=body)))
            await until(partial(server.has_taken, number))
        server.running.engine.open.set()
        return [answer.status_code for answer in await asyncio.gather(*answers)]


@pytest.mark.parametrize(
    ("dialect", "code"),
    # One file and the same code before the cursor: that is one cursor.
    sorted({*product(DIALECTS, INDEPENDENT)} - {("Tabby, one file", "the same before the cursor")}),
)
def test_requests_about_different_code_are_all_answered(server: Closed, dialect: str, code: str) -> None:
    asks = [DIALECTS[dialect](*around) for around in INDEPENDENT[code]]
    assert asyncio.run(statuses(server, asks)) == [200] * len(asks)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_who_types_on_waits_for_the_newest_only(server: Closed, dialect: str) -> None:
    before = f"{LICENCE}\n\ndef f("
    asks = [DIALECTS[dialect](f"{before}{typed}", "\n") for typed in ("a", "a, ", "a, b")]
    assert asyncio.run(statuses(server, asks)) == [409, 409, 200]


def test_users_that_are_named_are_different_ones(server: Closed) -> None:
    asks = [
        ("/v1/completions", around(f"def f({typed}", "\n", user=user))
        for user, typed in (("ann", "a"), ("bob", "ab"), ("ann", "ab"))
    ]
    assert asyncio.run(statuses(server, asks)) == [409, 200, 200]
