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
    """A server whose queue is full: everything more is refused with 429."""
    engine = FakeEngine()
    engine.open.clear()
    with (
        serving(engine, settings=SETTINGS, max_queue=1) as server,
        httpx.Client(headers={"authorization": f"Bearer {KEY}"}) as client,
        ExitStack() as open_streams,
    ):
        # A queue that is full for a moment only, since its jobs are about to begin, is not enough.
        refused = 0
        for number in range(2000):
            body = {"prompt": f"{number}", "stream": True, "max_tokens": 4}
            asked = client.stream("POST", f"{server.address}/v1/completions", json=body)
            refused = refused + 1 if open_streams.enter_context(asked).status_code == 429 else 0
            if refused == 30:
                break
        else:
            raise AssertionError("the queue took everything")
        yield server
        engine.open.set()


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
