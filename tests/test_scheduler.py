from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_engine import GREEDY, Counting, request, rows_of, run, tokens, until
from tiny_ct2 import EOS, write_llama

from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.protocol import Delta, EngineError, Request, Sampling, TokenLogprob
from rrtf_serve.engine.scheduler import QueueFull, Scheduler, SchedulerClosed


def test_rows_keep_their_numbers_and_jobs_wait_in_order() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([request(10)])
        await until(lambda: engine.batches == [[10]])
        # While the first one runs these gather; equal sampling joins them, past the one that differs.
        waiting = [
            scheduler.submit([request(20), request(30, 2)]),
            scheduler.submit([request(40, sampling=Sampling(temperature=0.5))]),
            scheduler.submit([request(50)]),
        ]
        assert (scheduler.queue_depth, scheduler.rows_running) == (3, 1)
        engine.gate.release(100)
        assert tokens((await rows_of(first))[0]) == [11, 12, 13, 14]
        assert [tokens(row) for row in await rows_of(waiting[0], 2)] == [[21, 22, 23, 24], [31, 32]]
        assert tokens((await rows_of(waiting[1]))[0]) == [41, 42, 43, 44]
        assert tokens((await rows_of(waiting[2]))[0]) == [51, 52, 53, 54]
        assert engine.batches == [[10], [20, 30, 50], [40]]

    run(test, engine)


@pytest.mark.parametrize(
    ("behind", "together"),
    [
        ([request(30)], True),
        ([request(30, length=5)], True),
        ([request(30, length=6)], False),  # prompts too far apart
        ([request(30, 50), request(31, 46)], True),
        ([request(30, 50), request(31, 47)], False),  # 101 tokens
        ([request(30 + row) for row in range(7)], True),
        ([request(30 + row) for row in range(8)], False),  # nine rows
        ([request(30, sampling=Sampling(temperature=0, logprobs=1))], False),
    ],
)
def test_a_batch_holds_what_the_engine_can_run_at_once(behind: list[Request], together: bool) -> None:
    engine = Counting(max_batch_tokens=100)

    async def test(scheduler: Scheduler) -> None:
        first = scheduler.submit([request(10)])
        await until(lambda: engine.batches == [[10]])
        streams = [first, scheduler.submit([request(20, 1)]), scheduler.submit(behind)]
        engine.gate.release(1000)
        for stream, rows in zip(streams, [1, 1, len(behind)], strict=True):
            await rows_of(stream, rows)
        first_tokens = [row.prompt[0] for row in behind]
        expected = [[20, *first_tokens]] if together else [[20], first_tokens]
        assert engine.batches[1:] == expected

    run(test, engine)


def test_a_job_larger_than_a_batch_still_runs() -> None:
    engine = Counting(max_batch=2)
    engine.gate.release(100)

    async def test(scheduler: Scheduler) -> None:
        answer = await rows_of(scheduler.submit([request(10 * row) for row in range(5)]), 5)
        assert [tokens(row)[0] for row in answer] == [1, 11, 21, 31, 41]

    run(test, engine)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10)])
        await until(lambda: scheduler.queue_depth == 0)
        waiting = [scheduler.submit([request(first)]) for first in (20, 21)]
        with pytest.raises(QueueFull, match="2 requests are waiting") as caught:
            scheduler.submit([request(30)])
        assert 1 <= caught.value.retry_after_s <= 60
        with pytest.raises(QueueFull):
            await scheduler.score((1, 2), 0)
        waiting[0].cancel()  # makes room again
        late = scheduler.submit([request(40)])
        engine.gate.release(100)
        for stream in [running, *waiting, late]:
            await rows_of(stream)

    run(test, engine, max_queue=2)


def test_cancelling_ends_the_stream_at_once_and_frees_the_engine_in_a_step() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        stream = scheduler.submit([request(10, 90), request(20, 90)])
        engine.gate.release(2)
        seen = 0
        while seen < 4:
            seen += len(await anext(stream))
        stream.cancel()
        assert sorted(delta.row for delta in await anext(stream)) == [0, 1]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
        assert scheduler.rows_running == 2
        # At most the step that was under way and one more.
        engine.gate.release(2)
        await until(lambda: scheduler.rows_running == 0)

    run(test, engine)


def test_cancelling_one_row_leaves_the_others() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        blocker = scheduler.submit([request(1, 1)])
        await until(lambda: len(engine.batches) == 1)
        other = scheduler.submit([request(40, 6)])
        stream = scheduler.submit([request(10, 6), request(20, 6), request(30, 6)])
        stream.cancel(2)  # while it waits
        engine.gate.release(3)
        await until(lambda: scheduler.rows_running > 1)
        rows: list[list[Delta]] = [[], [], []]
        async for deltas in stream:
            for delta in deltas:
                rows[delta.row].append(delta)
            if len(rows[1]) == 2:
                stream.cancel(1)
            engine.gate.release()
        assert tokens(rows[0]) == [11, 12, 13, 14, 15, 16]
        assert rows[1][-1] == Delta(1, None, "cancelled")
        assert tokens(rows[1])[:2] == [21, 22]
        assert rows[2] == [Delta(2, None, "cancelled")]
        assert tokens((await rows_of(other))[0]) == [41, 42, 43, 44, 45, 46]
        await rows_of(blocker)
        assert engine.batches[1] == [40, 10, 20, 30]

    run(test, engine)


def test_a_job_cancelled_before_its_turn_is_never_started() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10)])
        await until(lambda: len(engine.batches) == 1)
        gone = scheduler.submit([request(20), request(21)])
        gone.cancel(0)
        assert scheduler.queue_depth == 1
        gone.cancel(1)
        assert scheduler.queue_depth == 0
        assert [row[-1].finish for row in await rows_of(gone, 2)] == ["cancelled", "cancelled"]
        engine.gate.release(100)
        await rows_of(running)
        await rows_of(scheduler.submit([request(30)]))
        assert engine.batches == [[10], [30]]

    run(test, engine)


@pytest.mark.parametrize("error", [EngineError("out of memory"), RuntimeError("out of memory")])
def test_a_failing_batch_fails_its_streams_alone(error: Exception) -> None:
    engine = Counting(fail_at=2, error=error)

    async def test(scheduler: Scheduler) -> None:
        engine.gate.release(100)
        stream = scheduler.submit([request(10, 9), request(20, 1)])
        seen: list[Delta] = []
        with pytest.raises(EngineError, match="out of memory"):
            async for deltas in stream:
                seen += deltas
        assert [delta.token for delta in seen] == [11, 21, 12]
        with pytest.raises(StopAsyncIteration):  # it has ended
            await anext(stream)
        assert tokens((await rows_of(scheduler.submit([request(30, 2)])))[0]) == [31, 32]

    run(test, engine)


def test_a_stream_ends_even_if_the_engine_forgets_its_rows() -> None:
    engine = Counting(silent_end=True)
    engine.gate.release(100)

    async def test(scheduler: Scheduler) -> None:
        with pytest.raises(EngineError, match="without ending all of its rows"):
            await rows_of(scheduler.submit([request(10)]))

    run(test, engine)


def test_one_bad_job_does_not_spoil_the_batch_it_would_have_joined() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10)])
        await until(lambda: len(engine.batches) == 1)
        good, bad, fine = (scheduler.submit([request(first)]) for first in (20, -1, 30))
        engine.gate.release(100)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await rows_of(bad)
        for stream in (running, good, fine):
            await rows_of(stream)
        assert engine.batches == [[10], [20], [30]]

    run(test, engine)


def test_scores_wait_for_their_turn() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        running = scheduler.submit([request(10, 2)])
        await until(lambda: len(engine.batches) == 1)
        score = asyncio.create_task(scheduler.score((1, 2, 3), 4))
        dropped = asyncio.create_task(scheduler.score((7, 8), 1))
        await until(lambda: scheduler.queue_depth == 2)
        behind = scheduler.submit([request(20, 1)])
        assert scheduler.queue_depth == 3
        dropped.cancel()
        await until(lambda: scheduler.queue_depth == 2)  # its place is free at once
        engine.gate.release(2)
        await rows_of(running)
        assert engine.batches == [[10]]
        await until(lambda: scheduler.rows_running == 1)  # the score: nothing else runs
        assert scheduler.queue_depth == 1
        engine.gate.release(1)
        assert await score == [TokenLogprob(2, -4.0), TokenLogprob(3, -4.0)]
        engine.gate.release(3)
        await rows_of(behind)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await scheduler.score((-1, 2), 0)
        with pytest.raises(EngineError, match="a fault in the engine"):
            await scheduler.score((0, 2), 0)
        assert scheduler.rows_running == 0

    run(test, engine)


def test_closing_lets_accepted_work_finish() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([request(10)]), scheduler.submit([request(20)])]
        closing = asyncio.create_task(scheduler.close(10))
        await asyncio.sleep(0.01)
        with pytest.raises(SchedulerClosed):
            scheduler.submit([request(30)])
        with pytest.raises(SchedulerClosed):
            await scheduler.score((1, 2), 0)
        engine.gate.release(100)
        for stream in streams:
            assert (await rows_of(stream))[0][-1].finish == "length"
        await closing
        await scheduler.close(0)

    run(test, engine)


def test_closing_cancels_what_outlasts_the_limit() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        running, waiting = scheduler.submit([request(10, 90)]), scheduler.submit([request(20, length=9)])
        score = asyncio.create_task(scheduler.score((1, 2), 0))
        await until(lambda: scheduler.queue_depth == 2)
        closing = asyncio.create_task(scheduler.close(0.05))
        for stream in (running, waiting):
            assert (await rows_of(stream))[0][-1].finish == "cancelled"
        with pytest.raises(SchedulerClosed):
            await score
        engine.gate.release(2)  # a step can't be interrupted
        await closing
        assert engine.batches == [[10]]

    run(test, engine)


def test_a_loop_that_went_away_does_not_stop_the_others() -> None:
    engine = Counting()
    scheduler = Scheduler(engine)

    async def submit() -> None:
        scheduler.submit([request(10, 90)])
        while not engine.batches:
            await asyncio.sleep(0.002)

    asyncio.run(submit())  # ends, and closes its loop, while the row runs
    engine.gate.release(5)

    async def later() -> None:
        assert tokens((await rows_of(scheduler.submit([request(20, 2)])))[0]) == [21, 22]
        await scheduler.close(5)

    asyncio.run(later())
    assert engine.batches == [[10], [20]]


def test_waiting_costs_no_processor_time() -> None:
    engine = Counting()

    async def test(scheduler: Scheduler) -> None:
        stream = scheduler.submit([request(10)])
        before = time.process_time()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.5)
        assert time.process_time() - before < 0.1
        engine.gate.release(100)

    run(test, engine)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield write_llama(tmp_path_factory.mktemp("tiny"))


def test_many_submitters_each_get_their_own_answer(tiny: Path) -> None:
    random.seed(7)
    prompts = [tuple(random.choices(range(3, 96), k=random.randint(1, 30))) for _ in range(40)]
    engine = Ct2Engine(tiny, context_length=128, threads=1)

    def greedy(prompt: tuple[int, ...], limit: int) -> Request:
        return Request(prompt, limit, frozenset({EOS, 20}), GREEDY)

    alone: dict[tuple[int, ...], tuple[list[int], str | None]] = {}
    for prompt in prompts:
        batch = engine.start([greedy(prompt, 40)])
        row: list[Delta] = []
        while deltas := batch.step():
            row += deltas
        batch.close()
        alone[prompt] = tokens(row), row[-1].finish

    async def client(scheduler: Scheduler, seed: int) -> int:
        chooser = random.Random(seed)
        answered = 0
        for _ in range(8):
            mine = chooser.choices(prompts, k=chooser.randint(1, 4))
            stream = scheduler.submit([greedy(prompt, 40) for prompt in mine])
            if chooser.random() < 0.3:  # some hang up in the middle
                with pytest.raises(StopAsyncIteration):
                    while True:
                        await anext(stream)
                        stream.cancel()
                continue
            for prompt, row in zip(mine, await rows_of(stream, len(mine)), strict=True):
                assert (tokens(row), row[-1].finish) == alone[prompt]
                answered += 1
            await asyncio.sleep(chooser.random() * 0.01)
        return answered

    async def test(scheduler: Scheduler) -> None:
        assert sum(await asyncio.gather(*(client(scheduler, seed) for seed in range(24)))) > 200

    run(test, engine)
    engine.close()


def test_a_real_engine_scores_between_batches(tiny: Path) -> None:
    engine = Ct2Engine(tiny, context_length=64, threads=1)
    expected = engine.score((5, 6, 7), 2)

    async def test(scheduler: Scheduler) -> None:
        streams = [scheduler.submit([request(5, 30)]) for _ in range(3)]
        assert await scheduler.score((5, 6, 7), 2) == expected
        for stream in streams:
            await rows_of(stream)
        with pytest.raises(ValueError, match="outside the vocabulary"):
            await scheduler.score((5, 1000), 0)

    run(test, engine)
    engine.close()
