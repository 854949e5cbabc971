"""Requests that join a batch of the torch engine while it runs, and what fails alone."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rows import GREEDY, NO_END, answers, open_engine, tokens
from safetensors.torch import load_file, save_file
from tiny_gptq import write_packable
from tiny_models import VOCABULARY, write_hf

from rrtf_serve.engine.protocol import Delta, EngineError, Request, RowsFailed, Sampling
from rrtf_serve.engine.scheduler import Scheduler, Stream
from rrtf_serve.engine.torch import batch as batches
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.engine import TorchEngine
from rrtf_serve.engine.torch.slots import Slots

LONG = tuple((7 * at) % 120 for at in range(100))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("qwen2") / "qwen2", "qwen2")


@pytest.fixture
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = open_engine(folder)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def alone(folder: Path) -> Iterator[Callable[[Request], list[int]]]:
    """What an engine that keeps nothing answers to a request alone."""
    engine = open_engine(folder, kv_cache_tokens=0)
    yield lambda request: answers(engine, [request])[0]
    engine.close()


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Each pass of a decoder: the prompt tokens that it read, or minus the rows that it moved."""
    seen: list[int] = []
    prefill, decode = Decoder.prefill, Decoder.decode

    def reading(decoder: Decoder, ids: list[int], *rest: Any) -> torch.Tensor:
        seen.append(len(ids))
        return prefill(decoder, ids, *rest)

    def decoding(decoder: Decoder, ids: list[int], *rest: Any) -> torch.Tensor:
        seen.append(-len(ids))
        return decode(decoder, ids, *rest)

    monkeypatch.setattr(Decoder, "prefill", reading)
    monkeypatch.setattr(Decoder, "decode", decoding)
    return seen


def drain(batch: batches.TorchBatch, rows: dict[int, list[Delta]]) -> None:
    while deltas := batch.step():
        for delta in deltas:
            rows.setdefault(delta.row, []).append(delta)
    batch.close()


def test_rows_join_at_any_step(engine: TorchEngine, alone: Callable[[Request], list[int]]) -> None:
    requests = [Request((5 + row, 9), 6 + row, NO_END, Sampling(seed=row)) for row in range(12)]
    batch = engine.start(requests[:1])
    rows: dict[int, list[Delta]] = {}
    for number, request in enumerate(requests[1:], 1):
        assert batch.admit([request]) == number
        for delta in batch.step():
            rows.setdefault(delta.row, []).append(delta)
    drain(batch, rows)
    for number, request in enumerate(requests):
        assert tokens(rows[number]) == alone(request)
        assert rows[number][-1].finish == "length"


def test_what_cannot_join_leaves_the_batch_as_it_was(engine: TorchEngine) -> None:
    batch = engine.start([Request((5,), 6, NO_END, GREEDY)])
    good = Request((6,), 6, NO_END, GREEDY)
    for wrong, message in (
        ([good, Request((VOCABULARY,), 5, NO_END)], "outside the vocabulary"),
        ([good, Request((5,) * 128, 5, NO_END)], "leaves no room in a context of 128"),
        ([], "no requests"),
    ):
        with pytest.raises(ValueError, match=message):
            batch.admit(wrong)
    assert batch.admit([good]) == 1
    rows: dict[int, list[Delta]] = {}
    drain(batch, rows)
    assert {row: len(deltas) for row, deltas in rows.items()} == {0: 6, 1: 6}


@pytest.mark.parametrize("dtype", ["float32", "auto"])  # transformers, and the compiled kernels
def test_a_row_whose_logits_are_no_numbers_fails_alone(dtype: str, tmp_path: Path) -> None:
    folder = write_packable(tmp_path / "starcoder2", "starcoder2")
    weights = load_file(folder / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    weights["lm_head.weight"] = table.clone()
    table[7] = 3e38  # finite, and too large to be added up
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    engine = open_engine(folder, dtype=dtype)
    assert (engine.describe()["kernels"] == "torch") == (dtype == "float32")
    sound = Request((5, 6), 9, NO_END, GREEDY)
    [expected] = answers(engine, [sound])
    batch = engine.start([Request((5, 7), 9, NO_END, GREEDY), sound, Request((8, 7), 9, NO_END)])
    rows: dict[int, list[Delta]] = {}
    failures: list[RowsFailed] = []
    while len(failures) < 3:
        try:
            drain(batch, rows)
            break
        except RowsFailed as failure:
            failures.append(failure)
    assert [failure.rows for failure in failures] == [{0}, {2}]
    assert all("output holds NaN or infinity" in str(failure) for failure in failures)
    assert tokens(rows[1]) == expected
    assert rows.keys() == {1}
    with pytest.raises(EngineError, match="output holds NaN or infinity"):
        engine.score((5, 7, 6), 1)
    engine.close()


def test_a_long_prompt_holds_rows_up_for_one_piece_at_most(
    engine: TorchEngine,
    alone: Callable[[Request], list[int]],
    passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "GAP_TOKENS", 20)
    short = [Request((5, 6), 20, NO_END, GREEDY), Request((7, 8), 20, NO_END, GREEDY)]
    long = Request(LONG, 5, NO_END, GREEDY)
    late = Request((9, 9, 9), 5, NO_END, GREEDY)
    batch = engine.start(short)
    rows: dict[int, list[Delta]] = {row: [] for row in range(4)}
    while len(rows[1]) < 3:
        for delta in batch.step():
            rows[delta.row].append(delta)
    batch.admit([long, late])
    passes.clear()
    drain(batch, rows)
    # Between two steps at most the 20 tokens.
    reads, between = [], 0
    for size in passes:
        if size > 0:
            between += size
        else:
            reads.append(between)
            between = 0
    assert max(reads) <= 20
    assert sum(reads) == 103
    assert passes[:12] == [20, -2, 20, -2, 20, -2, 20, -2, 20, -3, 3, -4]
    assert [tokens(rows[row]) for row in range(4)] == [alone(each) for each in (*short, long, late)]


def test_a_lone_prompt_is_read_in_large_pieces(engine: TorchEngine, passes: list[int]) -> None:
    answers(engine, [Request(LONG, 3, NO_END, GREEDY)])
    assert passes == [100, -1, -1]


def test_equal_prompts_of_different_owners_are_read_apart(engine: TorchEngine, passes: list[int]) -> None:
    requests = [Request(LONG[:30], 3, NO_END, GREEDY, owner=owner) for owner in ("a", "b", "a", None)]
    found = answers(engine, requests)
    assert [size for size in passes if size > 0] == [30, 30, 30]
    assert found == [found[0]] * 4


def test_tokens_that_all_rows_may_hold_are_bounded(engine: TorchEngine, passes: list[int]) -> None:
    limits = engine.capabilities
    small = type(limits)(**{**vars(limits), "max_batch_tokens": 50})
    batch = batches.TorchBatch(engine._loaded, small)
    batch.admit([Request((*LONG[:20], row), 9, NO_END, GREEDY) for row in range(3)])
    batch.admit([Request(LONG, 3, NO_END, GREEDY)])  # larger than the bound: it runs alone
    rows: dict[int, list[Delta]] = {}
    drain(batch, rows)
    assert {row: len(deltas) for row, deltas in rows.items()} == {0: 9, 1: 9, 2: 9, 3: 3}
    assert min(size for size in passes) == -1


OUT_OF_MEMORY = [
    MemoryError("no more"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: not enough memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY)
def test_memory_that_ends_while_a_prompt_is_read_fails_that_row_alone(
    engine: TorchEngine,
    alone: Callable[[Request], list[int]],
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    short, late = Request((5, 6), 20, NO_END, GREEDY), Request((5, 7), 20, NO_END, GREEDY)
    batch = engine.start([short])
    batch.step()
    batch.admit([Request(LONG, 5, NO_END, GREEDY), late])
    prefill = Decoder.prefill

    def failing(decoder: Decoder, ids: list[int], *rest: Any) -> torch.Tensor:
        if len(ids) > 50:
            raise error
        return prefill(decoder, ids, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "prefill", failing)
        rows: dict[int, list[Delta]] = {}
        with pytest.raises(RowsFailed, match="out of memory at 100 tokens: ask for fewer") as caught:
            drain(batch, rows)
        assert caught.value.rows == {1}
        drain(batch, rows)
    assert tokens(rows[0]) == alone(short)[1:]
    assert tokens(rows[2]) == alone(late)
    request = Request(LONG, 5, NO_END, GREEDY)
    assert answers(engine, [request]) == [alone(request)]


def test_memory_that_ends_in_a_decode_step_takes_the_longest_row_and_what_is_kept(
    engine: TorchEngine, alone: Callable[[Request], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(engine, [Request(LONG[::-1], 5, NO_END, GREEDY)])
    shelf = engine._loaded.get()[1]
    assert shelf.kept_tokens == 104
    requests = [Request(LONG[:size], 10, NO_END, GREEDY) for size in (10, 60, 30)]
    batch = engine.start(requests)
    rows: dict[int, list[Delta]] = {row: [] for row in range(3)}
    while len(rows[2]) < 2:
        for delta in batch.step():
            rows[delta.row].append(delta)
    decode = Decoder.decode

    def failing(decoder: Decoder, ids: list[int], slots: Slots, places: list[int], starts: list[int]) -> Any:
        if sum(starts) > 60:
            slots.extend(places, starts, 1)  # as far as it came
            raise MemoryError("no more")
        return decode(decoder, ids, slots, places, starts)

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", failing)
        with pytest.raises(RowsFailed) as caught:
            batch.step()
        assert caught.value.rows == {1}
        assert shelf.kept_tokens == 0
        drain(batch, rows)
    for row in (0, 2):
        assert tokens(rows[row]) == alone(requests[row])
    assert [request.prompt for request in requests][1] == LONG[:60]
    assert answers(engine, requests) == [alone(request) for request in requests]


def test_a_fault_in_a_decode_step_fails_its_rows_and_not_those_that_wait(
    folder: Path, alone: Callable[[Request], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine(folder, max_batch=2)
    requests = [Request((5 + row,), 6, NO_END, GREEDY) for row in range(3)]
    batch = engine.start(requests)
    seen: list[Delta] = []
    while {delta.row for delta in seen} < {0, 1}:
        seen += batch.step()

    def broken(*_: object) -> torch.Tensor:
        raise RuntimeError("a fault in a kernel")

    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "decode", broken)
        with pytest.raises(RowsFailed, match="decoding failed: a fault in a kernel") as caught:
            batch.step()
    assert caught.value.rows == {0, 1}
    rows: dict[int, list[Delta]] = {}
    drain(batch, rows)
    assert {row: tokens(deltas) for row, deltas in rows.items()} == {2: alone(requests[2])}
    engine.close()


async def answer(stream: Stream) -> list[int]:
    return [delta.token async for deltas in stream for delta in deltas if delta.token is not None]


def test_the_scheduler_serves_on_when_memory_ends_for_one(
    engine: TorchEngine, alone: Callable[[Request], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = Slots.reserve

    def bounded(slots: Slots, count: int, length: int) -> None:
        if length > 90:
            raise MemoryError("no more")
        reserve(slots, count, length)

    monkeypatch.setattr(Slots, "reserve", bounded)
    short = [Request((5, row), 40, NO_END, Sampling(seed=row)) for row in range(3)]

    async def main() -> None:
        scheduler = Scheduler(engine)
        streams = [scheduler.submit([each]) for each in short]
        begun = [delta.token for delta in await anext(streams[0])]
        large = scheduler.submit([Request(LONG, 5, NO_END, GREEDY), Request((9,), 30, NO_END, GREEDY)])
        growing = scheduler.submit([Request(LONG[:80], 30, NO_END, GREEDY)])
        with pytest.raises(EngineError, match="out of memory at 100 tokens"):
            await answer(large)
        with pytest.raises(EngineError, match=r"out of memory at 9[01] tokens"):
            await answer(growing)
        for stream, request in zip(streams, short, strict=True):
            assert begun + await answer(stream) == alone(request)
            begun = []
        assert scheduler.rows_running == 0
        assert await answer(scheduler.submit([short[0]])) == alone(short[0])
        await scheduler.close(5)

    asyncio.run(main())


def test_scores_and_new_requests_come_between_the_steps_of_a_running_batch(engine: TorchEngine) -> None:
    expected = engine.score(LONG[:50], 2)

    async def main() -> None:
        scheduler = Scheduler(engine)
        long = scheduler.submit([Request((5,), 120, NO_END, GREEDY)])
        await anext(long)
        score = asyncio.create_task(scheduler.score(LONG[:50], 2))
        short = scheduler.submit([Request((6,), 3, NO_END, GREEDY)])
        assert await score == expected
        assert len(await answer(short)) == 3
        assert scheduler.rows_running == 1  # the long one still runs
        long.cancel()
        await scheduler.close(5)

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on address space")
def test_a_real_want_of_memory_fails_the_request_that_wants_it(tmp_path: Path) -> None:
    """In a process that may take little more memory than the loaded model has."""
    folder = write_hf(tmp_path / "qwen2", "qwen2")
    script = """
        import resource, sys
        from pathlib import Path
        from rrtf_serve.engine.protocol import Request, RowsFailed, Sampling
        from rrtf_serve.engine.torch.engine import TorchEngine

        engine = TorchEngine(Path(sys.argv[1]), context_length=8192, threads=1, device="cpu")
        greedy = Sampling(temperature=0)
        small, large = (Request((5,) * size, 3, frozenset(), greedy) for size in (9, 8000))
        batch = engine.start([small])
        made = [delta.token for delta in batch.step()]
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 4_000_000,) * 2)
        batch.admit([large])
        failed = []
        while True:
            try:
                deltas = batch.step()
            except RowsFailed as error:
                failed.append((sorted(error.rows), "out of memory" in str(error)))
                continue
            if not deltas:
                break
            made += [delta.token for delta in deltas if delta.row == 0]
        batch.close()
        again = engine.start([small])
        print(failed, len(made), len([delta for _ in range(3) for delta in again.step()]))
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert run.stdout.split() == ["[([1],", "True)]", "3", "3"], run.stderr
