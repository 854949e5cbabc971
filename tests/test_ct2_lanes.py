"""Two batches of CTranslate2 at once, and the scheduler's lanes on them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from counting_engine import rows_of, run, tokens, until
from engine_rows import GREEDY, collect
from stepping_engine import Recorder
from tiny_ct2 import write_llama

from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.ct2_batch import Ct2Batch
from rrtf_serve.engine.protocol import EngineError, Request
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.engine.ticket import Ticket

NO_END: frozenset[int] = frozenset()
LONG = Request((5, 6), 900_000, NO_END, GREEDY)  # ends only when it is stopped
SHORT = [Request((number, 7), 30, NO_END, GREEDY) for number in range(10, 16)]


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Ct2Engine]:
    engine = Ct2Engine(write_llama(tmp_path), context_length=1_000_000, threads=1)
    yield engine
    engine.close()


def test_a_batch_runs_to_its_end_beside_another(engine: Ct2Engine) -> None:
    expected = [collect(engine, [request]) for request in SHORT]
    assert engine.capabilities.parallel_batches == 2
    long = engine.start([LONG])
    assert long.step()
    for request, alone in zip(SHORT, expected, strict=True):
        assert collect(engine, [request]) == alone
    assert long.step()[-1].finish is None  # it goes on
    long.close()


def test_closing_the_engine_stops_both(engine: Ct2Engine) -> None:
    batches = [engine.start([LONG]), engine.start([LONG])]
    assert all(batch.step() for batch in batches)
    engine.close()
    for batch in batches:
        while deltas := batch.step():
            last = deltas[-1]
        assert last.finish == "cancelled"
    with pytest.raises(EngineError, match="closed"):
        engine.start([LONG])


def test_steps_are_counted_and_timed_as_they_were_made(tmp_path: Path) -> None:
    """However many of them the scheduler gets at once."""

    class Late(Ct2Engine):
        def start(self, requests: list[Request]) -> Ct2Batch:
            batch = super().start(requests)
            batch._thread.join()
            return batch

    engine, recorder = Late(write_llama(tmp_path), context_length=64, threads=1), Recorder()

    async def go() -> None:
        scheduler = Scheduler(engine, observer=recorder)
        await rows_of(
            scheduler.submit([Request((5, 6), 5, NO_END, GREEDY), Request((7, 8), 3, NO_END, GREEDY)]), 2
        )
        await scheduler.close(1)

    asyncio.run(go())
    engine.close()
    assert recorder.sizes == [2, 2, 2, 1, 1]
    assert len(recorder.gaps) == 6 and min(recorder.gaps) > 0


def test_one_worker_makes_one_lane(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    engine = Ct2Engine(folder, context_length=64, threads=1, workers=1)
    assert (engine.capabilities.parallel_batches, engine.capabilities.interactive_rows) == (1, 0)
    engine.close()
    with pytest.raises(ValueError, match="workers is 0"):
        Ct2Engine(folder, context_length=64, workers=0)


def test_a_row_of_the_whole_context_may_run(engine: Ct2Engine) -> None:
    assert engine.capabilities.max_batch_tokens == 1_000_000


def test_completions_are_answered_while_a_chat_runs(engine: Ct2Engine) -> None:
    expected = [tokens(collect(engine, [request])[0]) for request in SHORT]

    async def test(scheduler: Scheduler) -> None:
        chat = scheduler.submit([LONG])
        await until(lambda: scheduler.rows_running == 1)
        score = asyncio.create_task(scheduler.score((5, 6, 7), 1))
        for request, alone in zip(SHORT, expected, strict=True):
            stream = scheduler.submit([request], Ticket(interactive=True))
            assert tokens((await rows_of(stream))[0]) == alone
        assert scheduler.rows_running == 1
        assert not score.done()
        chat.cancel()
        assert len(await score) == 2

    run(test, engine)
