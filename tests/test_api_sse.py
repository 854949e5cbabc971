"""The streaming response by itself: framing, failures, and the promise that its work is stopped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rrtf_serve.api.errors import shutting_down
from rrtf_serve.api.sse import ClientGone, EventStream, event, unless_gone
from rrtf_serve.engine.protocol import EngineError

SCOPE: dict[str, Any] = {"type": "http", "rrtf.request_id": "req_1"}


class Client:
    """An ASGI server's two callables, and what passed through them."""

    def __init__(self, *, leaves_after: int | None = None, breaks: bool = False) -> None:
        self.sent: list[dict[str, Any]] = []
        self._leaves_after = leaves_after
        self._breaks = breaks
        self._gone = asyncio.Event()

    async def send(self, message: Any) -> None:
        if self._breaks and self.sent:
            raise OSError("broken pipe")
        self.sent.append(message)
        if len(self.sent) == self._leaves_after:
            self._gone.set()

    async def receive(self) -> dict[str, Any]:
        await self._gone.wait()
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def respond(client: Client, events: AsyncIterator[bytes]) -> list[str]:
    closed: list[str] = []
    response = EventStream(events, lambda: closed.append("closed"), {"x-a": "b"})
    await asyncio.wait_for(response(SCOPE, client.receive, client.send), 5)
    return closed


async def some(count: int, error: Exception | None = None) -> AsyncIterator[bytes]:
    for number in range(count):
        yield event({"n": number})
    if error is not None:
        raise error


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield event({})
        await asyncio.sleep(0.001)


def test_events_end_with_done() -> None:
    async def run() -> None:
        client = Client()
        assert await respond(client, some(2)) == ["closed"]
        assert client.body == b'data: {"n":0}\n\ndata: {"n":1}\n\ndata: [DONE]\n\n'
        headers = dict(client.sent[0]["headers"])
        assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
        assert headers[b"x-a"] == b"b"
        assert b"content-length" not in headers
        assert client.sent[-1]["more_body"] is False

    asyncio.run(run())


def test_line_separators_can_not_split_an_event() -> None:
    assert event({"text": "a\u2028b\u0085c\nd"}).count(b"\n") == 2
    assert event({"text": "\u2028"}).isascii()


def test_a_client_that_leaves_stops_the_work() -> None:
    async def run() -> None:
        client = Client(leaves_after=3)
        assert await respond(client, endless()) == ["closed"]
        assert b"[DONE]" not in client.body

    asyncio.run(run())


def test_a_broken_connection_stops_the_work() -> None:
    async def run() -> None:
        assert await respond(Client(breaks=True), endless()) == ["closed"]

    asyncio.run(run())


@pytest.mark.parametrize(
    ("error", "code"),
    [(EngineError("secret"), "internal_error"), (shutting_down(), "server_shutting_down")],
)
def test_a_failure_is_the_last_event(error: Exception, code: str) -> None:
    async def run() -> None:
        client = Client()
        assert await respond(client, some(1, error)) == ["closed"]
        last = json.loads(client.body.strip().split(b"\n\n")[-1].removeprefix(b"data: "))
        assert last["error"]["code"] == code
        assert b"secret" not in client.body
        assert b"[DONE]" not in client.body

    asyncio.run(run())


def test_work_is_cancelled_with_its_client() -> None:
    async def run() -> None:
        client = Client(leaves_after=1)
        stopped = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.sleep(60)
            finally:
                stopped.set()

        asyncio.get_running_loop().call_later(0.01, asyncio.ensure_future, client.send({}))
        with pytest.raises(ClientGone):
            await unless_gone(client.receive, work())
        assert stopped.is_set()

    asyncio.run(run())


def test_the_works_own_error_comes_through() -> None:
    async def run() -> None:
        async def work() -> None:
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await unless_gone(Client().receive, work())

    asyncio.run(run())
