"""A thread that takes accepted work, runs it on the engine and hands out what comes of it.

Where the engine runs two batches at once there are two lanes. One takes interactive jobs only; the other
everything, but interactive jobs only while the first is busy and nothing long waits. Elsewhere one lane takes
all, interactive jobs first; of five jobs taken while long ones wait, one is long.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from typing import cast

from rrtf_serve.engine.accepted import Accepted
from rrtf_serve.engine.job import Job
from rrtf_serve.engine.load import Load, Share, needs
from rrtf_serve.engine.protocol import AdmittingBatch, Batch, Delta, Engine, EngineError, RowsFailed
from rrtf_serve.engine.score import Score, engine_error
from rrtf_serve.engine.waiting import Waiting

# Interactive jobs that one lane for all takes in a row while long ones wait.
TURNS = 4

log = logging.getLogger(__name__)


class Lane:
    """interactive_only: whether it takes nothing else. beside: the lane that does, if there is one."""

    def __init__(
        self,
        engine: Engine,
        accepted: Accepted,
        name: str,
        *,
        interactive_only: bool = False,
        beside: Lane | None = None,
    ) -> None:
        self._engine, self._accepted = engine, accepted
        self._limits = engine.capabilities
        self._observer = accepted.observer
        self._interactive_only, self._beside = interactive_only, beside
        # Guarded by accepted.changed.
        self._busy = False
        self._over = False
        self._batch: Batch | None = None
        self._jobs: list[Job] = []  # of the running batch, and about to join it; not ended
        self._rows: dict[int, tuple[Job, int]] = {}  # of the running batch, not ended: whose they are
        self._turns = 0  # interactive jobs that were taken while long ones waited
        self._scoring: Score | None = None  # under way; of this thread alone
        self.thread = threading.Thread(target=self._work, name=name, daemon=True)
        self.thread.start()

    @property
    def taken(self) -> bool:
        """Whether it will not take what comes now."""
        return self._busy or self._over

    def _work(self) -> None:
        while True:
            work = self._wait()
            if work is not None:
                if isinstance(work, Score):
                    self._scoring = work
                    self._score_on()
                else:
                    self._run(work)
            elif self._scoring is not None:
                self._score_on()
            else:
                return

    def _wait(self) -> Score | list[Job] | None:
        """What to begin now. None: nothing, as a score is under way, or everything was closed."""
        accepted = self._accepted
        with accepted.changed:
            while True:
                waiting = self._next()
                if waiting is not None:
                    self._busy = True
                    work = self._take(waiting)
                    accepted.changed.notify_all()  # what else waits may be for the other lane now
                    return work
                if self._scoring is not None:
                    return None
                self._busy = False
                if accepted.closed:
                    self._over = True
                    return None
                self._rest()
                accepted.changed.wait()

    def _rest(self) -> None:
        if self._interactive_only or self._beside is None:
            self._accepted.interactive.pace.rest()
        if not self._interactive_only:
            self._accepted.long.pace.rest()

    def _next(self) -> Waiting[Job | Score] | None:
        """Where to take from; None where nothing is for this lane now."""
        interactive, long = self._accepted.interactive, self._accepted.long
        if self._interactive_only:
            return interactive if interactive else None
        if self._beside is not None:
            if long:
                return long if not self._score_waits() else None
            return interactive if interactive and self._beside.taken else None
        for waiting in self._order():
            if waiting and not (waiting is long and self._score_waits()):
                return waiting
        return None

    def _order(self) -> list[Waiting[Job | Score]]:
        interactive, long = self._accepted.interactive, self._accepted.long
        return [long, interactive] if self._turns >= TURNS else [interactive, long]

    def _count_turn(self, waiting: Waiting[Job | Score]) -> None:
        interactive = waiting is self._accepted.interactive
        self._turns = self._turns + 1 if interactive and self._accepted.long else 0

    def _score_waits(self) -> bool:
        """Whether the first of the long work is a score, and another one is under way."""
        return self._scoring is not None and isinstance(self._accepted.long.first, Score)

    def _take(self, waiting: Waiting[Job | Score]) -> Score | list[Job]:
        """The first, and those behind it that can only run at once with it by starting now."""
        first = waiting.first
        self._accepted.took(first)
        self._count_turn(waiting)
        if isinstance(first, Score):
            return first
        jobs = [first]
        if not (first.alone or self._limits.admission):
            apart = first.interactive and self._limits.interactive_rows > 0
            load = Load(self._limits, self._limits.interactive_tokens if apart else None)
            load.add(first.requests)
            passed: set[str | None] = set()  # owners of jobs that don't fit: their order is kept
            for work in self._companions(waiting):
                if isinstance(work, Score) or work.alone or not self._same_sampling(work, first):
                    continue
                if work.owner not in passed and load.add(work.requests):
                    self._accepted.took(work)
                    jobs.append(work)
                else:
                    passed.add(work.owner)
        self._jobs = list(jobs)
        return jobs

    def _companions(self, waiting: Waiting[Job | Score]) -> list[Job | Score]:
        """Where one lane serves all, interactive jobs join a long batch; a long job would hold theirs up."""
        others = list(waiting)
        if self._beside is None and waiting is self._accepted.long:
            others = [*self._accepted.interactive, *others]
        return others

    def _same_sampling(self, job: Job, other: Job) -> bool:
        return self._limits.mixed_sampling or job.requests[0].sampling == other.requests[0].sampling

    def _score_on(self) -> None:
        """The next piece of the score that is under way, if one is."""
        score = self._scoring
        if score is not None and not score.go_on(self._engine):
            self._scoring = None
            with self._accepted.changed:
                self._accepted.ran(-1)
                self._accepted.long.pace.note_end()
            score.tell()  # whoever hears of an end finds its place free

    def _run(self, jobs: list[Job]) -> None:
        jobs = [job for job in jobs if not self._given_up(job)]
        if not jobs:
            return
        try:
            batch = self._engine.start([request for job in jobs for request in job.requests])
        except ValueError as error:
            self._refused(jobs, error)
        except Exception as error:  # as in Score.go_on
            self._failed(jobs, error)
        else:
            self._drive(jobs, batch)

    def _given_up(self, job: Job) -> bool:
        """Whether nobody wants it any more, or nobody in time."""
        with self._accepted.changed:
            for listener in list(job.listeners):
                if listener.late:
                    self._accepted.expire(job, listener)
            if job.unwanted:
                self._forget([job])
            return job.unwanted

    def _drive(self, jobs: list[Job], batch: Batch) -> None:
        admitting = cast(AdmittingBatch, batch) if self._limits.admission else None
        with self._accepted.changed:
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
                self._stop_late()
                try:
                    deltas = batch.step() if admitting is None else admitting.move()
                except RowsFailed as failure:
                    self._rows_failed(failure)
                    continue
                if deltas:
                    self._deliver(deltas)
                elif deltas is not None:
                    break
        except Exception as failure:  # as in Score.go_on
            outcome = failure
        finally:
            with self._accepted.changed:
                self._batch = None
                self._accepted.ran(-len(self._rows))
                self._rows.clear()
                left = list(self._jobs)
                for job in left:
                    job.batch = None
            try:
                batch.close()
            except Exception:  # as in Score.go_on
                log.exception("the engine did not close its batch")
        if left:
            self._failed(left, outcome)

    def _stop_late(self) -> None:
        """Deadlines hold even where an event loop has no time for its timers."""
        with self._accepted.changed:
            for job in list(self._jobs):
                for listener in list(job.listeners):
                    if listener.late:
                        self._accepted.expire(job, listener)

    def _admit(self, batch: AdmittingBatch) -> None:
        """Let those who wait first join the running batch, as long as they fit beside what runs."""
        while work := self._take_next():
            if isinstance(work, Score):
                self._scoring = work
                self._score_on()
            elif not self._given_up(work):
                try:
                    first = batch.admit(work.requests)
                except ValueError as error:
                    self._refused([work], error)
                else:
                    self._joined(work, first)

    def _take_next(self) -> Score | Job | None:
        with self._accepted.changed:
            # A batch without rows is at its end; what waits begins the next one.
            if not self._rows:
                return None
            for waiting in self._order():
                if not waiting or (waiting is self._accepted.long and self._score_waits()):
                    continue
                work = waiting.first
                if isinstance(work, Score) or self._fits(work):
                    self._accepted.took(work)
                    self._count_turn(waiting)
                    if isinstance(work, Job):
                        self._jobs.append(work)
                    return work
                if not self._limits.interactive_rows:
                    return None  # nobody passes who doesn't fit yet
            return None

    def _fits(self, job: Job) -> bool:
        running = [owner.requests[row] for owner, row in self._rows.values()]
        share = Share(self._limits, [(each.interactive, needs(each, self._limits)) for each in running])
        sizes = [needs(request, self._limits) for request in job.requests]
        some = next(iter(self._rows.values()))[0]
        return self._same_sampling(job, some) and share.admits(
            job.interactive, sizes, long_waits=bool(self._accepted.long)
        )

    def _joined(self, job: Job, first: int) -> None:
        """The job's rows are in the batch, numbered from `first`."""
        now = time.monotonic()
        with self._accepted.changed:
            assert self._batch is not None
            job.batch, job.offset = self._batch, first
            self._rows |= {first + row: (job, row) for row in range(len(job.requests))}
            self._accepted.ran(len(job.requests))
            for row in job.gone:
                self._batch.cancel(first + row)
            for listener in job.listeners:
                listener.stream.queue_seconds = now - listener.submitted
                self._observer.started(now - listener.submitted)

    def _deliver(self, deltas: list[Delta]) -> None:
        shares: dict[Job, list[Delta]] = {}
        for delta in deltas:
            job, row = self._rows[delta.row]
            shares.setdefault(job, []).append(delta if row == delta.row else _numbered(delta, row))
        # A row that was stopped may have been so before it was ever in a step.
        for rows in Counter(delta.at for delta in deltas if delta.finish != "cancelled").values():
            self._observer.batch(rows)
        pushes = self._accepted.hear(shares)
        # Whoever hears of an end finds its place free.
        self._ended([delta.row for delta in deltas if delta.finish is not None])
        self._accepted.push(pushes)

    def _rows_failed(self, failure: RowsFailed) -> None:
        """Some rows failed and the batch goes on: their jobs fail, and what else these run is stopped."""
        hit = {job for number, (job, _) in self._rows.items() if number in failure.rows}
        if not hit:
            raise failure
        self._accepted.fail(hit, failure)
        self._ended(failure.rows)

    def _ended(self, numbers: Iterable[int]) -> None:
        with self._accepted.changed:
            before = len(self._rows)
            for number in numbers:
                self._rows.pop(number, None)
            if len(self._rows) != before:
                self._accepted.ran(len(self._rows) - before)
            running = {job for job, _ in self._rows.values()}
            ended = [job for job in self._jobs if job not in running]
            for job in ended:
                job.batch = None
                self._accepted.waiting_of(job).pace.note_end()
            self._forget(ended)

    def _refused(self, jobs: list[Job], error: ValueError) -> None:
        if len(jobs) == 1:
            self._accepted.fail(jobs, error)
            self._forget(jobs)
            return
        with self._accepted.changed:
            self._jobs = [job for job in self._jobs if job not in jobs]
            self._accepted.put_back(jobs)

    def _forget(self, jobs: list[Job]) -> None:
        with self._accepted.changed:
            self._jobs = [job for job in self._jobs if job not in jobs]
            for job in jobs:
                self._accepted.forget(job)

    def _failed(self, jobs: list[Job], error: Exception) -> None:
        if not isinstance(error, EngineError):
            log.error("the engine failed", exc_info=error)
            error = engine_error(error)
        self._accepted.fail(jobs, error)
        self._forget(jobs)


def _numbered(delta: Delta, row: int) -> Delta:
    # One for each token: dataclasses.replace takes three times as long.
    return Delta(row, delta.token, delta.finish, delta.logprob, delta.at)


def lanes(engine: Engine, accepted: Accepted) -> list[Lane]:
    """The lanes of an engine, running."""
    if engine.capabilities.parallel_batches < 2:
        return [Lane(engine, accepted, "scheduler")]
    interactive = Lane(engine, accepted, "scheduler-interactive", interactive_only=True)
    return [interactive, Lane(engine, accepted, "scheduler-long", beside=interactive)]
