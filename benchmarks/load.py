"""`rrtf-bench load`: many clients at once, and whether anybody got a wrong answer.

Every question of the load whose answer is the same each time is asked once alone, by one client. Then all
requests come at once, from `clients` of them, over kept connections. A refused request (429) is sent again
after its Retry-After and counted. A server that was started here must hold no more at rest than before.
Report: `load.json` and `load.md` in the output folder.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.holdings import Bounds, Holdings, grown, held_at_rest
from benchmarks.load_asks import Ask, asks
from benchmarks.load_check import Alone, alone_of, check
from benchmarks.load_client import Reply, client, send
from benchmarks.load_figures import by_kind, figures
from benchmarks.load_report import load_page
from benchmarks.load_target import Memory, Target, described, own_target, watched
from benchmarks.machine import machine_record
from rrtf_serve.config import DEFAULT_MODEL

SHOWN_WRONG = 50
# Of memory at rest, from the questions asked alone to the end: beside one client many need more, once.
REST = Bounds(growth=0.1, spare_mb=50)
# Of the largest memory under load, from the first half of the time to the second.
PEAK = Bounds(growth=0.25, spare_mb=50)
LEAST_SAMPLES = 60  # seconds of either half: the peaks of shorter ones are chance


@dataclass(frozen=True)
class LoadConfig:
    """Raises ValueError naming the flag."""

    model: str = DEFAULT_MODEL
    url: str | None = None  # of a server that runs; None: one is started
    api_key: str | None = None
    clients: int = 32
    requests: int = 2000
    mix: str = "code"
    seed: int = 0
    serve_flags: tuple[str, ...] = ()
    output: Path = Path("rrtf-load")

    def __post_init__(self) -> None:
        for name in ("clients", "requests"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if self.url and self.serve_flags:
            raise ValueError("--serve-flags: they are for a server that is started here; leave out --url")


@contextmanager
def target_of(config: LoadConfig) -> Iterator[Target]:
    if config.url is None:
        with own_target(config.model, config.serve_flags) as target:
            yield target
    else:
        yield described(config.url.rstrip("/").removesuffix("/v1"), key=config.api_key)


def load(config: LoadConfig) -> dict[str, Any]:
    """The report; its "ok" is false where an answer was wrong, or the server came to hold more. Raises
    RuntimeError, OSError."""
    with target_of(config) as target:
        todo = asks(
            config.requests, mix=config.mix, seed=config.seed, infill=target.infill, model=target.model
        )
        alone, alone_s = asyncio.run(answer_alone(target, todo))
        before = held_at_rest(target.pid) if target.pid else None
        with watched(target.pid) as memory:
            replies, wall_s = asyncio.run(answer_all(target, todo, config.clients))
            report = _report(config, target, replies, wall_s, memory)
        after = held_at_rest(target.pid) if target.pid else None
    wrong = check(replies, alone)
    more = [] if before is None or after is None else grown(before, after, REST)
    more += rising(memory.samples) if memory else []
    report |= {
        "alone": {"questions": len(alone), "seconds": alone_s},
        "wrong": len(wrong),
        "wrong_answers": [each.line() for each in wrong[:SHOWN_WRONG]],
        "rest": {"before": before and before.record(), "after": after and after.record()},
        "grown": more,
        "ok": not (wrong or more),
    }
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "load.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (config.output / "load.md").write_text(load_page(report), "utf-8")
    return report


async def answer_alone(target: Target, todo: Sequence[Ask]) -> tuple[dict[str, Alone], float]:
    """Each repeatable question once, one after another; raises RuntimeError where even that goes wrong."""
    questions = {ask.question: ask.alone() for ask in todo if ask.repeatable}
    replies, seconds = await answer_all(target, list(questions.values()), 1, "alone")
    for reply in replies:
        if reply.faults:
            raise RuntimeError(f"alone, {reply.ask.kind}: {'; '.join(reply.faults)}")
    return {reply.ask.question: alone_of(reply) for reply in replies}, seconds


async def answer_all(
    target: Target, todo: Sequence[Ask], clients: int, name: str = "load"
) -> tuple[list[Reply], float]:
    """All answers, in the order of their asks, and the seconds that they took: each of so many clients sends
    the next request once it has the answer to its last. name: of the bar; made a word, it begins the
    requests' ids."""
    replies: list[Reply | None] = [None] * len(todo)
    left = iter(enumerate(todo))
    word = re.sub(r"[^a-z0-9]+", "-", name.lower())
    async with client(target.address, target.key, clients) as http:
        with tqdm(total=len(todo), desc=name) as bar:

            async def one_client() -> None:
                for number, ask in left:
                    replies[number] = await send(http, ask, f"{word}-{number}", strict=target.ours)
                    bar.update()

            started = time.perf_counter()
            await asyncio.gather(*(one_client() for _ in range(clients)))
            seconds = time.perf_counter() - started
    return [reply for reply in replies if reply is not None], seconds


def _report(
    config: LoadConfig, target: Target, replies: list[Reply], wall_s: float, memory: Memory | None
) -> dict[str, Any]:
    return {
        "model": target.model,
        "flags": list(target.flags),
        "clients": config.clients,
        "requests": len(replies),
        "mix": config.mix,
        "seed": config.seed,
        "seconds": wall_s,
        "left": sum(reply.left for reply in replies),
        "all": figures(replies, wall_s),
        "kinds": by_kind(replies, wall_s),
        "memory_mb": memory_record(memory),
        "machine": machine_record(),
    }


def rising(samples: Sequence[float]) -> list[str]:
    """Resident MB, looked at every second, must not go on growing: what is wrong with them, in words."""
    half = len(samples) // 2
    if half < LEAST_SAMPLES:
        return []
    first, second = max(samples[:half]), max(samples[half:])
    if second <= PEAK.most_mb(Holdings(first, 0, 0)):
        return []
    return [f"{second:.0f} MB were resident at most in the second half of the load, {first:.0f} in the first"]


def memory_record(memory: Memory | None) -> dict[str, Any] | None:
    """Resident MB of the server: at the start, the most, at the end, and each second's."""
    if memory is None or not memory.samples:
        return None
    first, last = memory.samples[0], memory.samples[-1]
    return {"first": first, "most": max(memory.samples), "last": last, "every_second": memory.samples}
