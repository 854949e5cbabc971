"""An engine that counts, and what tests of the scheduler do with it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

from tiny_ct2 import EOS

from rrtf_serve.engine.protocol import (
    Capabilities,
    Delta,
    EngineError,
    Request,
    RowsFailed,
    Sampling,
    TokenLogprob,
)
from rrtf_serve.engine.scheduler import Scheduler, Stream

GREEDY = Sampling(temperature=0)


def request(first: int, max_tokens: int = 4, sampling: Sampling = GREEDY, length: int = 1) -> Request:
    return Request((first,) * length, max_tokens, frozenset({EOS}), sampling)


@dataclass
class Counting:
    """An engine that counts up from a row's first prompt token, a step whenever the test says so."""

    max_batch: int = 8
    max_batch_tokens: int = 1000
    gate: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    batches: list[list[int]] = field(default_factory=list)  # first prompt tokens of each batch
    working: int = 0  # calls inside the engine now
    fail_at: int | None = None  # step of the running batch
    error: Exception = field(default_factory=lambda: EngineError("out of memory"))
    silent_end: bool = False  # end the batch without ending its rows
    admission: bool = False  # requests with another sampling than the batch's can join it too
    failing: set[int] = field(default_factory=set)  # first prompt tokens of rows that fail alone
    scored: list[int] = field(default_factory=list)  # first tokens of scored prompts

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            100,
            self.max_batch,
            5,
            50,
            max_batch_tokens=self.max_batch_tokens,
            prompt_spread=None if self.admission else 4,
            admission=self.admission,
            mixed_sampling=self.admission,
        )

    def start(self, requests: list[Request]) -> CountingBatch:
        self.check(requests)
        self.batches.append([request.prompt[0] for request in requests])
        return CountingBatch(self, requests)

    def check(self, requests: list[Request]) -> None:
        if any(request.prompt[0] < 0 for request in requests):
            raise ValueError("token id -1 is outside the vocabulary")

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        self.gate.acquire()
        self.scored.append(prompt[0])
        if prompt[0] < 0:
            raise ValueError("token id -1 is outside the vocabulary")
        if prompt[0] == 0:
            raise ZeroDivisionError("a fault in the engine")
        return [TokenLogprob(token, -float(top)) for token in prompt[1:]]

    def score_pieces(self, prompt: tuple[int, ...], top: int) -> Iterator[list[TokenLogprob]]:
        assert self.admission
        for pair in itertools.pairwise(prompt):
            yield self.score(pair, top)

    def close(self) -> None:
        pass


class CountingBatch:
    def __init__(self, engine: Counting, requests: list[Request]) -> None:
        self._engine = engine
        self._rows = dict(enumerate(requests))
        self._made = dict.fromkeys(self._rows, 0)
        self._next = len(requests)
        self._cancelled: set[int] = set()
        self._steps = 0

    def admit(self, requests: list[Request]) -> int:
        assert self._engine.admission
        assert self._rows, "the batch had ended"
        self._engine.check(requests)
        first = self._next
        for row, request in enumerate(requests, first):
            self._rows[row], self._made[row] = request, 0
            self._engine.batches[-1].append(request.prompt[0])
        self._next += len(requests)
        return first

    def step(self) -> list[Delta]:
        if not self._rows:
            return []
        self._engine.gate.acquire()
        if self._steps == self._engine.fail_at:
            raise self._engine.error
        self._steps += 1
        if self._engine.silent_end:
            return []
        failed = {row for row, each in self._rows.items() if each.prompt[0] in self._engine.failing}
        if failed:
            for row in failed:
                del self._rows[row]
            raise RowsFailed("out of memory for some", frozenset(failed))
        deltas = []
        for row, request in list(self._rows.items()):
            self._made[row] += 1
            last = self._made[row] == request.max_tokens
            if row in self._cancelled:
                deltas.append(Delta(row, None, "cancelled"))
            else:
                deltas.append(Delta(row, request.prompt[0] + self._made[row], "length" if last else None))
            if deltas[-1].finish:
                del self._rows[row]
        return deltas

    def move(self) -> list[Delta] | None:
        return self.step()

    def cancel(self, row: int) -> None:
        self._cancelled.add(row)

    def close(self) -> None:
        self._rows.clear()


def run(test: Callable[[Scheduler], Awaitable[None]], engine: object, max_queue: int = 64) -> None:
    async def main() -> None:
        scheduler = Scheduler(engine, max_queue=max_queue)  # type: ignore[arg-type]  # a structural Engine
        try:
            await asyncio.wait_for(test(scheduler), 30)
        finally:
            if isinstance(engine, Counting):
                engine.gate.release(10_000)
            await scheduler.close(5)
            assert scheduler.rows_running == 0
            assert scheduler.queue_depth == 0

    asyncio.run(main())


async def rows_of(stream: Stream, rows: int = 1) -> list[list[Delta]]:
    answer: list[list[Delta]] = [[] for _ in range(rows)]
    async for deltas in stream:
        for delta in deltas:
            answer[delta.row].append(delta)
    assert all(row[-1].finish is not None for row in answer)
    return answer


def tokens(row: list[Delta]) -> list[int]:
    return [delta.token for delta in row if delta.token is not None]


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.002)
