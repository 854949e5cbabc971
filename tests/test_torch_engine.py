"""The torch engine on tiny random models, held against transformers' own forward pass and `generate`."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from engine_rows import GREEDY, NO_END, answers, collect, open_engine, tokens
from tiny_models import CONFIGS, END, VOCABULARY, write_hf

from rrtf_serve.engine.protocol import Delta, EngineError, Request, Sampling
from rrtf_serve.engine.torch import batch as batches
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.engine import TorchEngine

# The window of the tiny StarCoder2 is 16 tokens.
PROMPTS = [(5,), (6, 9), (3, 4, 5, 6, 7), tuple(range(10, 50)), (60, 61), (6, 9), tuple(range(3, 20))]
ARCHITECTURES = sorted(
    name for name in CONFIGS if name.split("-")[0] in ("llama", "qwen2", "starcoder", "starcoder2")
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("qwen2") / "qwen2", "qwen2")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[TorchEngine]:
    engine = open_engine(folder)
    yield engine
    engine.close()


def reference(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    causal: Any = transformers.AutoModelForCausalLM
    return causal.from_pretrained(folder, dtype=dtype)


def generated(model: Any, prompt: tuple[int, ...], count: int, **options: Any) -> list[int]:
    ids = torch.tensor([prompt])
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        **{"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options},
    )
    found: list[int] = made[0, len(prompt) :].tolist()
    return found


def logprobs_after(model: Any, ids: list[int]) -> torch.Tensor:
    """Natural-log probabilities after each token, [T, V]."""
    with torch.no_grad():
        found: torch.Tensor = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_greedy_batch_equals_generate(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_hf(tmp_path / name, name)
    model, engine = reference(folder), open_engine(folder, max_batch=4)
    expected = [generated(model, prompt, 30) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) == len(set(PROMPTS))
    requests = [Request(prompt, 30, NO_END, GREEDY) for prompt in PROMPTS]
    assert answers(engine, requests) == expected  # seven rows through four slots
    assert [answers(engine, [request])[0] for request in requests] == expected
    # A prompt that is read in pieces, also across the window.
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 7)
    assert answers(engine, requests) == expected
    engine.close()


def test_16_bits_differ_from_generate_only_where_two_tokens_are_nearly_even(folder: Path) -> None:
    model, engine = reference(folder, torch.bfloat16), open_engine(folder, dtype="bfloat16")
    assert engine.describe()["dtype"] == "bfloat16"
    for prompt, made in zip(
        PROMPTS, answers(engine, [Request(prompt, 30, NO_END, GREEDY) for prompt in PROMPTS]), strict=True
    ):
        expected = generated(model, prompt, 30)
        differ = next((at for at in range(30) if made[at] != expected[at]), None)
        if differ is not None:
            scores = logprobs_after(model, [*prompt, *expected[:differ]])[-1]
            assert abs(float(scores[made[differ]] - scores[expected[differ]])) < 0.1
    engine.close()


def test_rows_end_by_their_own_limits_and_end_tokens(engine: TorchEngine, folder: Path) -> None:
    alone = generated(reference(folder), (6, 9), 12)
    end = alone[5]
    assert end not in alone[:5]
    ends = frozenset({end, 10**6})
    short, ended, full, late = collect(
        engine,
        [
            Request((6, 9), 3, ends, GREEDY),
            Request((6, 9), 12, ends, GREEDY),
            Request((6, 9), 12, NO_END, GREEDY),
            Request((6, 9), 12, ends, GREEDY, min_tokens=8),
        ],
    )
    assert (tokens(short), short[-1].finish) == (alone[:3], "length")
    assert (tokens(ended), ended[-1]) == (alone[:5], Delta(1, None, "stop"))
    assert (tokens(full), full[-1].finish) == (alone, "length")
    assert end not in tokens(late)[:8]
    assert len(tokens(late)) >= 8


def test_the_context_is_filled_and_not_exceeded(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "m", "starcoder")
    engine = open_engine(folder, context_length=256)  # all positions that it has learned
    rows = collect(engine, [Request((7,) * n, 10**6, NO_END, GREEDY) for n in (255, 200, 1)])
    assert [len(tokens(row)) for row in rows] == [1, 56, 255]
    assert {row[-1].finish for row in rows} == {"length"}
    engine.close()
    with pytest.raises(ValueError, match="context_length is 257, but the model has learned 256 positions"):
        open_engine(folder, context_length=257)


SAMPLED = [
    Sampling(seed=7),
    Sampling(temperature=0.7, top_p=0.9, seed=8),
    Sampling(temperature=1.3, top_k=20, seed=-(2**63)),
    Sampling(min_p=0.05, seed=2**64 - 1, presence_penalty=0.5, frequency_penalty=0.3),
    Sampling(seed=7, logit_bias=((9, 2.0),), repetition_penalty=1.2),
]


def test_a_seed_gives_the_same_tokens_whatever_else_runs(engine: TorchEngine) -> None:
    requests = [Request(prompt, 25, frozenset({END}), sampling) for prompt in PROMPTS for sampling in SAMPLED]
    together = answers(engine, requests)
    assert together == answers(engine, requests)
    assert together[::-1] == answers(engine, requests[::-1])
    assert together[::4] == [answers(engine, [request])[0] for request in requests[::4]]
    assert len({tuple(answer) for answer in together}) > 20
    unseeded = answers(engine, [Request((5,), 25, NO_END, Sampling())] * 5)
    assert len({tuple(answer) for answer in unseeded}) == 5


def test_cancelling_a_row_leaves_the_others_as_they_were(engine: TorchEngine) -> None:
    requests = [Request(prompt, 25, NO_END, Sampling(seed=1)) for prompt in PROMPTS]
    expected = answers(engine, requests)
    batch = engine.start(requests)
    rows: list[list[Delta]] = [[] for _ in requests]
    while deltas := batch.step():
        for delta in deltas:
            rows[delta.row].append(delta)
            if delta.row in (0, 3) and len(rows[delta.row]) == 4:
                batch.cancel(delta.row)
    batch.close()
    for number, row in enumerate(rows):
        if number in (0, 3):
            assert (len(tokens(row)), row[-1]) == (4, Delta(number, None, "cancelled"))
            assert tokens(row) == expected[number][:4]
        else:
            assert tokens(row) == expected[number]


def test_rows_cancelled_before_they_enter_never_run(engine: TorchEngine) -> None:
    batch = engine.start([Request((5,), 9, NO_END, GREEDY)] * 2)
    batch.cancel(0)
    batch.cancel(1)
    assert batch.step() == [Delta(0, None, "cancelled"), Delta(1, None, "cancelled")]
    assert batch.step() == []
    batch.close()


def test_a_long_prompt_is_let_go_between_its_pieces(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(folder)
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 10)
    batch = engine.start([Request((7,) * 100, 5, NO_END, GREEDY)])
    pieces: list[int] = []
    prefill = Decoder.prefill

    def watched(decoder: Decoder, ids: list[int], *rest: Any) -> torch.Tensor:
        pieces.append(len(ids))
        if len(pieces) == 2:
            batch.cancel(0)
        return prefill(decoder, ids, *rest)

    monkeypatch.setattr(Decoder, "prefill", watched)
    assert batch.step() == [Delta(0, None, "cancelled")]
    assert pieces == [10, 10]
    batch.close()
    engine.close()


def test_equal_prompts_are_read_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine(folder)
    calls: list[int] = []
    prefill = Decoder.prefill

    def counted(decoder: Decoder, ids: list[int], *rest: Any) -> torch.Tensor:
        calls.append(len(ids))
        return prefill(decoder, ids, *rest)

    monkeypatch.setattr(Decoder, "prefill", counted)
    requests = [Request((5, 6, 7), 9, NO_END, Sampling(seed=seed)) for seed in range(6)]
    found = answers(engine, requests)
    assert calls == [3]
    assert found == [answers(engine, [request])[0] for request in requests]
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_logprobs_are_those_of_a_forward_pass(engine: TorchEngine, folder: Path, temperature: float) -> None:
    sampling = Sampling(temperature, logprobs=3, repetition_penalty=1.5, top_k=2, seed=3)
    plain, chosen = Sampling(temperature=0), Sampling(temperature=0, logprobs=0)
    rows = collect(engine, [Request((6, 9, 4), 12, NO_END, each) for each in (sampling, plain, chosen)])
    for row, top in zip(rows, (3, None, 0), strict=True):
        scores = logprobs_after(reference(folder), [6, 9, 4, *tokens(row)])[2:]
        for at, delta in enumerate(row):
            if top is None:
                assert delta.logprob is None
                continue
            assert delta.logprob is not None
            assert delta.logprob.token == delta.token
            assert delta.logprob.logprob == pytest.approx(float(scores[at, delta.token]), abs=1e-4)
            best = scores[at].topk(top)
            assert [token for token, _ in delta.logprob.top] == best.indices.tolist()
            assert [value for _, value in delta.logprob.top] == pytest.approx(best.values.tolist(), abs=1e-4)


def test_score_equals_a_forward_pass(
    engine: TorchEngine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = tuple((7 * at) % VOCABULARY for at in range(128))
    scores = logprobs_after(reference(folder), list(prompt))
    for piece, held in ((512, 64 * 2**20), (50, 4 * VOCABULARY * 9)):
        monkeypatch.setattr("rrtf_serve.engine.torch.engine.GAP_TOKENS", piece)
        monkeypatch.setattr("rrtf_serve.engine.torch.decoder._LOGITS_BYTES", held)
        records = engine.score(prompt, 2)
        assert [record.token for record in records] == list(prompt[1:])
        for at, record in enumerate(records):
            assert record.logprob == pytest.approx(float(scores[at, record.token]), abs=1e-4)
            assert [token for token, _ in record.top] == scores[at].topk(2).indices.tolist()
    assert engine.score((5,), 2) == []
    with pytest.raises(ValueError, match="129 tokens; at most 128 can be scored"):
        engine.score((5,) * 129, 0)
    with pytest.raises(ValueError, match="top is 21"):
        engine.score((5, 6), 21)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 5, NO_END), "the prompt is empty"),
        (Request((VOCABULARY,), 5, NO_END), f"token id {VOCABULARY} is outside the vocabulary"),
        (Request((5,) * 128, 5, NO_END), "leaves no room in a context of 128"),
        (Request((5,), 0, NO_END), "max_tokens is 0"),
        (Request((5,), 5, NO_END, Sampling(float("nan"))), "temperature is nan"),
        (Request((5,), 5, NO_END, Sampling(top_p=1.1)), "top_p is 1.1"),
        (Request((5,), 5, NO_END, Sampling(min_p=-0.1)), "min_p is -0.1"),
        (Request((5,), 5, NO_END, Sampling(top_k=-1)), "top_k is -1"),
        (Request((5,), 5, NO_END, Sampling(repetition_penalty=0)), "repetition_penalty is 0"),
        (Request((5,), 5, NO_END, Sampling(presence_penalty=float("inf"))), "presence_penalty is inf"),
        (Request((5,), 5, NO_END, Sampling(logit_bias=((128, 1.0),))), "logit_bias: token id 128"),
        (Request((5,), 5, NO_END, Sampling(logprobs=21)), "logprobs is 21"),
    ],
)
def test_what_the_model_cannot_take_is_refused(engine: TorchEngine, request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.start([Request((5,), 5, NO_END, GREEDY), request_])


def test_a_failing_step_ends_the_batch_and_the_next_one_runs(
    engine: TorchEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(engine, [Request((5,), 6, NO_END, GREEDY)])
    with monkeypatch.context() as patch:
        batch = engine.start([Request((5,), 6, NO_END, GREEDY)])
        assert len(batch.step()) == 1

        def broken(*_: object) -> torch.Tensor:
            raise torch.OutOfMemoryError("no memory for the tests")

        patch.setattr(Decoder, "decode", broken)
        with pytest.raises(EngineError, match="no memory for the tests"):
            batch.step()
        assert batch.step() == []
        batch.close()
    assert answers(engine, [Request((5,), 6, NO_END, GREEDY)]) == expected


def test_closing_the_engine_stops_what_runs(folder: Path) -> None:
    engine = open_engine(folder, context_length=200)
    batch = engine.start([Request((5,), 199, NO_END, GREEDY)])
    seen: list[Delta] = []
    running = threading.Event()

    def drive() -> None:
        while deltas := batch.step():
            seen.extend(deltas)
            running.set()
            time.sleep(0.01)

    thread = threading.Thread(target=drive)
    thread.start()
    assert running.wait(30)
    engine.close()
    engine.close()
    thread.join(30)
    assert not thread.is_alive()
    assert (seen[-1].finish, len(seen) < 199) == ("cancelled", True)
    batch.close()
    with pytest.raises(EngineError, match="closed"):
        engine.start([Request((5,), 5, NO_END, GREEDY)])
    with pytest.raises(EngineError, match="closed"):
        engine.score((5, 6), 0)


def test_nothing_keeps_a_dropped_engine_in_memory(folder: Path) -> None:
    engine = open_engine(folder)
    collect(engine, [Request((5,), 4, NO_END, GREEDY)])
    loaded = engine._loaded
    del engine
    gc.collect()
    with pytest.raises(EngineError, match="closed"):
        loaded.get()


def test_no_requests_and_wrong_settings_are_refused(engine: TorchEngine, folder: Path) -> None:
    with pytest.raises(ValueError, match="no requests"):
        engine.start([])
    with pytest.raises(ValueError, match="context_length is 1"):
        open_engine(folder, context_length=1)
    with pytest.raises(ValueError, match="max_batch is 0"):
        open_engine(folder, max_batch=0)


def test_a_collected_engine_waits_for_no_pass(folder: Path) -> None:
    """The collector may strike in the thread that is inside a pass, which can't wait for itself."""
    engines = [open_engine(folder)]
    loaded = engines[0]._loaded

    def collect_within_a_pass() -> None:
        with loaded.lock:
            engines.clear()
            gc.collect()

    thread = threading.Thread(target=collect_within_a_pass, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    with pytest.raises(EngineError, match="closed"):
        loaded.get()
