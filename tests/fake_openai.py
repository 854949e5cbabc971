"""A server that speaks the shapes of the OpenAI API without a model, slowly enough to be stopped.

For tests of the page alone: it counts the answers that run and those whose client left, and fails on demand.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from ui.page import mount

ANSWER = "Here it is:\n\n```python\ndef add(a, b):\n    return a + b\n```\n\nIt returns the sum."
INNER_KEY = "the-key-of-the-page"  # and of which visitor, see inner_key
FILL = "return a + b"
MODEL = {
    "id": "tiny-coder",
    "object": "model",
    "created": 1,
    "owned_by": "tests",
    "max_model_len": 4096,
    "card": {
        "name": "tiny-coder",
        "architecture": "qwen2",
        "family": "qwen2.5-coder",
        "context_length": 4096,
        "quantization": "int8",
        "licence": "Apache-2.0",
        "source": {"origin": "hub:tests/<tiny>@main", "sha256": "ab" * 32},
        "tools": {"ctranslate2": "4.8.5"},
        "size_bytes": 508_000_000,
    },
}


Failure = tuple[int, dict[str, Any], dict[str, str]]  # status, error object, headers


@dataclass
class Fake:
    """What the tests set and read. `delay` is seconds per streamed piece."""

    delay: float = 0.01
    answer: str = ANSWER
    infill: bool = True
    fill: str = FILL
    pieces: int = 0  # 0: the answer once; else that many short pieces
    failure: Failure | None = None
    break_after: int | None = None  # an error object in mid-stream after so many pieces
    running: int = 0
    left: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    interactive: list[str | None] = field(default_factory=list)  # the header of each body
    keys: list[str] = field(default_factory=list)

    def reset(self) -> None:
        self.__dict__.update(Fake().__dict__)


Shape = Callable[[str], dict[str, Any]]


def chat_choice(text: str) -> dict[str, Any]:
    return {"delta": {"content": text}}


def text_choice(text: str) -> dict[str, Any]:
    return {"text": text, "logprobs": None}


def add_api(app: FastAPI, fake: Fake) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        fake.keys.append(request.headers.get("authorization", ""))
        return JSONResponse({"object": "list", "data": [{**MODEL, "infill": fake.infill}]})

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await reply(request, chat_choice, "chat.completion.chunk", fake.answer)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await reply(request, text_choice, "text_completion", fake.fill)

    async def reply(request: Request, shape: Shape, kind: str, answer: str) -> Response:
        fake.keys.append(request.headers.get("authorization", ""))
        fake.bodies.append(await request.json())
        fake.interactive.append(request.headers.get("x-rrtf-interactive"))
        if fake.failure is not None:
            status, error, headers = fake.failure
            return JSONResponse({"error": error}, status, headers)
        pieces = [f"word{i} " for i in range(fake.pieces)]
        pieces = pieces or [answer[i : i + 4] for i in range(0, len(answer), 4)]
        return StreamingResponse(events(pieces, shape, kind), media_type="text/event-stream")

    async def events(pieces: list[str], shape: Shape, kind: str) -> AsyncIterator[str]:
        def event(**fields: Any) -> str:
            head = {"id": "x-1", "object": kind, "created": 1, "model": MODEL["id"]}
            return f"data: {json.dumps({**head, **fields})}\n\n"

        fake.running += 1
        finished = False
        try:
            for number, piece in enumerate(pieces):
                await asyncio.sleep(fake.delay)
                if number == fake.break_after:
                    yield event(error={"message": "The engine failed.", "type": "server_error"})
                    break
                yield event(choices=[{"index": 0, "finish_reason": None, **shape(piece)}])
            else:
                yield event(choices=[{"index": 0, "finish_reason": "stop", **shape("")}])
                made = len(pieces)
                usage = {"prompt_tokens": 3, "completion_tokens": made, "total_tokens": 3 + made}
                yield event(choices=[], usage=usage)
            yield "data: [DONE]\n\n"
            finished = True
        finally:
            fake.running -= 1
            fake.left += not finished


@contextmanager
def serving(app: FastAPI, listener: socket.socket) -> Iterator[str]:
    """Run `app` in a thread; gives its origin, http://127.0.0.1:port."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the test server did not start"
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()


@contextmanager
def page_over(fake: Fake, *, keys: set[str] | None = None, port: int = 0) -> Iterator[str]:
    """The page over `fake`, in one process as `rrtf-serve` does it; gives the origin."""
    listener = free_listener(port)
    app = FastAPI()
    add_api(app, fake)

    async def put() -> None:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        inner = None if keys is None else {key: inner_key(key) for key in keys}
        mount(app, base_url=base_url, exchange=None if inner is None else inner.get)

    # In a thread: the browser's driver keeps an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, put()).result()
    with serving(app, listener) as origin:
        yield origin


def inner_key(visitors: str) -> str:
    """With which key the page of `page_over` calls the API for a visitor with this one."""
    return f"{INNER_KEY}-for-{visitors}"


def free_listener(port: int = 0) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    return listener


if __name__ == "__main__":  # python fake_openai.py PORT PIECES: a page whose server a test can kill
    with page_over(Fake(pieces=int(sys.argv[2]), delay=0.02), port=int(sys.argv[1])) as origin:
        print(origin, flush=True)
        threading.Event().wait()
