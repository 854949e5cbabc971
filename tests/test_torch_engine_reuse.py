"""Answers that go on from what a slot holds equal those of a fresh engine, whatever came before."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_rows import GREEDY, NO_END, answers, open_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import write_hf

from convert.hf import convert
from rrtf_serve.engine.protocol import Delta, Request, Sampling
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.engine.torch import batch as batches
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.engine import TorchEngine
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer

# Windows of 16 tokens, learned positions with shared heads, and rotary positions.
NAMES = ("starcoder2", "starcoder", "qwen2")
BASES = [tuple((7 * at + base) % 120 for at in range(60)) for base in (3, 5)]
LENGTH = 24  # new tokens


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp(request.param) / request.param, request.param)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> Iterator[Fresh]:
    engine = open_engine(folder, kv_cache_tokens=0)
    yield Fresh(engine)
    engine.close()


class Fresh:
    """Answers of an engine that keeps nothing."""

    def __init__(self, engine: TorchEngine) -> None:
        self._engine = engine
        self._known: dict[tuple[tuple[int, ...], Sampling], list[int]] = {}

    def answer(self, prompt: tuple[int, ...], sampling: Sampling = GREEDY) -> list[int]:
        if (prompt, sampling) not in self._known:
            request = Request(prompt, LENGTH, NO_END, sampling)
            self._known[prompt, sampling] = answers(self._engine, [request])[0]
        assert self._engine.reused_tokens == 0
        return self._known[prompt, sampling]


@st.composite
def prompts(draw: st.DrawFn) -> tuple[int, ...]:
    base = draw(st.sampled_from(BASES))
    tail = draw(st.lists(st.integers(3, 5), max_size=3))
    return (*base[: draw(st.integers(1, 60))], *tail)


ARRIVALS = st.fixed_dictionaries(
    {
        "prompt": prompts(),
        "copies": st.integers(1, 3),
        "owner": st.sampled_from([None, "a", "b"]),
        "length": st.integers(1, LENGTH),
        "steps": st.integers(0, 12),  # before the next one comes
        "cancel": st.none() | st.integers(0, 5),  # a row that came, this many before
        "again": st.booleans(),  # the next batch
    }
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(arrivals=st.lists(ARRIVALS, min_size=2, max_size=12), kept=st.sampled_from([7, 60, 1000]))
def test_reuse_changes_no_answer(
    folder: Path, fresh: Fresh, arrivals: list[dict[str, Any]], kept: int
) -> None:
    engine = open_engine(folder, kv_cache_tokens=kept, max_batch=4)
    batch: batches.TorchBatch | None = None
    asked: dict[int, Request] = {}
    made: dict[int, list[Delta]] = {}

    def step() -> bool:
        assert batch is not None
        deltas = batch.step()
        for delta in deltas:
            made[delta.row].append(delta)
        return bool(deltas)

    def check() -> None:
        for number, request in asked.items():
            got = [delta.token for delta in made[number] if delta.token is not None]
            assert got == fresh.answer(request.prompt)[: len(got)]
            if made[number] and made[number][-1].finish == "length":
                assert len(got) == request.max_tokens

    for arrival in arrivals:
        request = Request(arrival["prompt"], arrival["length"], NO_END, GREEDY, owner=arrival["owner"])
        copies = [request] * arrival["copies"]
        if batch is None:
            batch, first = engine.start(copies), 0
        else:
            first = batch.admit(copies)
        for number in range(first, first + len(copies)):
            asked[number], made[number] = request, []
        for _ in range(arrival["steps"]):
            step()
        if arrival["cancel"] is not None:
            batch.cancel(first - arrival["cancel"])
        if arrival["again"]:
            batch.close()  # with rows that still run
            check()
            batch = None
            asked, made = {}, {}
    while batch is not None and step():
        pass
    check()
    assert all(row[-1].finish is not None for row in made.values())
    check_slots(engine, kept)
    engine.close()


def check_slots(engine: TorchEngine, kept: int) -> None:
    """Every slot holds just what a fresh read of its tokens gives."""
    decoder, shelf = engine._loaded.get()
    assert shelf.kept_tokens <= kept
    for slot, held in enumerate(shelf.holdings):
        assert not held.tokens or held.busy is False
        if held.tokens:
            slots = decoder.new_slots()
            with torch.inference_mode():
                decoder.prefill(held.tokens, slots, 0, 0)
            for layer in range(2):
                for mine, new in (
                    (shelf.slots.keys(layer), slots.keys(layer)),
                    (shelf.slots.values(layer), slots.values(layer)),
                ):
                    count = len(held.tokens)
                    torch.testing.assert_close(mine[slot, :count], new[0, :count], rtol=1e-3, atol=1e-4)


def test_what_was_read_is_not_read_again(folder: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(folder)
    read: list[int] = []
    prefill = Decoder.prefill

    def counted(decoder: Decoder, ids: list[int], *rest: Any) -> torch.Tensor:
        read.append(len(ids))
        return prefill(decoder, ids, *rest)

    monkeypatch.setattr(Decoder, "prefill", counted)

    def ask(prompt: tuple[int, ...], owner: str | None = None) -> list[int]:
        """The answer, which is right; `read` is what it took."""
        expected = fresh.answer(prompt)
        read.clear()
        found = answers(engine, [Request(prompt, LENGTH, NO_END, GREEDY, owner=owner)])[0]
        assert found == expected
        return found

    prompt = BASES[0][:40]
    first = ask(prompt)
    assert read == [40]
    ask((*prompt, 3, 4, 5))  # a typed line
    assert read == [3]
    ask((*prompt, 3, 4, 5))  # the same again: only its last token
    assert read == [1]
    longer = (*prompt, *first, 9, 9)  # a conversation that goes on after an answer that was kept in part
    ask(longer)
    ask(longer[:-1])
    assert read == [1]
    for somebody in ("a", "b"):
        ask(prompt, somebody)
        assert read == [40]
    ask((*prompt[:20], 9), "a")
    assert read == [1]
    engine.close()


@pytest.mark.parametrize("kv_dtype", ["bfloat16", "float16"])
def test_keys_and_values_of_16_bits(folder: Path, kv_dtype: str) -> None:
    plain, engine = open_engine(folder), open_engine(folder, kv_dtype=kv_dtype)
    described = engine.describe()
    assert (described["dtype"], described["kv_dtype"]) == ("float32", kv_dtype)
    assert described["kv_bytes_per_token"] == int(plain.describe()["kv_bytes_per_token"]) // 2
    requests = [Request(prompt[:40], LENGTH, NO_END, Sampling(0, logprobs=0)) for prompt in BASES]
    first = answers(engine, requests)
    # In whatever pieces a prompt is read: what is rounded is read back rounded.
    assert answers(engine, requests) == first
    assert engine.reused_tokens > 0
    for prompt, answer in zip(BASES, first, strict=True):
        scores = plain.score((*prompt[:40], *answer), 1)[39:]
        # The best token for float32, or one that is nearly as good.
        assert all(score.top[0][1] - score.logprob < 0.1 for score in scores)
    plain.close()
    engine.close()


def test_a_seed_gives_the_same_text_whatever_runs_beside_or_ran_before(folder: Path, fresh: Fresh) -> None:
    """Clients come and go at random through the scheduler; every answer is that of an engine alone."""
    engine = open_engine(folder, kv_cache_tokens=300, max_batch=5)
    chooser = random.Random(11)
    pool = [base[: chooser.randint(1, 60)] for base in BASES for _ in range(6)]
    samplings = [
        GREEDY,
        Sampling(0.8, seed=3),
        Sampling(1.0, top_p=0.9, seed=4),
        Sampling(0.7, top_k=9, seed=5),
    ]

    async def client(scheduler: Scheduler, seed: int) -> int:
        mine = random.Random(seed)
        answered = 0
        for _ in range(5):
            owner = mine.choice([None, "a", "b"])
            requests = [
                Request(
                    mine.choice(pool), mine.randint(1, LENGTH), NO_END, mine.choice(samplings), owner=owner
                )
                for _ in range(mine.randint(1, 3))
            ]
            stream = scheduler.submit(requests)
            hang_up = mine.random() < 0.3
            made: list[list[int]] = [[] for _ in requests]
            async for deltas in stream:
                for delta in deltas:
                    if delta.token is not None:
                        made[delta.row].append(delta.token)
                if hang_up:
                    stream.cancel()
            for request, row in zip(requests, made, strict=True):
                expected = fresh.answer(request.prompt, request.sampling)[: request.max_tokens]
                assert row == (expected[: len(row)] if hang_up else expected)
                answered += not hang_up
            await asyncio.sleep(mine.random() * 0.01)
        return answered

    async def main() -> int:
        scheduler = Scheduler(engine)
        counts = await asyncio.gather(*(client(scheduler, seed) for seed in range(10)))
        await scheduler.close(10)
        return sum(counts)

    for prompt in pool:  # beforehand: the engine's threads belong to the scheduler then
        for sampling in samplings:
            fresh.answer(prompt, sampling)
    assert asyncio.run(main()) > 40
    assert engine.reused_tokens > 100
    check_slots(engine, 300)
    engine.close()


@pytest.mark.slow
def test_reuse_changes_no_answer_of_a_real_model(smollm2_source: Source, tmp_path: Path) -> None:
    folder = convert(smollm2_source, tmp_path / "smollm2", dtype="float32")
    tokenizer = Tokenizer.load(folder)
    code = Path(batches.__file__).read_text("utf-8")
    lines = tokenizer.encode(code, specials=False)[:700]
    ids = [tuple(lines[:cut]) for cut in (400, 420, 433, 650, 400, 410, 700)]
    fresh = open_engine(folder, context_length=1024, kv_cache_tokens=0)
    engine = open_engine(folder, context_length=1024)
    for prompt in ids:
        request = Request(prompt, 16, NO_END, GREEDY)
        assert answers(engine, [request]) == answers(fresh, [request])
    together = [Request(prompt, 16, NO_END, GREEDY) for prompt in ids]
    assert answers(engine, together) == answers(fresh, together)
    assert engine.reused_tokens > 2000
    fresh.close()
    engine.close()
