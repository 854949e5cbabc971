"""`rrtf-bench soak`: thousands of requests, and whether the server is still what it was at the start.

Short requests of every kind of the mix `code`, clients that leave included. After the first `warm` requests,
then after every STEP and after the last one all clients pause, and memory (resident, after freed pages have
gone back), open files and threads of the server are noted: none of these looks may show more than the first.
Answers are checked as in `rrtf-bench load`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.holdings import Bounds, Holdings, grown, held_at_rest
from benchmarks.load import answer_all, answer_alone, memory_record
from benchmarks.load_asks import Ask, asks
from benchmarks.load_check import check
from benchmarks.load_client import Reply
from benchmarks.load_figures import by_kind, figures
from benchmarks.load_target import Target, own_target, watched
from benchmarks.machine import machine_record
from rrtf_serve.config import DEFAULT_MODEL

SHOWN_WRONG = 50
STEP = 500  # requests between two looks


@dataclass(frozen=True)
class SoakConfig:
    """Raises ValueError naming the flag."""

    model: str = DEFAULT_MODEL
    requests: int = 10_000
    warm: int = 1_000  # requests before the first look
    clients: int = 16
    max_tokens: int = 12  # of each answer
    most_growth: float = 0.02  # of resident memory, from the first look to any other
    seed: int = 0
    serve_flags: tuple[str, ...] = ()
    output: Path = Path("rrtf-soak")

    def __post_init__(self) -> None:
        for name in ("requests", "warm", "clients", "max_tokens"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; it must be at least 1")
        if self.warm >= self.requests:
            raise ValueError(f"--warm is {self.warm}; it must be less than --requests {self.requests}")


def soak(config: SoakConfig) -> dict[str, Any]:
    """The report; its "ok" is false on a wrong answer, or where the server came to hold more. Raises
    RuntimeError, OSError."""
    with own_target(config.model, config.serve_flags) as target:
        drawn = asks(config.requests, mix="code", seed=config.seed, infill=target.infill, model=target.model)
        todo = [_short(ask, config.max_tokens) for ask in drawn]
        alone, _ = asyncio.run(answer_alone(target, todo))
        started = time.perf_counter()
        with watched(target.pid) as memory:
            replies, looks = asyncio.run(_run(target, todo, config))
        seconds = time.perf_counter() - started
    wrong = check(replies, alone)
    first = looks[0].holds
    more = grown_since_first(looks, config.most_growth)
    report = {
        "model": target.model,
        "flags": list(target.flags),
        "requests": len(replies),
        "clients": config.clients,
        "seconds": seconds,
        "first_look": looks[0].record(),
        "last_look": looks[-1].record(),
        "memory_growth": max(look.holds.resident_mb for look in looks[1:]) / first.resident_mb - 1,
        "most_growth": config.most_growth,
        "looks": [look.record() for look in looks],
        "grown": more,
        "memory_mb": memory_record(memory),
        "all": figures(replies, seconds),
        "kinds": by_kind(replies, seconds),
        "wrong": len(wrong),
        "wrong_answers": [each.line() for each in wrong[:SHOWN_WRONG]],
        "ok": not (wrong or more),
        "machine": machine_record(),
    }
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "soak.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    return report


def _short(ask: Ask, max_tokens: int) -> Ask:
    # A client that leaves must have something to leave.
    least = max_tokens if ask.leave_after is None else 64
    return replace(ask, body={**ask.body, "max_tokens": min(ask.body["max_tokens"], least)})


@dataclass(frozen=True)
class Look:
    """At a server that rests, after so many requests."""

    requests: int
    holds: Holdings

    def record(self) -> dict[str, float]:
        return {"requests": self.requests, **self.holds.record()}


def grown_since_first(looks: Sequence[Look], most_growth: float) -> list[str]:
    """What any later look shows too much of, in words."""
    return [
        f"after {look.requests} requests: {problem}"
        for look in looks[1:]
        for problem in grown(looks[0].holds, look.holds, Bounds(most_growth))
    ]


async def _run(target: Target, todo: Sequence[Ask], config: SoakConfig) -> tuple[list[Reply], list[Look]]:
    """All replies, and the server between them: after `warm` requests, then every STEP, and at the end."""
    assert target.pid is not None
    borders = [*range(config.warm, len(todo), STEP), len(todo)]
    replies: list[Reply] = []
    looks = []
    begin = 0
    for border in borders:
        made, _ = await answer_all(target, todo[begin:border], config.clients, f"soak-{begin}")
        replies += made
        looks.append(Look(border, held_at_rest(target.pid)))
        begin = border
    return replies, looks
