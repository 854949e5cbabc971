"""What the server costs: start-up, memory, and the HTTP layer over the engine called directly."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from tqdm import trange

from benchmarks.holdings import SETTLE_S
from benchmarks.machine import machine_record
from benchmarks.server import PAUSE_S, StreamTiming, post_json, resident_mb, running_server, time_stream_apart
from benchmarks.spread import summary
from rrtf_serve.api.app import ApiSettings, Models, create_app
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.protocol import Request, Sampling
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.models.folder import Card, describe
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.preparation import prepare
from rrtf_serve.prepared import known_of, served
from rrtf_serve.process import address_of, reserve

CODE = '''def quicksort(items):
    """Sort a list of numbers and return a new list."""
    if len(items) <= 1:
        return items
    pivot = items[len(items) // 2]
    left = [item for item in items if item < pivot]
    middle = [item for item in items if item == pivot]
    right = [item for item in items if item > pivot]
    return quicksort(left) + middle + quicksort(right)


'''


def code_prompt(tokenizer: Tokenizer, tokens: int) -> tuple[int, ...]:
    """Exactly `tokens` token ids of Python source."""
    ids = tokenizer.encode(CODE, specials=False)
    return tuple((ids * (tokens // len(ids) + 1))[:tokens])


def measure_overhead(
    model: str, *, repeats: int, prompt_tokens: int = 64, new_tokens: int = 64
) -> dict[str, Any]:
    """Interleaved runs of one greedy completion: engine called directly, then the same engine through HTTP.

    Decode is tokens/s after the first token; TTFT in milliseconds. One engine serves both sides, since two
    copies of a model differ in speed by more than what is measured here (how their memory came to lie). The
    client runs in a process of its own.
    """
    folder = prepare(ServeConfig(model=model))
    card = describe(folder, name=folder.name, family=None, context_length=None)
    prompt = code_prompt(Tokenizer.load(folder), prompt_tokens)
    direct: list[StreamTiming] = []
    served: list[StreamTiming] = []
    engine = Ct2Engine(folder, context_length=card.context_length)
    try:
        with _served_by(engine, folder, card) as address:
            body = {"prompt": list(prompt), "max_tokens": new_tokens, "temperature": 0}
            url = f"{address}/v1/completions"
            time_stream_apart(url, body), _time_engine(engine, prompt, new_tokens)  # warm both
            for _ in trange(repeats, desc="interleaved runs"):
                time.sleep(PAUSE_S)
                direct.append(_time_engine(engine, prompt, new_tokens))
                served.append(time_stream_apart(url, body))
    finally:
        engine.close()
    pairs = list(zip(direct, served, strict=True))
    return {
        "model": card.name,
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "direct": _timings(direct),
        "http": _timings(served),
        "decode_cost_percent": summary(
            [100 * (1 - over.decode_tokens_per_s / base.decode_tokens_per_s) for base, over in pairs]
        ),
        "ttft_cost_ms": summary([1000 * (over.ttft_s - base.ttft_s) for base, over in pairs]),
        "machine": machine_record(),
    }


@contextmanager
def _served_by(engine: Ct2Engine, folder: Path, card: Card) -> Iterator[str]:
    """The API over `engine` in a thread of this process; yields its address."""
    scheduler = Scheduler(engine)
    model = served(known_of(ServeConfig(), folder, card), scheduler)
    with reserve("127.0.0.1", 0) as listener:
        listener.listen()
        server = uvicorn.Server(
            uvicorn.Config(create_app(Models([model]), settings=ApiSettings()), log_level="warning")
        )
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            yield address_of(listener)
        finally:
            server.should_exit = True
            thread.join()
            asyncio.run(scheduler.close(0))


def _time_engine(engine: Ct2Engine, prompt: tuple[int, ...], new_tokens: int) -> StreamTiming:
    request = Request(prompt, new_tokens, frozenset(), Sampling(temperature=0))
    started = time.perf_counter()
    batch = engine.start([request])
    arrivals: list[float] = []
    try:
        while deltas := batch.step():
            arrivals += [time.perf_counter() for delta in deltas if delta.token is not None]
    finally:
        batch.close()
    return StreamTiming(arrivals[0] - started, (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]))


def _timings(runs: list[StreamTiming]) -> dict[str, Any]:
    return {
        "decode_tokens_per_s": summary([run.decode_tokens_per_s for run in runs]),
        "ttft_ms": summary([1000 * run.ttft_s for run in runs]),
    }


def measure_memory(model: str, *, prompt_tokens: int = 1024) -> dict[str, Any]:
    """Resident MB of the whole server, page included: idle, after a short answer, after a long prompt."""
    folder = prepare(ServeConfig(model=model))
    prompt = list(code_prompt(Tokenizer.load(folder), prompt_tokens))
    with running_server("--model", model) as server:
        idle, _ = resident_mb(server.pid)
        url = f"{server.address}/v1/completions"
        post_json(url, {"prompt": prompt[:16], "max_tokens": 8, "temperature": 0})
        short, _ = resident_mb(server.pid)
        post_json(url, {"prompt": prompt, "max_tokens": 8, "temperature": 0})
        long, peak = resident_mb(server.pid)
        time.sleep(SETTLE_S)
        settled, _ = resident_mb(server.pid)
    return {
        "model": model,
        "prompt_tokens": prompt_tokens,
        "idle_mb": idle,
        "after_short_answer_mb": short,
        "after_long_prompt_mb": long,
        f"{SETTLE_S:g}_s_later_mb": settled,
        "peak_mb": peak,
        "machine": machine_record(),
    }


def measure_startup(model: str, *, repeats: int) -> dict[str, Any]:
    """Seconds from starting `rrtf-serve` (model already converted) to ready, and to the first token."""
    prepare(ServeConfig(model=model))
    ready, answered = [], []
    for _ in trange(repeats, desc="starts"):
        started = time.monotonic()
        with running_server("--model", model) as server:
            ready.append(server.seconds_to_ready)
            post_json(f"{server.address}/v1/completions", {"prompt": "def fib(n):", "max_tokens": 1})
            answered.append(time.monotonic() - started)
    return {
        "model": model,
        "ready_s": summary(ready),
        "first_token_s": summary(answered),
        "machine": machine_record(),
    }
