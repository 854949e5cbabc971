"""What was accepted and has not ended: jobs and scores that wait or run, and who listens to them.

Submitters add and cancel here, on their event loops; lanes take from here and deliver, on their threads. One
lock guards it all, `changed`, which lanes also wait on.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from rrtf_serve.engine.job import Job, Listener, new_job
from rrtf_serve.engine.observer import Ending, Observer
from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, Request
from rrtf_serve.engine.score import Score
from rrtf_serve.engine.stream import DeadlineExceeded, QueueFull, Replaced, SchedulerClosed, Stream, call
from rrtf_serve.engine.ticket import Ticket
from rrtf_serve.engine.waiting import Bounds, Waiting

Client = tuple[str | None, tuple[str, ...]]  # owner, and Editing.client
Pushes = dict[asyncio.AbstractEventLoop, list[tuple[Job, Listener, list[Delta]]]]


class Accepted:
    """bounds: of each of the two kinds that wait, interactive work and long work."""

    def __init__(self, limits: Capabilities, bounds: Bounds, observer: Observer) -> None:
        self.limits, self.observer = limits, observer
        self.changed = threading.Condition()
        # Everything below is guarded by `changed`.
        self.closed = False
        self.interactive: Waiting[Job | Score] = Waiting(bounds)
        self.long: Waiting[Job | Score] = Waiting(bounds)
        self.rows = 0  # that run; a score counts as one
        self._bounds = bounds
        self._jobs: dict[Job, None] = {}  # in the order they came
        self._scores: dict[Score, None] = {}
        self._shared: dict[tuple[object, ...], Job] = {}
        self._editors: dict[Client, list[tuple[Job, Listener]]] = {}

    @property
    def depth(self) -> int:
        """How many wait."""
        return len(self.interactive) + len(self.long)

    def waiting_of(self, work: Job | Score) -> Waiting[Job | Score]:
        return self.interactive if isinstance(work, Job) and work.interactive else self.long

    def submit(self, requests: list[Request], ticket: Ticket) -> Stream:
        """See Scheduler.submit."""
        with self._refusals():
            job = new_job(requests, ticket, self.limits)
        self.check_tokens(job.tokens)
        with self.changed:
            if self.closed:
                raise SchedulerClosed
            prompts = tuple(request.prompt for request in requests)
            older = self._older(ticket, prompts)
            shared = self._sharing(job)
            if shared is None:
                self._check_room(job, ticket, older)
            for replaced, waiting in older:
                self._dismiss(replaced, waiting, Replaced(), "replaced")
            joined = shared or job
            stream = Stream(len(requests), lambda row, how: self._cancel(joined, listener, row, how))
            listener = Listener(stream, ticket, prompts, set(range(len(requests))))
            if shared is None:
                self._put(job, ticket, job.tokens)
                self._jobs[job] = None
                if job.key is not None:
                    self._shared[job.key] = job
            joined.listeners.append(listener)
            if ticket.interactive and ticket.editor is not None:
                client = ticket.owner, ticket.editor.client
                self._editors.setdefault(client, []).append((joined, listener))
            if shared is not None:
                self._catch_up(shared, listener)
            if ticket.deadline is not None:
                stream.call_at(ticket.deadline, lambda: self.expire(joined, listener))
        return stream

    def add_score(self, work: Score, ticket: Ticket) -> None:
        """Raises QueueFull, SchedulerClosed, ValueError."""
        self.check_tokens(work.tokens)
        with self.changed:
            if self.closed:
                raise SchedulerClosed
            self._put(work, ticket, work.tokens)
            self._scores[work] = None

    def check_tokens(self, tokens: int) -> None:
        """See Scheduler.check_tokens."""
        if tokens > self._bounds.tokens:
            with self._refusals():
                raise ValueError(
                    f"the request needs {tokens} tokens, all prompts and completions together; the server "
                    f"accepts {self._bounds.tokens} at most: ask for fewer choices or a smaller max_tokens"
                )

    def drop_score(self, work: Score) -> None:
        """Whoever asked has gone or has the answer: its place in the queue is free for others."""
        with self.changed:
            self._scores.pop(work, None)
            if work in self.long:
                self.long.drop(work)
                self._note_depth()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def abandon(self) -> None:
        """Cancel all that waits or runs."""
        with self.changed:
            jobs, scores = list(self._jobs), list(self._scores)
            for score in scores:
                self.long.drop(score)
            for job in jobs:
                for listener in list(job.listeners):
                    call(listener.stream.loop, listener.stream.cancel)
                    self._leave(job, listener, "cancelled")
        for score in scores:
            score.fail(SchedulerClosed())

    def hear(self, shares: dict[Job, list[Delta]]) -> Pushes:
        """Deltas of a step, by job and with the job's row numbers; what is to be pushed where."""
        now = time.monotonic()
        loops: Pushes = {}
        with self.changed:
            for job, deltas in shares.items():
                self._note_moves(job, deltas, now)
                if job.key is not None:
                    job.history += deltas
                for listener in list(job.listeners):
                    wanted = self._hear(job, listener, deltas, now)
                    if wanted:
                        loops.setdefault(listener.stream.loop, []).append((job, listener, wanted))
        return loops

    def push(self, loops: Pushes) -> None:
        """What `hear` gave, in the order it gave it."""
        for loop, pushes in loops.items():
            if not call(loop, partial(_push_all, pushes)):  # it is gone, and with it whoever would listen
                with self.changed:
                    for job, listener, _ in pushes:
                        self._leave(job, listener, "cancelled")

    def fail(self, jobs: Iterable[Job], error: Exception) -> None:
        """They end with an error."""
        with self.changed:
            for job in jobs:
                for listener in list(job.listeners):
                    call(listener.stream.loop, partial(listener.stream.fail, error))
                    self._leave(job, listener, "error")

    def forget(self, job: Job) -> None:
        """Its rows have ended, or will not run."""
        with self.changed:
            self._jobs.pop(job, None)
            if job.key is not None and self._shared.get(job.key) is job:
                del self._shared[job.key]
            for listener in list(job.listeners):  # in case rows ended without saying so
                if listener.open:
                    call(listener.stream.loop, partial(listener.stream.fail, _UNSAID))
                self._leave(job, listener, "error")

    def expire(self, job: Job, listener: Listener) -> None:
        """The listener's deadline has passed."""
        self._dismiss(job, listener, DeadlineExceeded(), "deadline")

    def put_back(self, jobs: list[Job]) -> None:
        """They were taken together and refused: each is tried alone, before all others."""
        with self.changed:
            for job in reversed(jobs):
                job.alone = True
                if not job.unwanted:
                    self.waiting_of(job).put_back(job, job.owner, job.tokens)
                else:
                    self.forget(job)
            self._note_depth()

    def took(self, work: Job | Score) -> None:
        """A lane takes it out of the queue. A score runs from here on; rows once they are in their batch."""
        self.waiting_of(work).take(work)
        self._note_depth()
        if isinstance(work, Score):
            self.ran(1)

    def ran(self, rows: int) -> None:
        """So many more rows run; fewer where it is negative."""
        with self.changed:
            self.rows += rows
            self.observer.running(self.rows)

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Tell the observer of what can never run."""
        try:
            yield
        except ValueError:
            self.observer.refused("too_many_tokens")
            raise

    @contextmanager
    def _full(self) -> Iterator[None]:
        try:
            yield
        except QueueFull:
            self.observer.refused("queue_full")
            raise

    def _check_room(self, job: Job, ticket: Ticket, older: list[tuple[Job, Listener]]) -> None:
        """Raises QueueFull where the job has no place, those counted that the older ones will leave."""
        listeners = {listener for _, listener in older}
        leaving = {replaced for replaced, _ in older if listeners.issuperset(replaced.listeners)}
        with self._full():
            self.waiting_of(job).check(ticket.owner, job.tokens, leaving)

    def _put(self, work: Job | Score, ticket: Ticket, tokens: int) -> None:
        with self._full():
            self.waiting_of(work).put(work, ticket.owner, tokens)
        self._note_depth()
        self.changed.notify_all()

    def _note_depth(self) -> None:
        self.observer.queued(self.depth)

    def _older(self, ticket: Ticket, prompts: tuple[tuple[int, ...], ...]) -> list[tuple[Job, Listener]]:
        """Whose place a newer job of the same editing with another prompt takes. One with the same prompt
        takes none: some editors ask for several completions by several requests at once."""
        if not ticket.interactive or ticket.editor is None:
            return []
        return [
            (job, listener)
            for job, listener in self._editors.get((ticket.owner, ticket.editor.client), ())
            if listener.prompts != prompts
            and listener.ticket.editor is not None
            and ticket.editor.goes_on(listener.ticket.editor)
        ]

    def _sharing(self, job: Job) -> Job | None:
        """The job that makes the same already. An interactive one shares with its like only."""
        found = self._shared.get(job.key) if job.key is not None else None
        if found is None or found.gone or not found.listeners or (job.interactive and not found.interactive):
            return None
        return found

    def _catch_up(self, job: Job, listener: Listener) -> None:
        now = time.monotonic()
        if job.batch is not None:
            listener.stream.queue_seconds = 0.0
            self.observer.started(0.0)
        if job.history:
            listener.stream.push(self._hear(job, listener, list(job.history), now))

    def _hear(self, job: Job, listener: Listener, deltas: list[Delta], now: float) -> list[Delta]:
        """What of it the listener still wants; it is told of."""
        wanted = [delta for delta in deltas if delta.row in listener.open]
        if not listener.heard and any(delta.token is not None for delta in wanted):
            listener.heard = True
            self.observer.first_token(now - listener.submitted)
        for delta in wanted:
            if delta.finish is not None:
                listener.open.discard(delta.row)
                self.observer.ended(delta.finish, now - listener.submitted)
        self._release(job, listener)
        return wanted

    def _note_moves(self, job: Job, deltas: list[Delta], now: float) -> None:
        for delta in deltas:
            row = delta.row
            if delta.token is not None:
                at = now if delta.at is None else delta.at
                if row in job.moved:
                    self.observer.next_token(at - job.moved[row])
                job.moved[row] = at
                job.made[row] = job.made.get(row, 0) + 1
            if delta.finish is not None:
                self.observer.tokens(len(job.requests[row].prompt), job.made.get(row, 0))

    def _cancel(self, job: Job, listener: Listener, row: int, how: Ending) -> None:
        with self.changed:
            self._leave(job, listener, how, {row})

    def _dismiss(self, job: Job, listener: Listener, error: Exception, how: Ending) -> None:
        with self.changed:
            if listener.open:
                call(listener.stream.loop, partial(listener.stream.fail, error))
                self._leave(job, listener, how)

    def _leave(self, job: Job, listener: Listener, how: Ending, rows: set[int] | None = None) -> None:
        """The listener wants some rows no more, or none; those that nobody wants are stopped."""
        now = time.monotonic()
        for row in sorted(listener.open if rows is None else listener.open & rows):
            listener.open.discard(row)
            self.observer.ended(how, now - listener.submitted)
            if not any(row in other.open for other in job.listeners):
                job.gone.add(row)
                if job.batch is not None:
                    job.batch.cancel(job.offset + row)
        self._release(job, listener)
        if job.unwanted and job in self.waiting_of(job):
            self.waiting_of(job).drop(job)
            self._note_depth()
            self.changed.notify_all()  # who waited behind it may fit
            self.forget(job)

    def _release(self, job: Job, listener: Listener) -> None:
        """No effect on a listener whose rows have not all ended."""
        if listener.open or listener not in job.listeners:
            return
        job.listeners.remove(listener)
        if listener.ticket.interactive and listener.ticket.editor is not None:
            client = listener.ticket.owner, listener.ticket.editor.client
            left = [pair for pair in self._editors.get(client, ()) if pair[1] is not listener]
            if left:
                self._editors[client] = left
            else:
                self._editors.pop(client, None)


_UNSAID = EngineError("the engine ended a row without saying so")


def _push_all(pushes: list[tuple[Job, Listener, list[Delta]]]) -> None:
    for _, listener, deltas in pushes:
        listener.stream.push(deltas)
