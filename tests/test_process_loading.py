"""A server whose first model is being loaded: what answers, what ends it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from test_roster import Loader, known

from rrtf_serve.api.app import ApiSettings, Models, create_app
from rrtf_serve.models.errors import ModelError
from rrtf_serve.process import Ending, address_of, reserve, run
from rrtf_serve.roster import Residence, Roster

PATH = "/v1/completions"


def while_loading(
    loader: Loader, client_side: Callable[[httpx.AsyncClient, asyncio.Event], Awaitable[None]]
) -> bool:
    """Run a server whose first model is loaded by `loader`, and the client beside it; what `run` says."""

    async def both() -> bool:
        roster = Roster([known("a"), known("b")], loader, Residence(), free=lambda: loader.free)
        app = create_app(Models(roster.known, roster), settings=ApiSettings())
        greeted = asyncio.Event()

        with reserve("127.0.0.1", 0) as listener:
            address = address_of(listener)
            ending = Ending(60.0, delay_seconds=3600.0)
            running = asyncio.create_task(
                run(app, listener, roster, ending, begin=roster.begin, greet=greeted.set)
            )
            try:
                async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                    await client_side(client, greeted)
                return await running
            finally:
                loader.gate.set()
                if not running.done():
                    running.cancel()
                await roster.close(0)
                await roster.release()

    return asyncio.run(asyncio.wait_for(both(), 120))


def test_the_port_is_open_while_the_first_model_is_loaded() -> None:
    loader = Loader()
    loader.gate.clear()
    asks: dict[str, dict[str, Any]] = {
        PATH: {"prompt": "abc", "max_tokens": 2, "stream": True},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "model": "b"},
        "/infill": {"input_prefix": "a", "input_suffix": "b"},
        "/api/generate": {"model": "a", "prompt": "abc"},
        "/generate": {"inputs": "abc"},
    }

    async def client_side(client: httpx.AsyncClient, greeted: asyncio.Event) -> None:
        while True:
            try:
                assert (await client.get("/health")).status_code == 200
                break
            except httpx.ConnectError:  # not yet
                await asyncio.sleep(0.005)
        ready = await client.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "loading"})
        assert ready.headers["retry-after"]
        names = (await client.get("/v1/models")).json()["data"]
        assert [each["id"] for each in names] == ["a", "b"]
        for path, body in asks.items():
            answer = await client.post(path, json=body)
            assert answer.status_code == 503, path
            assert answer.headers["retry-after"] == "5"
            error = answer.json()["error"]
            message = error if isinstance(error, str) else error["message"]
            assert "'a' is being loaded" in message, path
        assert (await client.get("/health")).status_code == 200
        assert not greeted.is_set()
        assert loader.log == []
        loader.gate.set()
        await greeted.wait()
        assert (await client.get("/ready")).status_code == 200
        assert (await client.post(PATH, json={"prompt": "abc", "max_tokens": 2})).status_code == 200
        os.kill(os.getpid(), signal.SIGTERM)
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    assert while_loading(loader, client_side)
    assert loader.log == ["+a", "-a"]


def test_a_first_model_that_cannot_be_loaded_ends_the_server() -> None:
    loader = Loader(fails=ModelError("weights are cut"))
    loader.gate.clear()

    async def client_side(client: httpx.AsyncClient, greeted: asyncio.Event) -> None:
        loader.gate.set()

    with pytest.raises(ModelError, match="weights are cut"):
        while_loading(loader, client_side)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, False), (signal.SIGTERM, True)])
def test_a_signal_while_the_first_model_is_loaded_stops_after_it(number: signal.Signals, said: bool) -> None:
    loader = Loader()
    loader.gate.clear()
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    async def client_side(client: httpx.AsyncClient, greeted: asyncio.Event) -> None:
        while True:
            try:
                await client.get("/health")
                break
            except httpx.ConnectError:
                await asyncio.sleep(0.005)
        os.kill(os.getpid(), number)
        while True:
            try:
                await client.get("/health")
            except httpx.TransportError:  # the port is closed, the model not there yet
                break
        loader.gate.set()
        assert not greeted.is_set()

    try:
        assert while_loading(loader, client_side) is said
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)
    assert loader.log == ["+a", "-a"]
