"""A server told by signals: reading again, draining, ending; and which proxies it believes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, byte_tokenizer
from fastapi import FastAPI
from live import NAME

from rrtf_serve.api.app import ApiSettings, Models, Served, create_app
from rrtf_serve.api.keys import Keyring
from rrtf_serve.api.log import RequestLog
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import Origins
from rrtf_serve.engine.protocol import TokenLogprob
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.main import Operation
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.process import Ending, address_of, reserve, run

PATH = "/v1/completions"


def api(engine: FakeEngine, operation: Operation) -> tuple[FastAPI, Scheduler]:
    tokenizer = byte_tokenizer()
    scheduler = Scheduler(engine)
    prompts = Prompts(
        tokenizer, FAMILIES["qwen2.5-coder"], chat_template="", add_bos=False, bos_token="", end_tokens=[]
    )  # fmt: skip
    card = Card(NAME, "qwen2", "qwen2.5-coder", 512, "int8")
    served = Served(NAME, (), card, tokenizer, prompts, 0, 512, scheduler=scheduler)
    app = create_app(
        Models([served]),
        settings=ApiSettings(),
        keys=operation.keys,
        metrics=operation.metrics,
        log=operation.requests,
    )
    return app, scheduler


def under_signals(
    client_side: Callable[[httpx.AsyncClient], Awaitable[None]],
    engine: FakeEngine,
    operation: Operation,
    ending: Ending,
    **more: Any,
) -> None:
    """Run the server on this thread, as signals ask for, and the client beside it."""

    async def both() -> None:
        app, scheduler = api(engine, operation)
        ready = asyncio.Event()
        with reserve("127.0.0.1", 0) as listener:
            address = address_of(listener)
            running = asyncio.create_task(
                run(app, listener, scheduler, ending, greet=ready.set, hang_up=operation.hang_up, **more)
            )
            try:
                await ready.wait()
                async with httpx.AsyncClient(base_url=address, timeout=60) as client:
                    await client_side(client)
                await running
            finally:
                engine.open.set()
                if not running.done():
                    running.cancel()
                await scheduler.close(0)

    asyncio.run(asyncio.wait_for(both(), 120))


@pytest.fixture
def operation(tmp_path: Path) -> Operation:
    file = tmp_path / "keys"
    file.write_text("alice:one\n")
    metrics = Metrics()
    return Operation(
        Keyring(file=file, poll_seconds=3600),
        Origins(),
        metrics,
        RequestLog("json", tmp_path / "log", lost=metrics.lost_lines.inc),
    )


def test_sighup_reads_keys_and_opens_the_log_again(operation: Operation, tmp_path: Path) -> None:
    async def client_side(client: httpx.AsyncClient) -> None:
        async def status(key: str) -> int:
            return (await client.get("/v1/models", headers={"api-key": key})).status_code

        assert [await status("one"), await status("two")] == [200, 401]
        (tmp_path / "keys").write_text("bob:two\n")
        (tmp_path / "log").rename(tmp_path / "log.1")
        os.kill(os.getpid(), signal.SIGHUP)
        while await status("two") != 200:
            await asyncio.sleep(0.005)
        assert await status("one") == 401
        os.kill(os.getpid(), signal.SIGTERM)

    under_signals(client_side, FakeEngine(), operation, Ending(5.0))
    operation.requests.close()
    old, new = ((tmp_path / name).read_text().splitlines() for name in ("log.1", "log"))
    assert json.loads(old[0])["key"] == "alice"
    assert json.loads(new[-1])["error"] == "invalid_api_key"


def test_a_stopping_server_first_says_that_it_is_not_ready_and_then_finishes_what_it_accepted(
    operation: Operation,
) -> None:
    engine = FakeEngine()
    engine.open.clear()
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}
    headers = {"api-key": "one"}

    async def client_side(client: httpx.AsyncClient) -> None:
        assert (await client.get("/ready")).status_code == 200
        async with client.stream("POST", PATH, json=body, headers=headers) as first:
            os.kill(os.getpid(), signal.SIGTERM)
            while (draining := await client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            assert (draining.status_code, draining.json()) == (503, {"status": "draining"})
            assert draining.headers["retry-after"]
            assert (await client.get("/health")).status_code == 200
            # Who has not heard of it yet is still served.
            async with client.stream("POST", PATH, json=body, headers=headers) as second:
                assert second.status_code == 200
                engine.open.set()
                for answer in (first, second):
                    assert (await answer.aread()).endswith(b"data: [DONE]\n\n")

    under_signals(client_side, engine, operation, Ending(60.0, delay_seconds=6.0))


def test_a_second_signal_ends_the_delay_and_the_answers(operation: Operation) -> None:
    engine = FakeEngine()
    engine.open.clear()
    body = {"prompt": "abc", "max_tokens": 4, "stream": True}

    async def client_side(client: httpx.AsyncClient) -> None:
        async with client.stream("POST", PATH, json=body, headers={"api-key": "one"}) as answer:
            os.kill(os.getpid(), signal.SIGTERM)
            while (await client.get("/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            os.kill(os.getpid(), signal.SIGTERM)
            assert b"server_shutting_down" in await answer.aread()

    under_signals(client_side, engine, operation, Ending(3600.0, delay_seconds=3600.0))


def test_a_second_signal_does_not_wait_for_a_body_that_never_comes(
    operation: Operation, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    async def client_side(client: httpx.AsyncClient) -> None:
        host, port = client.base_url.host, client.base_url.port
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nApi-Key: one\r\n")
        writer.write(b"Content-Type: application/json\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
        assert b"100 Continue" in await reader.readuntil(b"\r\n\r\n")  # the body is waited for
        writer.write(b'{"prompt": ')
        os.kill(os.getpid(), signal.SIGTERM)
        while (await client.get("/ready")).status_code == 200:
            await asyncio.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await reader.read() == b""
        writer.close()

    # Twice longer than the test may take.
    under_signals(client_side, FakeEngine(), operation, Ending(3600.0, delay_seconds=3600.0))
    operation.requests.close()
    line = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert (line["route"], line["gone"]) == (PATH, True)
    assert "Traceback" not in capsys.readouterr().err  # of a handler that was cancelled


def test_requests_of_several_steps_finish_within_the_drain(operation: Operation) -> None:
    engine = Slow()
    engine.open.clear()
    scores = {"prompt": ["abc", "def", "ghi"], "max_tokens": 0, "echo": True, "logprobs": 0}
    then_decoded = {"prompt": "xyz", "max_tokens": 4, "echo": True, "logprobs": 0}

    async def client_side(client: httpx.AsyncClient) -> None:
        headers = {"api-key": "one"}
        asked = [
            asyncio.create_task(client.post(PATH, json=body, headers=headers))
            for body in (scores, then_decoded)
        ]
        await asyncio.to_thread(engine.scoring.wait, 60)
        os.kill(os.getpid(), signal.SIGTERM)
        while True:  # until the port is closed
            try:
                (await asyncio.open_connection(client.base_url.host, client.base_url.port))[1].close()
            except OSError:
                break
            await asyncio.sleep(0.01)
        engine.open.set()
        assert [(await each).status_code for each in asked] == [200, 200]

    under_signals(client_side, engine, operation, Ending(60.0))


class Slow(FakeEngine):
    """Whose scores wait, as its steps do."""

    def __init__(self) -> None:
        super().__init__()
        self.scoring = threading.Event()

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        self.scoring.set()
        self.open.wait()
        return super().score(prompt, top)


STUCK = """
import asyncio, json, threading
from rrtf_serve.api.keys import Keyring
from rrtf_serve.api.log import RequestLog
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import Origins
from rrtf_serve.main import Operation
from rrtf_serve.process import Ending, address_of, leave_within, reserve, run
from fake_engine import FakeEngine
from test_process import api

class Stuck(FakeEngine):
    def score(self, prompt, top):
        print("stuck", flush=True)
        threading.Event().wait()

log = RequestLog("json", None, lost=lambda: None)
app, scheduler = api(Stuck(), Operation(Keyring([]), Origins(), Metrics(), log))

async def main(listener):
    await run(
        app, listener, scheduler, Ending(DRAIN), greet=lambda: print(address_of(listener), flush=True),
        at_last=lambda seconds, status: leave_within(seconds, status, log.close),
    )

with reserve("127.0.0.1", 0) as listener:
    asyncio.run(main(listener))
"""


@pytest.mark.parametrize(("signals", "drain"), [(1, 0.2), (2, 3600.0)])
def test_what_cannot_be_stopped_does_not_hold_the_process_back(signals: int, drain: float) -> None:
    """As a long prompt that CTranslate2 reads: its client has gone, its thread goes on."""
    command = [sys.executable, "-c", STUCK.replace("DRAIN", str(drain))]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None and process.stderr is not None
            address = process.stdout.readline().strip()
            body = {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 0}
            with (
                httpx.Client(base_url=address, timeout=60) as client,
                ThreadPoolExecutor(1) as beside,
            ):
                answer = beside.submit(client.post, PATH, json=body)
                assert process.stdout.readline() == "stuck\n"
                for _ in range(signals):
                    process.send_signal(signal.SIGTERM)
                    time.sleep(0.5)  # two at once would be one
                assert process.wait(60) == 0
                assert answer.result().json()["error"]["code"] == "server_shutting_down"
            said = process.stderr.read()
            assert "ended without waiting" in said and "server_shutting_down" in said
            assert "Traceback" not in said
        finally:
            process.kill()


def test_a_proxy_is_believed_only_where_it_was_named(operation: Operation, tmp_path: Path) -> None:
    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}

    async def client_side(client: httpx.AsyncClient) -> None:
        await client.get("/v1/models", headers=headers)
        os.kill(os.getpid(), signal.SIGTERM)

    under_signals(client_side, FakeEngine(), operation, Ending(5.0), trusted_proxies=("127.0.0.1",))
    under_signals(client_side, FakeEngine(), operation, Ending(5.0))
    operation.requests.close()
    lines = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["client"] for line in lines] == ["203.0.113.7", "127.0.0.1"]
