"""One bounded queue in front of an engine, and the only threads that talk to it.

    stream = scheduler.submit([request, request])  # the rows of one HTTP request; raises QueueFull at once
    async for deltas in stream: ...                # always ends; row numbers are those of `submit`
    stream.cancel()                                # in a finally, for clients that went away

Interactive jobs and long ones wait apart, and neither kind waits for the other: see `lane` for engines that
run two batches at once, `load.Share` for those that admit rows into a running batch. Within a kind owners
take turns by tokens (`waiting`), and an owner's jobs keep their order.

Where the engine admits rows, each job joins the batch as soon as it fits beside what runs, and nobody passes
a job of its kind that doesn't fit yet; one score at a time is made beside them, a piece between two steps.
Elsewhere jobs that wait behind the first one join its batch when their sampling is equal (or the engine takes
mixed) and the engine can run them at once; nobody joins a batch that runs.

A job that is past its deadline fails with DeadlineExceeded, one that a newer job of its editor replaces with
Replaced; its rows stop at their next step. Equal jobs of an owner whose answer can't differ share one decode.
"""

from __future__ import annotations

import asyncio
import time

from rrtf_serve.engine.accepted import Accepted
from rrtf_serve.engine.lane import lanes
from rrtf_serve.engine.observer import Observer
from rrtf_serve.engine.protocol import Capabilities, Engine, Request, TokenLogprob
from rrtf_serve.engine.score import Score
from rrtf_serve.engine.stream import DeadlineExceeded, QueueFull, Replaced, SchedulerClosed, Stream
from rrtf_serve.engine.ticket import NOBODY, Ticket
from rrtf_serve.engine.waiting import Bounds

__all__ = ["DeadlineExceeded", "QueueFull", "Replaced", "Scheduler", "SchedulerClosed", "Stream"]

# Batches full of tokens that may wait, unless it is said.
QUEUED_BATCHES = 16
LOOK_SECONDS = 0.01  # from one look at a lane that is to end to the next


class Scheduler:
    """Owns the threads that call the engine; the caller closes the engine after `close`.

    max_queue: jobs that may wait in each of the two kinds, the running ones not counted. max_queue_tokens:
    prompts and completions of these; None: 16 times what the engine runs at once. observer: is told of the
    work, from several threads; what it does must be quick and must not call the scheduler.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_queue: int = 64,
        max_queue_tokens: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        if max_queue < 1:
            raise ValueError(f"max_queue is {max_queue}; it must be at least 1")
        if max_queue_tokens is None:
            max_queue_tokens = QUEUED_BATCHES * engine.capabilities.max_batch_tokens
        if max_queue_tokens < 1:
            raise ValueError(f"max_queue_tokens is {max_queue_tokens}; it must be at least 1")
        self._engine = engine
        bounds = Bounds(max_queue, max_queue_tokens)
        self._accepted = Accepted(engine.capabilities, bounds, observer or Observer())
        self._lanes = lanes(engine, self._accepted)

    @property
    def capabilities(self) -> Capabilities:
        """What the engine behind the queue can do."""
        return self._engine.capabilities

    @property
    def queue_depth(self) -> int:
        """Jobs that wait."""
        return self._accepted.depth

    @property
    def rows_running(self) -> int:
        """Rows of running batches and scores that have not ended."""
        return self._accepted.rows

    def submit(self, requests: list[Request], ticket: Ticket = NOBODY) -> Stream:
        """Queue the rows of one HTTP request; on an event loop.

        Raises QueueFull, SchedulerClosed, ValueError where the request needs more tokens than can ever run.
        """
        if not requests:
            raise ValueError("no requests: a job needs at least one row")
        return self._accepted.submit(requests, ticket)

    async def score(self, prompt: tuple[int, ...], top: int, ticket: Ticket = NOBODY) -> list[TokenLogprob]:
        """Engine.score, in its turn among long jobs.

        Raises QueueFull, SchedulerClosed, ValueError, EngineError, DeadlineExceeded.
        """
        work = Score(prompt, top)
        self._accepted.add_score(work, ticket)
        left = None if ticket.deadline is None else max(0.0, ticket.deadline - time.monotonic())
        try:
            async with asyncio.timeout(left):
                return await work.answer
        except TimeoutError as error:
            raise DeadlineExceeded from error
        finally:
            self._accepted.drop_score(work)

    async def close(self, drain_seconds: float) -> None:
        """Accept nothing more, give accepted work `drain_seconds` to finish, then cancel it. Idempotent."""
        self._accepted.close()
        try:
            async with asyncio.timeout(max(0.0, drain_seconds)):
                await self._lanes_ended()
        except TimeoutError:
            self._accepted.abandon()
            await self._lanes_ended()

    async def _lanes_ended(self) -> None:
        # No join in a thread: it could wait behind others for one, and could not be given up.
        while any(lane.thread.is_alive() for lane in self._lanes):
            await asyncio.sleep(LOOK_SECONDS)
