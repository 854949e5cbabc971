"""What holds whatever is asked of the scheduler, in whatever order."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from counting_engine import tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stepping_engine import (
    ADMITTING,
    GREEDY,
    ONE_LANE,
    RANDOM,
    TWO_LANES,
    Recorder,
    Stepping,
    answer,
    drive,
    row,
)

from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, Sampling
from rrtf_serve.engine.scheduler import DeadlineExceeded, QueueFull, Replaced, Scheduler, Stream
from rrtf_serve.engine.ticket import Editing, Ticket

SUBMIT = st.tuples(
    st.just("submit"),
    st.sampled_from(["ann", "bob", "eve"]),
    st.booleans(),  # interactive
    st.sampled_from([None, Editing(("x",), "a"), Editing(("x",), "ab"), Editing(("y",), "b")]),
    st.lists(st.integers(1, 12), min_size=1, max_size=3),  # tokens of each row
    st.booleans(),  # greedy
    st.sampled_from([False, False, False, True]),  # its deadline has passed
    st.sampled_from([False, False, True]),  # the same rows as the last one
)
STEP = st.tuples(st.just("step"), st.integers(0, 1), st.integers(1, 8))
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 30), st.integers(0, 2))
FAIL = st.tuples(st.just("fail"))
PAUSE = st.tuples(st.just("pause"))
STEPS = st.lists(st.one_of(SUBMIT, SUBMIT, SUBMIT, STEP, STEP, CANCEL, FAIL, PAUSE), max_size=40)


@dataclass
class Submitted:
    first: int  # number of its first row
    sizes: list[int]
    ticket: Ticket
    sampling: Sampling
    stream: Stream
    cancelled: set[int] = field(default_factory=set)
    rows: list[list[Delta]] = field(default_factory=list)
    error: Exception | None = None

    async def read(self) -> None:
        self.rows = [[] for _ in self.sizes]
        try:
            async for deltas in self.stream:
                for delta in deltas:
                    self.rows[delta.row].append(delta)
        except (DeadlineExceeded, Replaced, EngineError) as error:
            self.error = error


class Script:
    """Does to a scheduler what hypothesis thought of."""

    def __init__(self, engine: Stepping, steps: list[tuple[Any, ...]]) -> None:
        self.engine, self.steps = engine, steps
        self.jobs: list[Submitted] = []
        self.failed = False

    async def play(self, scheduler: Scheduler) -> None:
        for name, *options in self.steps:
            running = [batch for batch in self.engine.batches if batch.rows]
            if name == "submit":
                self.submit(scheduler, options)
            elif name == "step" and options[0] < len(running):
                running[options[0]].gate.release(options[1])
            elif name == "fail" and running:
                self.failed = True
                running[0].fail()
            elif name == "cancel" and options[0] < len(self.jobs):
                job = self.jobs[options[0]]
                job.cancelled.add(options[1])
                job.stream.cancel(options[1])
            await asyncio.sleep(0.001 if name == "pause" else 0)
        self.engine.release()
        await asyncio.gather(*(job.read() for job in self.jobs))

    def submit(self, scheduler: Scheduler, step: list[Any]) -> None:
        owner, interactive, editor, sizes, greedy, late, again = step
        first = 10 * (len(self.jobs) + 1)
        if again and self.jobs:
            first, sizes = self.jobs[-1].first, self.jobs[-1].sizes
        sampling = GREEDY if greedy else RANDOM
        ticket = Ticket(owner, interactive, editor, time.monotonic() - 1 if late else None)
        rows = [row(first + at, size, sampling) for at, size in enumerate(sizes)]
        try:
            stream = scheduler.submit(rows, ticket)
        except QueueFull:
            return
        self.jobs.append(Submitted(first, sizes, ticket, sampling, stream))


def check_rows(job: Submitted) -> None:
    for at, (made, size) in enumerate(zip(job.rows, job.sizes, strict=True)):
        whole = answer(job.first + at, size)
        assert tokens(made) == whole[: len(tokens(made))]
        ends = [delta.finish for delta in made if delta.finish is not None]
        if job.error is not None:
            assert len(ends) <= 1
            continue
        assert ends == [made[-1].finish]
        if ends == ["length"]:
            assert tokens(made) == whole
        else:
            assert ends == ["cancelled"]
            assert at in job.cancelled


def check_order(jobs: list[Submitted], engine: Stepping) -> None:
    """One owner's jobs of a kind begin in the order they came."""
    places = [number for batch in engine.batches for number in batch.order]
    submitted = Counter(job.first for job in jobs)
    kinds: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for job in jobs:
        once = submitted[job.first] == 1 and job.first in places  # else nobody knows whose began when
        share = engine.capabilities.interactive_rows or len(job.sizes)
        interactive = job.ticket.interactive and len(job.sizes) <= share
        # Where two lanes may take interactive jobs, either may be quicker to begin.
        if once and not (interactive and engine.capabilities is TWO_LANES):
            kinds[job.ticket.owner, interactive, job.sampling].append(places.index(job.first))
    for begun in kinds.values():
        assert begun == sorted(begun)


@pytest.mark.parametrize("limits", [TWO_LANES, ADMITTING, ONE_LANE], ids=["two", "admission", "one"])
@given(STEPS)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_row_is_lost_or_given_twice_or_to_another(
    limits: Capabilities, steps: list[tuple[Any, ...]]
) -> None:
    engine, recorder = Stepping(limits), Recorder()
    script = Script(engine, steps)
    drive(script.play, engine, observer=recorder, max_queue=10)
    for job in script.jobs:
        check_rows(job)
        if isinstance(job.error, DeadlineExceeded):
            assert job.ticket.deadline is not None
        if isinstance(job.error, Replaced):
            assert job.ticket.interactive
            assert job.ticket.editor is not None
        if isinstance(job.error, EngineError):
            assert script.failed
    check_order(script.jobs, engine)
    # Everybody's rows ended once, and nothing waits or runs.
    assert sum(recorder.endings.values()) == sum(len(job.sizes) for job in script.jobs)
    assert (recorder.waiting, recorder.rows) == (0, 0)
