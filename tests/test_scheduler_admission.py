"""The scheduler in front of an engine that lets requests join a running batch."""

from __future__ import annotations

import asyncio
import random

import pytest
from counting_engine import Counting, request, rows_of, run, tokens, until

from rrtf_serve.engine.protocol import Delta, EngineError, Sampling, TokenLogprob
from rrtf_serve.engine.scheduler import Scheduler, SchedulerClosed


def test_a_job_joins_the_running_batch_at_its_next_step() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([request(10, 6)])
        await until(lambda: engine.batches == [[10]])
        other = scheduler.submit([request(20), request(30, 2, Sampling(temperature=0.5))])
        engine.gate.release(1)  # the step that was under way when it came
        await until(lambda: scheduler.rows_running == 3)
        assert scheduler.queue_depth == 0
        engine.gate.release(4)
        assert [tokens(row) for row in await rows_of(other, 2)] == [[21, 22, 23, 24], [31, 32]]
        assert scheduler.rows_running == 1
        engine.gate.release(100)
        assert tokens((await rows_of(first))[0]) == [11, 12, 13, 14, 15, 16]
        assert engine.batches == [[10, 20, 30]]

    run(test, engine)


def test_nobody_passes_a_job_that_does_not_fit_yet() -> None:
    engine = Counting(admission=True, max_batch=3)

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 3), request(11, 9)])
        await until(lambda: engine.batches == [[10, 11]])
        wide = scheduler.submit([request(20), request(21)])
        small = scheduler.submit([request(30, 1)])
        engine.gate.release(2)
        await asyncio.sleep(0.05)
        # There is room for the small one, and it waits its turn.
        assert (engine.batches, scheduler.queue_depth) == ([[10, 11]], 2)
        engine.gate.release(1)  # 10 ends
        await until(lambda: scheduler.queue_depth == 1)
        assert engine.batches == [[10, 11, 20, 21]]
        engine.gate.release(100)
        for stream, rows in ((running, 2), (wide, 2), (small, 1)):
            await rows_of(stream, rows)
        assert engine.batches == [[10, 11, 20, 21, 30]]

    run(test, engine)


@pytest.mark.parametrize(("length", "joins"), [(40, True), (41, False)])
def test_tokens_of_all_rows_are_bounded(length: int, joins: bool) -> None:
    engine = Counting(admission=True, max_batch_tokens=100)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([request(10, 19, length=31)])
        await until(lambda: engine.batches == [[10]])
        other = scheduler.submit([request(20, 10, length=length)])
        engine.gate.release(3)
        await asyncio.sleep(0.05)
        assert engine.batches == ([[10, 20]] if joins else [[10]])
        engine.gate.release(100)
        await rows_of(first)
        await rows_of(other)
        assert engine.batches == ([[10, 20]] if joins else [[10], [20]])

    run(test, engine)


def test_a_job_larger_than_a_batch_waits_until_it_is_alone_and_runs() -> None:
    engine = Counting(admission=True, max_batch=2)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([request(10)])
        await until(lambda: engine.batches == [[10]])
        wide = scheduler.submit([request(20 + row) for row in range(5)])
        last = scheduler.submit([request(30)])
        engine.gate.release(1000)
        await rows_of(first)
        assert [tokens(row)[0] for row in await rows_of(wide, 5)] == [21, 22, 23, 24, 25]
        await rows_of(last)
        assert [each for each in engine.batches if 20 in each] == [[20, 21, 22, 23, 24]]

    run(test, engine)


def test_a_refused_job_fails_alone() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 9)])
        await until(lambda: engine.batches == [[10]])
        bad, good = scheduler.submit([request(20), request(-1)]), scheduler.submit([request(30, 2)])
        engine.gate.release(100)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await rows_of(bad, 2)
        assert tokens((await rows_of(good))[0]) == [31, 32]
        assert len(tokens((await rows_of(running))[0])) == 9
        assert engine.batches == [[10, 30]]

    run(test, engine)


def test_rows_that_fail_take_their_job_with_them_and_nobody_else() -> None:
    engine = Counting(admission=True, failing={21})

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 9)])
        await until(lambda: engine.batches == [[10]])
        hit = scheduler.submit([request(20, 90), request(21, 90), request(22, 90)])
        late = scheduler.submit([request(30, 2)])
        engine.gate.release(100)
        with pytest.raises(EngineError, match="out of memory for some"):
            await rows_of(hit, 3)
        assert len(tokens((await rows_of(running))[0])) == 9
        assert tokens((await rows_of(late))[0]) == [31, 32]
        await until(lambda: scheduler.rows_running == 0)  # those beside it were stopped
        engine.gate.release(100)
        assert tokens((await rows_of(scheduler.submit([request(40, 1)])))[0]) == [41]

    run(test, engine)


def test_a_failing_batch_fails_those_who_joined_it_too() -> None:
    engine = Counting(admission=True, fail_at=3)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([request(10, 9)])
        await until(lambda: engine.batches == [[10]])
        ended, other = scheduler.submit([request(20, 1)]), scheduler.submit([request(30, 9)])
        engine.gate.release(100)
        for stream in (first, other):
            with pytest.raises(EngineError, match="out of memory"):
                await rows_of(stream)
        assert tokens((await rows_of(ended))[0]) == [21]
        assert tokens((await rows_of(scheduler.submit([request(40, 2)])))[0]) == [41, 42]

    run(test, engine)


def test_a_score_runs_between_two_steps_in_its_turn() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 50)])
        await until(lambda: engine.batches == [[10]])
        score = asyncio.create_task(scheduler.score((1, 2), 3))
        await until(lambda: scheduler.queue_depth == 1)
        behind = scheduler.submit([request(20, 2)])
        engine.gate.release(1)  # a step
        await asyncio.sleep(0.05)
        assert (engine.scored, engine.batches) == ([], [[10]])
        engine.gate.release(1)  # the score
        assert await score == [TokenLogprob(2, -3.0)]
        engine.gate.release(2)
        assert tokens((await rows_of(behind))[0]) == [21, 22]
        assert scheduler.rows_running == 1
        running.cancel()
        engine.gate.release(2)

    run(test, engine)


def test_rows_decode_and_join_while_a_long_prompt_is_scored() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 50)])
        await until(lambda: engine.batches == [[10]])
        score = asyncio.create_task(scheduler.score(tuple(range(1, 7)), 3))
        second = asyncio.create_task(scheduler.score((8, 9), 1))
        await until(lambda: scheduler.queue_depth == 2)
        late = scheduler.submit([request(20, 2)])
        engine.gate.release(4)  # a step, a piece, a step, a piece
        await until(lambda: engine.scored == [1, 2])
        await asyncio.sleep(0.02)  # what was pushed has arrived
        assert tokens(await anext(running)) == [11, 12]
        assert not score.done()
        engine.gate.release(6)
        assert await score == [TokenLogprob(token, -3.0) for token in range(2, 7)]
        engine.gate.release(3)
        assert await second == [TokenLogprob(9, -1.0)]
        assert engine.scored == [1, 2, 3, 4, 5, 8]
        assert tokens((await rows_of(late))[0]) == [21, 22]
        running.cancel()
        engine.gate.release(2)

    run(test, engine)


def test_a_score_goes_on_after_the_batch_and_lets_a_new_one_begin() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        score = asyncio.create_task(scheduler.score(tuple(range(1, 7)), 3))
        await until(lambda: scheduler.queue_depth == 0)
        job = scheduler.submit([request(20, 1)])
        engine.gate.release(3)
        assert tokens((await rows_of(job))[0]) == [21]
        assert not score.done()
        engine.gate.release(100)
        assert len(await score) == 5

    run(test, engine)


def test_a_score_that_nobody_waits_for_stops_between_two_pieces() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        score = asyncio.create_task(scheduler.score(tuple(range(1, 7)), 3))
        other = asyncio.create_task(scheduler.score((8, 9), 3))
        engine.gate.release(2)
        await until(lambda: engine.scored == [1, 2])
        score.cancel()
        await asyncio.sleep(0)
        engine.gate.release(2)
        assert await other == [TokenLogprob(9, -3.0)]
        assert engine.scored == [1, 2, 3, 8]

    run(test, engine)


def test_closing_ends_a_score_between_two_pieces() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        score = asyncio.create_task(scheduler.score(tuple(range(1, 7)), 3))
        engine.gate.release(1)
        await until(lambda: engine.scored == [1])
        closing = asyncio.create_task(scheduler.close(0))
        with pytest.raises(SchedulerClosed):
            await score
        engine.gate.release(5)
        await closing
        assert len(engine.scored) <= 2  # the piece under way was made to its end

    run(test, engine)


def test_cancelling_reaches_rows_that_joined() -> None:
    engine = Counting(admission=True)

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 50)])
        await until(lambda: engine.batches == [[10]])
        gone = scheduler.submit([request(40)])
        gone.cancel()  # while it waits
        joined = scheduler.submit([request(20, 50), request(30, 50), request(31, 50)])
        joined.cancel(2)  # it joins with the others, and is let go at the first step
        engine.gate.release(2)
        await until(lambda: scheduler.rows_running == 3)
        joined.cancel(1)
        engine.gate.release(2)
        await until(lambda: scheduler.rows_running == 2)
        running.cancel()
        joined.cancel()
        engine.gate.release(2)
        await until(lambda: scheduler.rows_running == 0)
        assert [row[-1].finish for row in await rows_of(joined, 3)] == ["cancelled"] * 3
        assert engine.batches == [[10, 20, 30, 31]]

    run(test, engine)


def test_closing_cancels_those_who_joined_and_those_who_wait() -> None:
    engine = Counting(admission=True, max_batch=2)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([request(10 * row, 90)]) for row in range(1, 4)]
        engine.gate.release(2)
        await until(lambda: scheduler.rows_running == 2)
        closing = asyncio.create_task(scheduler.close(0.05))
        for stream in streams:
            assert (await rows_of(stream))[0][-1].finish == "cancelled"
        with pytest.raises(SchedulerClosed):
            scheduler.submit([request(40)])
        engine.gate.release(2)
        await closing
        assert engine.batches == [[10, 20]]

    run(test, engine)


def test_closing_lets_those_who_wait_join_and_finish() -> None:
    engine = Counting(admission=True, max_batch=2)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([request(10 * row, 3)]) for row in range(1, 5)]
        closing = asyncio.create_task(scheduler.close(10))
        engine.gate.release(100)
        for stream in streams:
            assert (await rows_of(stream))[0][-1].finish == "length"
        await closing

    run(test, engine)


def test_a_stream_of_jobs_starves_nobody() -> None:
    """Small jobs come without end; the large one among them runs all the same, in its turn."""
    engine = Counting(admission=True, max_batch=4)

    async def test(scheduler: Scheduler) -> None:
        engine.gate.release(100_000)
        chooser = random.Random(3)
        done = asyncio.Event()
        answered: list[list[Delta]] = []

        async def small() -> None:
            while not done.is_set():
                answered.extend(await rows_of(scheduler.submit([request(7, chooser.randint(1, 5))])))

        others = [asyncio.create_task(small()) for _ in range(6)]
        await until(lambda: len(answered) > 20)
        for _ in range(5):
            large = await rows_of(scheduler.submit([request(50 + row) for row in range(4)]), 4)
            assert [tokens(row)[0] for row in large] == [51, 52, 53, 54]
        done.set()
        await asyncio.gather(*others)

    run(test, engine)
