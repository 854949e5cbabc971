"""One bounded queue in front of an engine, and the one thread that talks to it.

    stream = scheduler.submit([request, request])  # the rows of one HTTP request; raises QueueFull at once
    async for deltas in stream: ...                # always ends; row numbers are those of `submit`
    stream.cancel()                                # in a finally, for clients that went away

Jobs run first come, first served. Where the engine admits rows into a running batch, each job joins it as
soon as it fits beside what runs, and nobody passes a job that doesn't fit yet; one score at a time is made
beside them, a piece between two steps. Elsewhere jobs that wait behind the first one join its batch when
their sampling is equal (or the engine takes mixed) and the engine can run them at once; nobody joins a batch
that runs.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

from rrtf_serve.engine.load import Load
from rrtf_serve.engine.protocol import (
    AdmittingBatch,
    Batch,
    Capabilities,
    Delta,
    Engine,
    EngineError,
    Request,
    RowsFailed,
    TokenLogprob,
)
from rrtf_serve.engine.score import Score, engine_error
from rrtf_serve.engine.stream import QueueFull, SchedulerClosed, Stream, call
from rrtf_serve.engine.ticket import NOBODY, Ticket

__all__ = ["QueueFull", "Scheduler", "SchedulerClosed", "Stream"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Job:
    requests: list[Request]
    stream: Stream
    ticket: Ticket
    alone: bool = False  # its batch was refused; run by itself to find out whose fault that was
    cancelled: set[int] = field(default_factory=set)
    offset: int | None = None  # of its first row in the batch; None: it is not in one yet

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.stream.loop


class Scheduler:
    """Owns the thread that calls the engine; the caller closes the engine after `close`.

    max_queue: jobs that may wait, the running ones not counted.
    """

    def __init__(self, engine: Engine, *, max_queue: int = 64) -> None:
        if max_queue < 1:
            raise ValueError(f"max_queue is {max_queue}; it must be at least 1")
        self._engine = engine
        self._max_queue = max_queue
        self._changed = threading.Condition()
        # Everything below is guarded by _changed.
        self._queue: deque[_Job | Score] = deque()
        self._closed = False
        self._batch: Batch | None = None
        self._jobs: list[_Job] = []  # of the running batch, and about to join it; not ended
        self._rows: dict[int, tuple[_Job, int]] = {}  # of the running batch, not ended: whose they are
        self._scoring: Score | None = None  # under way
        self._job_seconds = 1.0  # from one job's end to the next one's lately, for Retry-After
        self._job_ended = 0.0  # when the last one did, or the thread was last idle; monotonic seconds
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def capabilities(self) -> Capabilities:
        """What the engine behind the queue can do."""
        return self._engine.capabilities

    @property
    def queue_depth(self) -> int:
        """Jobs that wait."""
        return len(self._queue)

    @property
    def rows_running(self) -> int:
        """Rows of the running batch that have not ended."""
        return len(self._rows)

    def submit(self, requests: list[Request], ticket: Ticket = NOBODY) -> Stream:
        """Queue the rows of one HTTP request; on an event loop. Raises QueueFull, SchedulerClosed."""
        if not requests:
            raise ValueError("no requests: a job needs at least one row")
        stream = Stream(len(requests), lambda row: self._cancel(job, row))
        job = _Job(requests, stream, ticket)
        self._put(job)
        return stream

    async def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        """Engine.score, in its turn. Raises QueueFull, SchedulerClosed, ValueError, EngineError."""
        work = Score(prompt, top)
        self._put(work)
        try:
            return await work.answer
        finally:  # whoever asked may have gone: the place in the queue is free for others
            with self._changed:
                if work in self._queue:
                    self._queue.remove(work)

    async def close(self, drain_seconds: float) -> None:
        """Accept nothing more, give accepted work `drain_seconds` to finish, then cancel it. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, max(0.0, drain_seconds))
        if self._thread.is_alive():
            self._abandon()
            await asyncio.to_thread(self._thread.join)

    def _abandon(self) -> None:
        with self._changed:
            waiting, running = list(self._queue), list(self._jobs)
            scoring = [self._scoring] if self._scoring is not None else []
            self._queue.clear()
        for work in [*running, *scoring, *waiting]:
            if isinstance(work, _Job):
                call(work.loop, work.stream.cancel)
                for row in range(len(work.requests)):
                    self._cancel(work, row)
            else:
                work.fail(SchedulerClosed())

    def _put(self, work: _Job | Score) -> None:
        with self._changed:
            if self._closed:
                raise SchedulerClosed
            if len(self._queue) >= self._max_queue:
                raise QueueFull(len(self._queue), self._retry_after())
            self._queue.append(work)
            self._changed.notify()

    def _retry_after(self) -> float:
        return min(60.0, max(1.0, self._job_seconds * len(self._queue)))

    def _cancel(self, job: _Job, row: int) -> None:
        with self._changed:
            job.cancelled.add(row)
            if self._batch is not None and job.offset is not None and job in self._jobs:
                self._batch.cancel(job.offset + row)
            elif len(job.cancelled) == len(job.requests) and job in self._queue:
                self._queue.remove(job)

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._queue and self._scoring is None:
                    while not self._queue and not self._closed:
                        self._changed.wait()
                    self._job_ended = time.monotonic()
                    if not self._queue:
                        return
                work = self._take() if self._queue and not self._score_waits() else None
            if work is None:
                self._score_on()
            elif isinstance(work, Score):
                self._begin_score(work)
            else:
                self._run(work)

    def _score_waits(self) -> bool:
        """Whether the first in the queue is a score, and another one is under way."""
        return self._scoring is not None and isinstance(self._queue[0], Score)

    def _take(self) -> Score | list[_Job]:
        """The first in the queue, and those behind it that can only run at once with it by starting now."""
        first = self._queue.popleft()
        if isinstance(first, Score):
            return first
        jobs = [first]
        if not (first.alone or self._engine.capabilities.admission):
            load = Load(self._engine.capabilities)
            load.add(first.requests)
            mixed = self._engine.capabilities.mixed_sampling
            for work in list(self._queue):
                if (
                    isinstance(work, _Job)
                    and not work.alone
                    and (mixed or work.requests[0].sampling == first.requests[0].sampling)
                    and load.add(work.requests)
                ):
                    self._queue.remove(work)
                    jobs.append(work)
        self._jobs = list(jobs)
        return jobs

    def _begin_score(self, work: Score) -> None:
        with self._changed:
            self._scoring = work
        self._score_on()

    def _score_on(self) -> None:
        """The next piece of the score that is under way, if one is."""
        if self._scoring is not None and not self._scoring.go_on(self._engine):
            with self._changed:
                self._scoring = None
            self._note_end()

    def _run(self, jobs: list[_Job]) -> None:
        if all(len(job.cancelled) == len(job.requests) for job in jobs):
            self._forget(jobs)
            return
        try:
            batch = self._engine.start([request for job in jobs for request in job.requests])
        except ValueError as error:
            self._refused(jobs, error)
        except Exception as error:  # as in Score.go_on
            self._failed(jobs, error)
        else:
            self._drive(jobs, batch)

    def _drive(self, jobs: list[_Job], batch: Batch) -> None:
        admitting = cast(AdmittingBatch, batch) if self._engine.capabilities.admission else None
        with self._changed:
            self._batch = batch
        first = 0
        for job in jobs:
            self._joined(job, first)
            first += len(job.requests)
        outcome: Exception = EngineError("the engine ended a batch without ending all of its rows")
        try:
            while True:
                if admitting is not None:
                    self._score_on()
                    self._admit(admitting)
                try:
                    deltas = batch.step()
                except RowsFailed as failure:
                    self._rows_failed(failure)
                    continue
                if not deltas:
                    break
                self._deliver(deltas)
        except Exception as failure:  # as in Score.go_on
            outcome = failure
        finally:
            with self._changed:
                self._batch = None
                self._rows.clear()
                left = list(self._jobs)
            try:
                batch.close()
            except Exception:  # as in Score.go_on
                log.exception("the engine did not close its batch")
        if left:
            self._failed(left, outcome)

    def _admit(self, batch: AdmittingBatch) -> None:
        """Let those who wait first join the running batch, as long as they fit beside what runs."""
        while work := self._take_next():
            if isinstance(work, Score):
                self._begin_score(work)
            elif len(work.cancelled) == len(work.requests):
                self._forget([work])
            else:
                try:
                    first = batch.admit(work.requests)
                except ValueError as error:
                    self._refused([work], error)
                else:
                    self._joined(work, first)

    def _take_next(self) -> Score | _Job | None:
        with self._changed:
            # A batch without rows is at its end; what waits begins the next one.
            if not self._queue or not self._rows or self._score_waits():
                return None
            work = self._queue[0]
            if isinstance(work, _Job):
                load = Load(self._engine.capabilities)
                load.add([job.requests[row] for job, row in self._rows.values()])
                some = next(iter(self._rows.values()))[0].requests[0].sampling
                mixed = self._engine.capabilities.mixed_sampling
                if not (mixed or work.requests[0].sampling == some) or not load.add(work.requests):
                    return None
                self._jobs.append(work)
            return self._queue.popleft()

    def _joined(self, job: _Job, first: int) -> None:
        """The job's rows are in the batch, numbered from `first`."""
        with self._changed:
            job.offset = first
            self._rows |= {first + row: (job, row) for row in range(len(job.requests))}
            for row in job.cancelled:
                assert self._batch is not None
                self._batch.cancel(first + row)

    def _deliver(self, deltas: list[Delta]) -> None:
        shares: dict[_Job, list[Delta]] = {}
        for delta in deltas:
            job, row = self._rows[delta.row]
            local = delta if row == delta.row else Delta(row, delta.token, delta.finish, delta.logprob)
            shares.setdefault(job, []).append(local)
        self._ended([delta.row for delta in deltas if delta.finish is not None])
        loops: dict[asyncio.AbstractEventLoop, list[tuple[Stream, list[Delta]]]] = {}
        for job, share in shares.items():
            loops.setdefault(job.loop, []).append((job.stream, share))
        for loop, pushes in loops.items():
            if not call(loop, partial(_push_all, pushes)):
                for job in shares:
                    if job.loop is loop:
                        for row in range(len(job.requests)):
                            self._cancel(job, row)

    def _rows_failed(self, failure: RowsFailed) -> None:
        """Some rows failed and the batch goes on: their jobs fail, and what else these run is stopped."""
        hit = {job for number, (job, _) in self._rows.items() if number in failure.rows}
        if not hit:
            raise failure
        for job in hit:
            for row in range(len(job.requests)):
                self._cancel(job, row)
            call(job.loop, partial(job.stream.fail, failure))
        self._ended(failure.rows)

    def _ended(self, numbers: Iterable[int]) -> None:
        with self._changed:
            for number in numbers:
                self._rows.pop(number, None)
            running = {job for job, _ in self._rows.values()}
            ended = [job for job in self._jobs if job not in running]
        self._forget(ended)
        for _ in ended:
            self._note_end()

    def _note_end(self) -> None:
        now = time.monotonic()
        with self._changed:
            self._job_seconds += (now - self._job_ended - self._job_seconds) / 4
            self._job_ended = now

    def _refused(self, jobs: list[_Job], error: ValueError) -> None:
        with self._changed:
            self._forget(jobs)
            if len(jobs) > 1:
                for job in reversed(jobs):
                    job.alone = True
                    self._queue.appendleft(job)
                return
        call(jobs[0].loop, partial(jobs[0].stream.fail, error))

    def _forget(self, jobs: list[_Job]) -> None:
        with self._changed:
            self._jobs = [job for job in self._jobs if job not in jobs]

    def _failed(self, jobs: list[_Job], error: Exception) -> None:
        self._forget(jobs)
        if not isinstance(error, EngineError):
            log.error("the engine failed", exc_info=error)
            error = engine_error(error)
        for job in jobs:
            call(job.loop, partial(job.stream.fail, error))


def _push_all(pushes: list[tuple[Stream, list[Delta]]]) -> None:
    for stream, deltas in pushes:
        stream.push(deltas)
