"""Real servers for tests: uvicorn in a thread for a fake engine, in a process for a real model.

with serving(FakeEngine()) as server: httpx.get(server.address + "/health")
def test(live_server): ...      # rrtf-serve on smollm2-135m-instruct, once per session; see conftest.py
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fake_engine import FakeEngine, byte_tokenizer

from rrtf_serve.api.app import ApiSettings, Models, Served, create_app
from rrtf_serve.api.keys import Keyring
from rrtf_serve.api.log import RequestLog
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.connection import Lobby, protocol
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts

NAME = "tiny-coder"


@dataclass
class Running:
    address: str  # http://127.0.0.1:port
    engine: FakeEngine
    scheduler: Scheduler
    served: Served


# Makes a server's model say a text, whatever the prompt, and then end, unless told `then_end=False`.
Say = Callable[..., Running]


@contextmanager
def serving(
    engine: FakeEngine | None = None,
    *,
    family: str = "qwen2.5-coder",
    settings: ApiSettings | None = None,
    max_queue: int = 64,
    prefill_speed: float | None = None,
    keys: Keyring | None = None,
    metrics: Metrics | None = None,
    log: RequestLog | None = None,
) -> Iterator[Running]:
    """The API over a fake engine, in a thread of this process."""
    engine = engine or FakeEngine()
    tokenizer = byte_tokenizer()
    card = Card(NAME, "qwen2", family, engine.capabilities.max_context, "int8")
    metrics = metrics or Metrics()
    scheduler = Scheduler(engine, max_queue=max_queue, observer=metrics.observer(NAME))
    prompts = Prompts(
        tokenizer,
        FAMILIES[family],
        chat_template="",
        add_bos=False,
        bos_token="",
        end_tokens=["<|endoftext|>"],
    )
    served = Served(
        NAME, ("tiny", "org/tiny-coder"), card, tokenizer, prompts, 1_700_000_000,
        engine.capabilities.max_context, scheduler=scheduler, prefill_speed=prefill_speed,
    )  # fmt: skip
    app_settings = settings or ApiSettings()
    app = create_app(Models([served]), settings=app_settings, keys=keys, metrics=metrics, log=log)
    # asyncio sets TCP_NODELAY only where the protocol is named; without it each answer on a kept connection
    # takes 40 ms.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        seconds = app_settings.receive_seconds or 30.0
        config = uvicorn.Config(
            app, log_level="critical", ws="none", timeout_graceful_shutdown=5, http=protocol(Lobby(seconds))
        )
        server = uvicorn.Server(config)

        async def run() -> None:
            await server.serve(sockets=[listener])
            await scheduler.close(1.0)

        thread = threading.Thread(target=lambda: asyncio.run(run()), name="live-server")
        thread.start()
        try:
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}", engine, scheduler, served)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"


@dataclass
class LiveServer:
    address: str  # http://127.0.0.1:port
    base_url: str  # address + /v1
    model: str
    process: subprocess.Popen[str]


@contextmanager
def rrtf_serve(model: str, *flags: str, env: dict[str, str] | None = None) -> Iterator[LiveServer]:
    """`rrtf-serve` as a user starts it, on a free port; the model is fetched and converted where need be."""
    command = [sys.executable, "-m", "rrtf_serve.main", "--model", model, "--port", "0", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **(env or {})})
    assert process.stdout is not None
    try:
        said = []
        for line in process.stdout:
            said.append(line)
            if match := re.search(r"API\s+(http://\S+)/v1", line):
                break
        else:
            raise AssertionError(f"rrtf-serve ended with {process.wait()}: {''.join(said)}")
        name = said[0].split(" is ready", 1)[0].strip()
        # The rest of the banner must not fill the pipe.
        drain = threading.Thread(target=process.stdout.read, daemon=True)
        drain.start()
        yield LiveServer(match[1], f"{match[1]}/v1", name, process)
    finally:
        process.terminate()
        process.wait(60)
        if "drain" in locals():
            drain.join(10)
        process.stdout.close()
