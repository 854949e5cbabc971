"""An engine whose batches each move when the test says so, and a record of what it was asked to run.

A row counts up from its first prompt token, in hundreds of its own: no two rows make the same tokens.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from rrtf_serve.engine.observer import Ending, Observer, Refusal
from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, Request, Sampling, TokenLogprob
from rrtf_serve.engine.scheduler import Scheduler

GREEDY = Sampling(temperature=0)
RANDOM = Sampling(temperature=1.0)
NO_END: frozenset[int] = frozenset()

TWO_LANES = Capabilities(
    200,
    4,
    5,
    50,
    max_batch_tokens=200,
    parallel_batches=2,
    interactive_rows=4,
    interactive_tokens=60,
)
ADMITTING = Capabilities(
    200,
    8,
    5,
    50,
    max_batch_tokens=400,
    admission=True,
    mixed_sampling=True,
    independent_rows=True,
    seed=True,
    interactive_rows=2,
    interactive_tokens=100,
)
ONE_LANE = Capabilities(200, 4, 5, 50, max_batch_tokens=200)


def row(first: int, max_tokens: int = 4, sampling: Sampling = GREEDY, length: int = 1) -> Request:
    return Request((100 * first,) * length, max_tokens, NO_END, sampling)


def answer(first: int, count: int) -> list[int]:
    return [100 * first + step for step in range(1, count + 1)]


@dataclass
class Stepping:
    capabilities: Capabilities = TWO_LANES
    batches: list[SteppingBatch] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)
    free: bool = False  # every batch moves without being told

    @property
    def started(self) -> list[list[int]]:
        """Of each batch the numbers of its rows, in the order they came."""
        return [batch.order for batch in self.batches]

    def start(self, requests: list[Request]) -> SteppingBatch:
        if any(request.prompt[0] < 0 for request in requests):
            raise ValueError("token id -100 is outside the vocabulary")
        batch = SteppingBatch(self, requests)
        self.batches.append(batch)
        running = [each for each in self.batches if each.rows]
        assert len(running) <= self.capabilities.parallel_batches
        return batch

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        self.scored.append(prompt[0] // 100)
        return [TokenLogprob(token, -1.0) for token in prompt[1:]]

    def score_pieces(self, prompt: tuple[int, ...], top: int) -> Iterator[list[TokenLogprob]]:
        yield self.score(prompt, top)

    def release(self) -> None:
        self.free = True
        for batch in self.batches:
            batch.gate.release()

    def close(self) -> None:
        pass


class SteppingBatch:
    def __init__(self, engine: Stepping, requests: list[Request]) -> None:
        self._engine = engine
        self.gate = threading.Semaphore(0)
        self.rows = dict(enumerate(requests))
        self.order = [request.prompt[0] // 100 for request in requests]
        self._made: Counter[int] = Counter()
        self._next = len(requests)
        self._cancelled: set[int] = set()
        self.error: Exception | None = None  # of the next step

    def admit(self, requests: list[Request]) -> int:
        assert self.rows, "the batch had ended"
        if any(request.prompt[0] < 0 for request in requests):
            raise ValueError("token id -100 is outside the vocabulary")
        first = self._next
        self.rows |= dict(enumerate(requests, first))
        self.order += [request.prompt[0] // 100 for request in requests]
        self._next += len(requests)
        return first

    def step(self) -> list[Delta]:
        if not self.rows:
            return []
        if not self._engine.free:
            self.gate.acquire()
        if self.error is not None:
            self.rows.clear()
            raise self.error
        return [self._move(number, request) for number, request in list(self.rows.items())]

    def move(self) -> list[Delta] | None:
        return self.step()

    def _move(self, number: int, request: Request) -> Delta:
        if number in self._cancelled:
            del self.rows[number]
            return Delta(number, None, "cancelled")
        self._made[number] += 1
        last = self._made[number] == request.max_tokens
        if last:
            del self.rows[number]
        return Delta(number, request.prompt[0] + self._made[number], "length" if last else None)

    def cancel(self, row: int) -> None:
        self._cancelled.add(row)

    def close(self) -> None:
        self.rows.clear()

    def fail(self) -> None:
        self.error = EngineError("the test said so")
        self.gate.release()


class Recorder(Observer):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.waiting = self.rows = 0
        self.most_waiting = 0
        self.starts: list[float] = []
        self.firsts: list[float] = []
        self.gaps: list[float] = []
        self.sizes: list[int] = []
        self.made: list[tuple[int, int]] = []
        self.endings: Counter[Ending] = Counter()
        self.refusals: list[Refusal] = []

    def queued(self, jobs: int) -> None:
        self.waiting = jobs
        self.most_waiting = max(self.most_waiting, jobs)

    def running(self, rows: int) -> None:
        assert rows >= 0
        self.rows = rows

    def started(self, queue_seconds: float) -> None:
        self.starts.append(queue_seconds)

    def first_token(self, seconds: float) -> None:
        self.firsts.append(seconds)

    def next_token(self, seconds: float) -> None:
        self.gaps.append(seconds)

    def tokens(self, prompt: int, completion: int) -> None:
        self.made.append((prompt, completion))

    def batch(self, rows: int) -> None:
        self.sizes.append(rows)

    def ended(self, how: Ending, seconds: float) -> None:
        assert seconds >= 0
        self.endings[how] += 1

    def refused(self, why: Refusal) -> None:
        self.refusals.append(why)


def drive(
    test: Callable[[Scheduler], Awaitable[None]],
    engine: Stepping,
    *,
    max_queue: int = 64,
    max_queue_tokens: int | None = None,
    observer: Observer | None = None,
) -> None:
    """Run a test; whatever it leaves ends, and nothing may be left behind."""

    async def main() -> None:
        scheduler = Scheduler(
            engine, max_queue=max_queue, max_queue_tokens=max_queue_tokens, observer=observer
        )
        try:
            await asyncio.wait_for(test(scheduler), 60)
        finally:
            engine.release()
            await scheduler.close(30)
            assert (scheduler.rows_running, scheduler.queue_depth) == (0, 0)

    asyncio.run(main())
