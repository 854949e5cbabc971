"""Deadlines, replacing, and decodes that are shared."""

from __future__ import annotations

import asyncio
import time

import pytest
from counting_engine import rows_of, tokens, until
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

from rrtf_serve.engine.protocol import Delta, Request, Sampling
from rrtf_serve.engine.scheduler import DeadlineExceeded, QueueFull, Replaced, Scheduler
from rrtf_serve.engine.ticket import MOST_TYPED, Editing, Ticket


def editing(client: str = "one", before: str = "x", after: str = "", *, file: str = "") -> Editing:
    return Editing((client, file), before, after, named=bool(file))


def editor(name: str = "one", owner: str = "ann") -> Ticket:
    return Ticket(owner, interactive=True, editor=editing(name))


def test_a_job_past_its_deadline_leaves_the_queue_and_never_starts() -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([row(1, 9)])
        await until(lambda: engine.started == [[1]])
        late = scheduler.submit([row(2)], Ticket(deadline=time.monotonic() + 0.05))
        with pytest.raises(DeadlineExceeded, match="time limit"):
            await rows_of(late)
        assert scheduler.queue_depth == 0
        engine.release()
        await rows_of(running)
        assert engine.started == [[1]]

    drive(test, engine)


def test_a_running_job_is_stopped_at_its_deadline_and_the_others_go_on() -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        blocker = scheduler.submit([row(1, 1)])
        await until(lambda: engine.started == [[1]])
        late = scheduler.submit([row(2, 50)], Ticket(deadline=time.monotonic() + 0.3))
        other = scheduler.submit([row(3, 9)], Ticket(deadline=time.monotonic() + 1000))
        engine.batches[0].gate.release()
        await rows_of(blocker)
        await until(lambda: len(engine.batches) == 2)
        engine.batches[1].gate.release(2)
        seen: list[Delta] = []
        with pytest.raises(DeadlineExceeded):
            async for deltas in late:
                seen += deltas
        assert tokens(seen) == answer(2, 2)
        engine.batches[1].gate.release(2)  # the step under way, and the one that lets it go
        await until(lambda: scheduler.rows_running == 1)
        engine.release()
        assert tokens((await rows_of(other))[0]) == answer(3, 9)

    drive(test, engine)


def test_a_job_that_came_too_late_fails_and_one_in_time_does_not() -> None:
    engine = Stepping(free=True)

    async def test(scheduler: Scheduler) -> None:
        late = scheduler.submit([row(1)], Ticket(deadline=time.monotonic() - 1))
        fine = scheduler.submit([row(2)], Ticket(deadline=time.monotonic() + 1000))
        with pytest.raises(DeadlineExceeded):
            await rows_of(late)
        assert tokens((await rows_of(fine))[0]) == answer(2, 4)
        assert [1] not in engine.started

    drive(test, engine)


def test_a_score_has_a_deadline_too() -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([row(1)])
        await until(lambda: engine.started == [[1]])
        with pytest.raises(DeadlineExceeded):
            await scheduler.score((100, 101), 1, Ticket(deadline=time.monotonic() + 0.02))
        assert scheduler.queue_depth == 0
        engine.release()
        await rows_of(running)

    drive(test, engine)


@pytest.mark.parametrize("waits", [True, False])
def test_a_newer_job_of_the_editor_replaces_the_older(waits: bool) -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        others = []
        if waits:
            others = [scheduler.submit([row(first, 50)], Ticket("bob", True)) for first in (1, 2)]
            await until(lambda: len(engine.batches) == 2)
        older = scheduler.submit([row(3, 50)], editor())
        if not waits:
            await until(lambda: engine.started == [[3]])
        kept = scheduler.submit([row(4, 50)], editor("two"))
        foreign = scheduler.submit([row(5, 50)], editor("one", "eve"))
        newer = scheduler.submit([row(6)], editor())
        with pytest.raises(Replaced, match="newer request"):
            await rows_of(older)
        engine.release()
        assert tokens((await rows_of(newer))[0]) == answer(6, 4)
        for stream in (kept, foreign, *others):
            assert len(tokens((await rows_of(stream))[0])) == 50

    drive(test, engine)


HEAD = "# a licence\n" * 40


@pytest.mark.parametrize(
    ("older", "newer", "same"),
    [
        (editing(before="def f"), editing(before="def fo"), True),  # typed
        (editing(before="def fo"), editing(before="def f"), True),  # deleted
        (editing(before="def f"), editing(before="def f"), True),  # what else was sent differs
        (editing(before="a"), editing(before="a" + "b" * MOST_TYPED), True),
        (editing(before="a"), editing(before="a" + "b" * (MOST_TYPED + 1)), False),
        (editing(before="a" * 500), editing(before="a"), False),
        (editing(before="def f"), editing(before="def g"), False),
        (editing(before=f"{HEAD}def f"), editing(before=f"{HEAD}def g"), False),
        (editing(before=""), editing(before="def f"), False),
        (editing(before=""), editing(before=""), False),
        (editing(before="\n"), editing(before="\n\nimport"), False),
        (editing(after="\ny"), editing(before="xy", after="\ny"), True),
        (editing(after="\ny"), editing(before="xy", after="\nz"), False),
        (editing(after="y", file="a.py"), editing(before="x(", after=")y", file="a.py"), True),
        (editing(after="y", file="a.py"), editing(before="z", after="y", file="a.py"), False),
        (editing(file="a.py"), editing(before="xy", file="b.py"), False),
        (editing("one"), editing("two", "xy"), False),
    ],
)
def test_what_is_one_editing(older: Editing, newer: Editing, same: bool) -> None:
    assert newer.goes_on(older) is older.goes_on(newer) is same
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1, 9)], Ticket("ann", True, older))
        await until(lambda: engine.started == [[1]])
        second = scheduler.submit([row(2)], Ticket("ann", True, newer))
        engine.release()
        if same:
            with pytest.raises(Replaced):
                await rows_of(first)
        else:
            assert tokens((await rows_of(first))[0]) == answer(1, 9)
        assert tokens((await rows_of(second))[0]) == answer(2, 4)

    drive(test, engine)


def test_a_full_queue_takes_nothing_from_who_goes_on() -> None:
    engine = Stepping(ONE_LANE)
    recorder = Recorder()

    async def test(scheduler: Scheduler) -> None:
        typing = scheduler.submit([row(1, 50)], editor())
        await until(lambda: engine.started == [[1]])
        waiting = [scheduler.submit([row(2)], editor("two")), scheduler.submit([row(3)])]
        with pytest.raises(QueueFull):
            scheduler.submit([row(4)], editor())
        assert recorder.refusals == ["queue_full"]
        assert recorder.endings == {}
        # Who waits makes room for what follows it.
        newer = scheduler.submit([row(5)], editor("two"))
        assert recorder.waiting == 2
        with pytest.raises(Replaced):
            await rows_of(waiting[0])
        engine.release()
        assert len(tokens((await rows_of(typing))[0])) == 50
        assert tokens((await rows_of(newer))[0]) == answer(5, 4)
        await rows_of(waiting[1])

    # ONE_LANE has a queue of each kind; what is interactive fills its own.
    drive(test, engine, observer=recorder, max_queue=1)


def test_the_same_prompt_and_long_jobs_replace_nothing() -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1, 5, RANDOM)], editor()) for _ in range(3)]
        streams += [scheduler.submit([row(1, 7, RANDOM)], editor())]
        streams += [scheduler.submit([row(2)], Ticket("ann", interactive=False, editor=editing()))]
        engine.release()
        made = [len(tokens((await rows_of(stream))[0])) for stream in streams]
        assert made == [5, 5, 5, 7, 4]

    drive(test, engine)


def test_identical_greedy_jobs_share_a_decode() -> None:
    engine = Stepping()
    recorder = Recorder()

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1, 6), row(2, 2)])
        await until(lambda: engine.started == [[1, 2]])
        engine.batches[0].gate.release(3)
        early = await anext(first)
        while len(early) < 5:
            early += await anext(first)
        second = scheduler.submit([row(1, 6), row(2, 2)])
        # All at once what was made before, the end of a row among it.
        assert [(delta.row, delta.token) for delta in await anext(second)] == [
            (0, 101), (1, 201), (0, 102), (1, 202), (0, 103),
        ]  # fmt: skip
        engine.release()
        assert [delta.token for deltas in [d async for d in second] for delta in deltas] == [104, 105, 106]
        assert [delta.token for deltas in [d async for d in first] for delta in deltas] == [104, 105, 106]
        assert engine.started == [[1, 2]]
        assert recorder.endings == {"length": 4}
        assert sorted(recorder.made) == [(1, 2), (1, 6)]
        assert len(recorder.firsts) == len(recorder.starts) == 2
        # Once it has ended there is nothing to share.
        await rows_of(scheduler.submit([row(1, 6), row(2, 2)]), 2)
        assert engine.started == [[1, 2], [1, 2]]

    drive(test, engine, observer=recorder)


def test_cancelling_one_of_those_who_share_leaves_the_others() -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        first, second, third = (scheduler.submit([row(1, 50), row(2, 50)]) for _ in range(3))
        await until(lambda: engine.started == [[1, 2]])
        first.cancel()
        second.cancel(1)
        engine.batches[0].gate.release(3)
        seen: list[Delta] = []
        while len(tokens(seen)) < 6:
            seen += await anext(third)
        assert scheduler.rows_running == 2
        third.cancel()  # row 1 is wanted by nobody now
        engine.batches[0].gate.release(2)
        await until(lambda: scheduler.rows_running == 1)
        # A row of it was stopped, so it is of no use to those who come now.
        fourth = scheduler.submit([row(1, 50), row(2, 50)])
        second.cancel()
        engine.batches[0].gate.release(2)
        await until(lambda: len(engine.batches) == 2)
        engine.release()
        assert [len(tokens(made)) for made in await rows_of(fourth, 2)] == [50, 50]

    drive(test, engine)


SEEDED = Sampling(temperature=1.0, seed=3)


@pytest.mark.parametrize(
    ("one", "other", "owners", "shared"),
    [
        (row(1), row(1), ("ann", "ann"), True),
        (row(1), row(1), ("ann", "bob"), False),
        (row(1), row(1, 5), ("ann", "ann"), False),
        (row(1), row(1, length=2), ("ann", "ann"), False),
        (row(1), Request((100,), 4, frozenset({7}), GREEDY), ("ann", "ann"), False),
        (row(1, 4, RANDOM), row(1, 4, RANDOM), ("ann", "ann"), False),
        (row(1, 4, SEEDED), row(1, 4, SEEDED), ("ann", "ann"), True),
        (row(1, 4, Sampling(top_k=1)), row(1, 4, Sampling(top_k=1)), ("ann", "ann"), True),
    ],
)
def test_what_is_shared(one: Request, other: Request, owners: tuple[str, str], shared: bool) -> None:
    engine = Stepping(ADMITTING)

    async def test(scheduler: Scheduler) -> None:
        streams = [
            scheduler.submit([each], Ticket(owner)) for each, owner in zip((one, other), owners, strict=True)
        ]
        engine.release()
        for stream in streams:
            await rows_of(stream)
        assert sum(map(len, engine.started)) == (1 if shared else 2)

    drive(test, engine)


def test_seeds_are_not_shared_where_neighbours_change_an_answer() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1, 4, SEEDED)]) for _ in range(2)]
        engine.release()
        for stream in streams:
            await rows_of(stream)
        assert sum(map(len, engine.started)) == 2

    drive(test, engine)


def test_an_interactive_job_does_not_wait_with_the_long_one_that_is_its_like() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        chat = scheduler.submit([row(1, 50)])
        await until(lambda: engine.started == [[1]])
        waiting = scheduler.submit([row(2)])
        completion = scheduler.submit([row(2)], Ticket(interactive=True))
        await until(lambda: engine.started == [[1], [2]])
        engine.batches[1].gate.release(4)
        await rows_of(completion)
        engine.release()
        await rows_of(waiting)
        await rows_of(chat)

    drive(test, engine)


def test_each_of_those_who_share_has_a_deadline_and_an_editor_of_its_own() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        patient = scheduler.submit([row(1, 20)], editor("a"))
        hasty = scheduler.submit(
            [row(1, 20)], Ticket("ann", True, editing("b"), deadline=time.monotonic() + 0.05)
        )
        typing = scheduler.submit([row(1, 20)], editor("c"))
        newer = scheduler.submit([row(2)], editor("c"))
        with pytest.raises(DeadlineExceeded):
            await rows_of(hasty)
        with pytest.raises(Replaced):
            await rows_of(typing)
        engine.release()
        assert tokens((await rows_of(patient))[0]) == answer(1, 20)
        await rows_of(newer)

    drive(test, engine)


def test_what_the_observer_is_told() -> None:
    engine = Stepping(TWO_LANES)
    recorder = Recorder()

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1, 3, length=5)])
        await until(lambda: engine.started == [[1]])
        waiting = scheduler.submit([row(2)])
        waiting.cancel()
        assert (recorder.most_waiting, recorder.waiting) == (1, 0)
        engine.batches[0].gate.release(3)
        await rows_of(first)
        assert recorder.made == [(5, 3)]
        assert len(recorder.gaps) == 2
        assert recorder.sizes == [1, 1, 1]
        assert recorder.endings == {"length": 1, "cancelled": 1}
        old = scheduler.submit([row(3)], editor())
        scheduler.submit([row(4)], editor())
        with pytest.raises(Replaced):
            await rows_of(old)
        failing = scheduler.submit([row(-1)])
        with pytest.raises(ValueError, match="outside"):
            await rows_of(failing)
        with pytest.raises(ValueError, match="202 tokens"):
            scheduler.submit([row(1, 200, length=1), row(1, 1)])
        assert recorder.endings["replaced"] == recorder.endings["error"] == 1
        assert recorder.refusals == ["too_many_tokens"]
        late = scheduler.submit([row(5)], Ticket(deadline=time.monotonic() - 1))
        with pytest.raises(DeadlineExceeded):
            await rows_of(late)
        assert recorder.endings["deadline"] == 1

    drive(test, engine, observer=recorder, max_queue_tokens=200)
    assert (recorder.waiting, recorder.rows) == (0, 0)


def test_closing_ends_everybody_who_shares() -> None:
    engine = Stepping()

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1, 90)]) for _ in range(2)]
        await until(lambda: engine.started == [[1]])
        closing = asyncio.create_task(scheduler.close(0))
        for stream in streams:
            assert (await rows_of(stream))[0][-1].finish == "cancelled"
        engine.release()
        await closing

    drive(test, engine)
