"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fake_engine import SPECIALS
from live import LiveServer, Running, Say, rrtf_serve
from node_clients import missing

from rrtf_serve.engine.ticket import Ticket
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Source
from rrtf_serve.models.store import Store


@pytest.fixture(scope="session")
def smollm2_source() -> Source:
    """SmolLM2-135M, really fetched (98 MB) into the user's own store, where later runs find it."""
    return Store().fetch("smollm2-135m-instruct", progress=False)


@pytest.fixture(scope="session")
def qwen_source() -> Source:
    """Qwen2.5-Coder-0.5B, really fetched (491 MB) into the user's own store; for `slow` tests."""
    return Store().fetch("qwen2.5-coder-0.5b-instruct", progress=False)


@pytest.fixture(scope="session")
def live_server() -> Iterator[LiveServer]:
    """`rrtf-serve` on SmolLM2-135M with its page, in a process of its own."""
    with rrtf_serve("smollm2-135m-instruct") as server:
        yield server


@pytest.fixture(scope="session")
def live_keyed() -> Iterator[LiveServer]:
    """`rrtf-serve` on the default model, with a key ("right-key") and no page, for `clients` tests."""
    try:
        Store().fetch("qwen2.5-coder-0.5b-instruct", progress=False)
    except ModelError as error:
        missing(f"the default model is neither here nor to be had: {error}")
    env = {"RRTF_API_KEYS": "right-key"}
    with rrtf_serve("qwen2.5-coder-0.5b-instruct", "--no-ui", env=env) as server:
        yield server


@pytest.fixture(scope="session")
def live_qwen() -> Iterator[LiveServer]:
    """`rrtf-serve` on the default model, for `slow` tests."""
    with rrtf_serve("qwen2.5-coder-0.5b-instruct") as server:
        yield server


@pytest.fixture
def said(server: Running) -> Iterator[Say]:
    """The file's own server, whose model says what it is told to, whatever the prompt, and then ends."""
    before = server.engine.script
    end = 256 + SPECIALS.index("<|endoftext|>")

    def say(text: str, *, then_end: bool = True) -> Running:
        script = [*text.encode(), *([end] if then_end else [])]
        server.engine.script = lambda prompt: script
        return server

    yield say
    server.engine.script = before


@pytest.fixture
def tickets(server: Running, monkeypatch: pytest.MonkeyPatch) -> list[Ticket]:
    """Of what is submitted to the file's own server, which the scheduler still gets."""
    seen: list[Ticket] = []
    submit = server.scheduler.submit

    def watched(requests: Any, ticket: Ticket) -> Any:
        seen.append(ticket)
        return submit(requests, ticket)

    monkeypatch.setattr(server.scheduler, "submit", watched)
    return seen
