"""Servers in states that only a fake engine reaches for certain: for what a real client sees then."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import httpx
from fake_engine import CAPABILITIES, FakeEngine
from live import Running, serving

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.keys import digest_of

KEY = "right-key"
SETTINGS = ApiSettings(api_keys=frozenset({digest_of(KEY.encode())}))


@contextmanager
def crowded() -> Iterator[Running]:
    """A server whose queues are full, of long jobs and of editors' short ones: everything more gets 429."""
    engine = FakeEngine()
    engine.open.clear()
    with (
        serving(engine, settings=SETTINGS, max_queue=1) as server,
        httpx.Client(base_url=server.address, headers={"authorization": f"Bearer {KEY}"}) as client,
        ExitStack() as streams,
    ):
        _fill(client, streams, "/v1/completions", {"max_tokens": 400})
        _fill(client, streams, "/v1/fim/completions", {"max_tokens": 4, "suffix": "x = 1"})
        yield server
        engine.open.set()


def _fill(client: httpx.Client, streams: ExitStack, path: str, body: dict[str, object]) -> None:
    """A queue that is full for a moment only, since its jobs are about to begin, is not enough."""
    refused = 0
    for number in range(2000):
        # No two alike, nor of one place in one file: those would share a decode, or replace each other.
        asked = client.stream("POST", path, json=body | {"prompt": f"# {number}\n", "stream": True})
        refused = refused + 1 if streams.enter_context(asked).status_code == 429 else 0
        if refused == 30:
            return
    raise AssertionError(f"{path} took everything")


class CountingGate(threading.Event):
    """Counts an engine's steps."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0

    def wait(self, timeout: float | None = None) -> bool:
        self.steps += 1
        return super().wait(timeout)


@contextmanager
def gated() -> Iterator[tuple[Running, CountingGate]]:
    """A server that runs one request at a time, 50 ms a token: a second one waits for the first's end."""
    gate = CountingGate()
    gate.set()
    engine = FakeEngine(seconds_per_step=0.05, capabilities=replace(CAPABILITIES, max_batch=1), open=gate)
    with serving(engine, settings=SETTINGS) as server:
        yield server, gate
