"""Interactive jobs and long ones: neither waits for the other."""

from __future__ import annotations

import asyncio
import threading

import pytest
from counting_engine import rows_of, tokens, until
from stepping_engine import (
    ADMITTING,
    ONE_LANE,
    RANDOM,
    TWO_LANES,
    Stepping,
    SteppingBatch,
    answer,
    drive,
    row,
)

from rrtf_serve.engine.protocol import EngineError, Request
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.engine.ticket import Ticket

EDITOR = Ticket(interactive=True)


def test_an_interactive_job_runs_while_a_long_batch_does() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        chat = scheduler.submit([row(1, 90)])
        await until(lambda: engine.started == [[1]])
        behind = scheduler.submit([row(2)])
        completion = scheduler.submit([row(3)], EDITOR)
        await until(lambda: len(engine.batches) == 2)
        engine.batches[1].gate.release(4)
        assert tokens((await rows_of(completion))[0]) == answer(3, 4)
        assert engine.started == [[1], [3]]
        assert (scheduler.rows_running, scheduler.queue_depth) == (1, 1)  # the other long one waits still
        engine.release()
        assert len(tokens((await rows_of(chat))[0])) == 90
        await rows_of(behind)

    drive(test, engine)


def test_the_long_lane_helps_out_while_nothing_long_waits() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1, 20)], EDITOR)
        await until(lambda: engine.started == [[1]])
        second = scheduler.submit([row(2, 20)], EDITOR)
        await until(lambda: engine.started == [[1], [2]])
        third = scheduler.submit([row(3)], EDITOR)
        long = scheduler.submit([row(4)])
        engine.batches[1].gate.release(20)  # the long lane is free, and something long waits
        await until(lambda: len(engine.batches) == 3)
        assert engine.started == [[1], [2], [4]]
        engine.release()
        for stream in (first, second, third, long):
            await rows_of(stream)

    drive(test, engine)


@pytest.mark.parametrize("rows", [[row(3, 60)], [row(3, 1, length=60)], [row(3, 1) for _ in range(5)]])
def test_a_job_too_large_to_be_interactive_is_a_long_one(rows: list[Request]) -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1, 90)])
        await until(lambda: engine.started == [[1]])
        large = scheduler.submit(rows, EDITOR)
        small = scheduler.submit([row(4, 59)], EDITOR)
        await until(lambda: len(engine.batches) == 2)
        assert engine.started == [[1], [4]]
        engine.release()
        for stream, count in ((first, 1), (large, len(rows)), (small, 1)):
            await rows_of(stream, count)

    drive(test, engine)


def test_an_interactive_batch_holds_no_more_than_its_share() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1, 90)]), scheduler.submit([row(2)], EDITOR)]
        await until(lambda: len(engine.batches) == 2)
        streams += [scheduler.submit([row(first, 19)], EDITOR) for first in (3, 4, 5, 6)]
        interactive = next(batch for batch in engine.batches if batch.order == [2])
        interactive.gate.release(4)
        await until(lambda: len(engine.batches) == 3)
        assert engine.batches[2].order == [3, 4, 5]  # 60 tokens
        engine.release()
        for stream in streams:
            await rows_of(stream)

    drive(test, engine)


def test_scores_belong_to_the_long_lane() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        chat = scheduler.submit([row(1, 9)])
        await until(lambda: engine.started == [[1]])
        score = asyncio.create_task(scheduler.score((700, 701), 1))
        completion = scheduler.submit([row(2)], EDITOR)
        await until(lambda: len(engine.batches) == 2)
        engine.batches[1].gate.release(4)
        await rows_of(completion)
        assert engine.scored == []
        engine.release()
        assert len(await score) == 1
        await rows_of(chat)

    drive(test, engine)


def test_a_failing_lane_leaves_the_other_alone() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        chat = scheduler.submit([row(1, 9)])
        await until(lambda: engine.started == [[1]])
        completion = scheduler.submit([row(2)], EDITOR)
        await until(lambda: len(engine.batches) == 2)
        engine.batches[1].fail()
        with pytest.raises(EngineError, match="the test said so"):
            await rows_of(completion)
        again = scheduler.submit([row(3)], EDITOR)
        engine.release()
        assert tokens((await rows_of(again))[0]) == answer(3, 4)
        assert tokens((await rows_of(chat))[0]) == answer(1, 9)

    drive(test, engine)


def test_refused_interactive_jobs_are_tried_alone_even_while_closing() -> None:
    engine = Stepping(TWO_LANES)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1, 9)]), scheduler.submit([row(2)], EDITOR)]
        await until(lambda: len(engine.batches) == 2)
        bad = scheduler.submit([row(-1)], EDITOR)
        streams += [scheduler.submit([row(3)], EDITOR), scheduler.submit([row(4)], EDITOR)]
        closing = asyncio.create_task(scheduler.close(30))
        await asyncio.sleep(0)
        engine.release()
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await rows_of(bad)
        for stream in streams:
            assert (await rows_of(stream))[0][-1].finish == "length"
        await closing

    drive(test, engine)


class Hesitant(Stepping):
    """Takes its time to refuse."""

    def __init__(self) -> None:
        super().__init__(TWO_LANES)
        self.asked, self.refuse = threading.Event(), threading.Event()

    def start(self, requests: list[Request]) -> SteppingBatch:
        if any(request.prompt[0] < 0 for request in requests):
            self.asked.set()
            self.refuse.wait()
        return super().start(requests)


def test_what_one_lane_puts_back_is_run_though_the_other_has_ended() -> None:
    engine = Hesitant()

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([row(1)], EDITOR)
        await until(lambda: engine.started == [[1]])
        chat = scheduler.submit([row(2)])
        await until(lambda: engine.started == [[1], [2]])
        bad, good = scheduler.submit([row(-1)], EDITOR), scheduler.submit([row(3)], EDITOR)
        engine.batches[1].gate.release(4)
        await rows_of(chat)
        await until(engine.asked.is_set)  # the long lane has taken both
        closing = asyncio.create_task(scheduler.close(30))
        engine.release()
        await rows_of(first)
        await until(lambda: all(each.name != "scheduler-interactive" for each in threading.enumerate()))
        engine.refuse.set()
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await rows_of(bad)
        assert tokens((await rows_of(good))[0]) == answer(3, 4)
        await closing

    drive(test, engine)


def test_one_lane_takes_interactive_jobs_first_and_long_ones_in_their_turn() -> None:
    engine = Stepping(ONE_LANE)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([row(1)])]
        await until(lambda: engine.started == [[1]])
        streams += [scheduler.submit([row(2, 99, RANDOM, 100)])]  # alone in a batch
        streams += [scheduler.submit([row(first, 99, RANDOM, 100)], EDITOR) for first in range(10, 20)]
        engine.release()
        for stream in streams:
            await rows_of(stream)
        order = [batch.order[0] for batch in engine.batches]
        assert order == [1, 10, 11, 12, 13, 2, 14, 15, 16, 17, 18, 19]

    drive(test, engine)


def test_a_batch_full_of_chats_has_room_for_an_interactive_row() -> None:
    engine = Stepping(ADMITTING)

    async def test(scheduler: Scheduler) -> None:
        chats = [scheduler.submit([row(first, 40)]) for first in range(1, 10)]
        await until(lambda: len(engine.batches) == 1)
        engine.batches[0].gate.release()
        await until(lambda: scheduler.rows_running == 6)  # of 8
        completions = [scheduler.submit([row(first)], EDITOR) for first in (20, 21, 22)]
        engine.batches[0].gate.release()
        await until(lambda: scheduler.rows_running == 8)
        assert engine.batches[0].order == [1, 2, 3, 4, 5, 6, 20, 21]
        engine.batches[0].gate.release(4)
        await rows_of(completions[0])
        await until(lambda: scheduler.rows_running == 7)
        assert engine.batches[0].order[8:] == [22]  # before the chats that wait
        engine.release()
        for stream in (*chats, *completions[1:]):
            await rows_of(stream)

    drive(test, engine)


def test_long_jobs_get_in_while_interactive_ones_come_without_end() -> None:
    engine = Stepping(ADMITTING, free=True)

    async def test(scheduler: Scheduler) -> None:
        done = asyncio.Event()
        answered = 0

        async def typing(first: int) -> None:
            nonlocal answered
            while not done.is_set():
                await rows_of(scheduler.submit([row(first, 3)], EDITOR))
                answered += 1

        editors = [asyncio.create_task(typing(first)) for first in range(20, 30)]
        await until(lambda: answered > 20)
        wide = scheduler.submit([row(first, 5) for first in range(1, 8)])  # more than long rows may take
        assert len(await rows_of(wide, 7)) == 7
        done.set()
        await asyncio.gather(*editors)

    drive(test, engine)
