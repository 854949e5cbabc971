"""Turns between owners, and bounds of what waits."""

from __future__ import annotations

from collections import defaultdict

import pytest
from counting_engine import rows_of, until
from hypothesis import given
from hypothesis import strategies as st
from stepping_engine import ONE_LANE, Recorder, Stepping, drive, row

from rrtf_serve.engine.protocol import Capabilities
from rrtf_serve.engine.scheduler import QueueFull, Scheduler
from rrtf_serve.engine.ticket import Ticket
from rrtf_serve.engine.waiting import Bounds, Waiting


def test_a_hundred_jobs_of_one_owner_do_not_delay_anothers_one() -> None:
    engine = Stepping(Capabilities(200, 1, 5, 50))

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1)], Ticket("ann"))
        await until(lambda: engine.started == [[1]])
        many = [scheduler.submit([row(first)], Ticket("ann")) for first in range(2, 50)]
        one = scheduler.submit([row(50)], Ticket("bob"))
        engine.release()
        await rows_of(one)
        for stream in (first, *many):
            await rows_of(stream)
        order = [batch.order[0] for batch in engine.batches]
        assert order.index(50) <= 2
        assert [number for number in order if number != 50] == list(range(1, 50))

    drive(test, engine)


def test_nobody_passes_a_wide_job_of_the_same_owner() -> None:
    engine = Stepping(ONE_LANE)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1)], Ticket("ann"))]
        await until(lambda: engine.started == [[1]])
        streams += [scheduler.submit([row(2)], Ticket("ann"))]
        wide = scheduler.submit([row(first) for first in (3, 4, 5, 6)], Ticket("ann"))
        streams += [scheduler.submit([row(7)], Ticket("ann")), scheduler.submit([row(8)], Ticket("bob"))]
        engine.release()
        await rows_of(wide, 4)
        for stream in streams:
            await rows_of(stream)
        assert sorted(engine.batches[1].order) == [2, 8]
        assert [batch.order for batch in engine.batches[2:]] == [[3, 4, 5, 6], [7]]

    drive(test, engine)


def test_tokens_that_wait_are_bounded() -> None:
    engine = Stepping(ONE_LANE)
    recorder = Recorder()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([row(1, 90)])
        await until(lambda: engine.started == [[1]])
        waiting = scheduler.submit([row(2, 90, length=90)])
        with pytest.raises(QueueFull, match="180 tokens are waiting, and at most 250 may") as caught:
            scheduler.submit([row(3, 70)])
        assert 1 <= caught.value.retry_after_s <= 60
        other = scheduler.submit([row(4, 69)])
        with pytest.raises(ValueError, match=r"needs 300 tokens.*250 at most"):
            scheduler.submit([row(5, 99), row(6, 99), row(7, 99)])
        assert recorder.refusals == ["queue_full", "too_many_tokens"]
        engine.release()
        for stream in (running, waiting, other):
            await rows_of(stream)

    drive(test, engine, max_queue_tokens=250, observer=recorder)


def test_a_row_that_can_never_fit_is_refused() -> None:
    engine = Stepping(Capabilities(1000, 4, 5, 50, max_batch_tokens=200))

    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(ValueError, match=r"needs 201 tokens.*runs 200 at once"):
            scheduler.submit([row(1, 101, length=100)])

    drive(test, engine)


def test_one_owner_leaves_places_to_the_others() -> None:
    engine = Stepping(ONE_LANE)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1)], Ticket("ann"))]
        await until(lambda: engine.started == [[1]])
        streams += [scheduler.submit([row(2)], Ticket("bob"))]
        streams += [scheduler.submit([row(first)], Ticket("ann")) for first in range(3, 9)]
        with pytest.raises(QueueFull, match="6 of your requests"):
            scheduler.submit([row(9)], Ticket("ann"))
        streams += [scheduler.submit([row(10)], Ticket("bob"))]
        with pytest.raises(QueueFull, match="8 requests"):
            scheduler.submit([row(11)], Ticket("bob"))
        engine.release()
        for stream in streams:
            await rows_of(stream)

    drive(test, engine, max_queue=8)


def test_an_owner_that_is_alone_has_the_whole_queue_and_editors_have_their_own() -> None:
    engine = Stepping(ONE_LANE)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1)], Ticket("ann"))]
        await until(lambda: engine.started == [[1]])
        streams += [scheduler.submit([row(first)], Ticket("ann")) for first in range(2, 6)]
        with pytest.raises(QueueFull, match="4 requests"):
            scheduler.submit([row(9)], Ticket("ann"))
        streams += [scheduler.submit([row(10)], Ticket("ann", interactive=True))]
        engine.release()
        for stream in streams:
            await rows_of(stream)

    drive(test, engine, max_queue=4)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 50)), min_size=1, max_size=60),
    st.lists(st.integers(0, 59), max_size=20),
)
def test_owners_get_equal_shares_and_keep_their_order(jobs: list[tuple[int, int]], gone: list[int]) -> None:
    """While two owners have work waiting, what they got differs by no more than two of the largest jobs."""
    waiting: Waiting[tuple[int, int]] = Waiting(Bounds(1000, 1_000_000))
    works = [(number, size) for number, (_, size) in enumerate(jobs)]
    for (owner, size), work in zip(jobs, works, strict=True):
        waiting.put(work, str(owner), size)
    for number in sorted(set(gone)):
        if number < len(works):
            waiting.drop(works[number])
    left = defaultdict(list)
    for number, (owner, _) in enumerate(jobs):
        if number not in gone:
            left[owner].append(number)
    served: dict[int, int] = dict.fromkeys(left, 0)
    assert [work[0] for work in waiting][:1] == ([waiting.first[0]] if waiting else [])
    while waiting:
        number, size = waiting.first
        owner = jobs[number][0]
        assert left[owner].pop(0) == number
        waiting.take(works[number])
        served[owner] += size
        busy = [served[each] for each in left if left[each]]
        assert not busy or max(busy) - min(busy) <= 2 * max(size for _, size in jobs)
    assert waiting.tokens == 0
    assert not any(left.values())


def test_who_comes_back_neither_gains_nor_loses() -> None:
    waiting: Waiting[str] = Waiting(Bounds(100, 10_000))
    names = [f"a{number}" for number in range(4)]
    for name in names:
        waiting.put(name, "a", 10)
    waiting.take(names[0])
    waiting.put("b0", "b", 40)
    assert waiting.first == "b0"  # it begins where the other one stands
    waiting.take("b0")
    waiting.put("b1", "b", 1)  # and pays for what it got
    assert list(waiting) == ["a1", "a2", "a3", "b1"]


def test_what_is_put_back_goes_first() -> None:
    waiting: Waiting[str] = Waiting(Bounds(100, 10_000))
    for name in ("a", "b", "c"):
        waiting.put(name, None, 10)
    waiting.take("a")
    waiting.take("b")
    waiting.put_back("b", None, 10)
    waiting.put_back("a", None, 10)
    assert list(waiting) == ["a", "b", "c"]
