from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ctranslate2
import numpy as np
import pytest
from engine_rows import collect, tokens
from tiny_ct2 import EOS, write_bigcode, write_llama

from rrtf_serve.engine import ct2_batch
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.protocol import Delta, EngineError, Request, Sampling
from rrtf_serve.models.errors import ModelError

GREEDY = Sampling(temperature=0)
NO_END: frozenset[int] = frozenset()
PROMPTS = [(5,), (6, 9), (3, 4, 5, 6, 7), (40, 41, 42), (60, 61), (7,), (8, 9, 10, 11, 12, 13, 14)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(llama: Path) -> Iterator[Ct2Engine]:
    engine = Ct2Engine(llama, context_length=128)
    yield engine
    engine.close()


def answer(row: list[Delta]) -> tuple[list[int], str | None]:
    return tokens(row), row[-1].finish


def raw(folder: Path, prompt: tuple[int, ...], max_tokens: int, **options: object) -> list[int]:
    """What CTranslate2 answers by itself."""
    generator = ctranslate2.Generator(str(folder), device="cpu")
    names = json.loads((folder / "vocabulary.json").read_text())
    result = generator.generate_batch(
        [[names[token] for token in prompt]],
        max_length=max_tokens,
        include_prompt_in_result=False,
        **{"end_token": [2**31 - 1], **options},
    )
    ids: list[int] = result[0].sequences_ids[0]
    return ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_equals_generate_batch(engine: Ct2Engine, llama: Path, prompt: tuple[int, ...]) -> None:
    row = collect(engine, [Request(prompt, 12, NO_END, GREEDY)])[0]
    assert tokens(row) == raw(llama, prompt, 12)
    assert row[-1].finish == "length"


@pytest.mark.parametrize("quantization", [None, "int8"])
@pytest.mark.parametrize("write", [write_llama, write_bigcode])
def test_a_greedy_batch_equals_one_by_one(tmp_path: Path, write: object, quantization: str | None) -> None:
    assert callable(write)
    engine = Ct2Engine(write(tmp_path, quantization=quantization), context_length=64)
    requests = [
        Request(prompt, 5 + 3 * number, frozenset({EOS, 20}), GREEDY)
        for number, prompt in enumerate(PROMPTS * 4)
        if 5 + 3 * number < 50
    ]
    alone = [answer(collect(engine, [request])[0]) for request in requests]
    assert len({tuple(made) for made, _ in alone}) > 5
    assert [answer(row) for row in collect(engine, requests)] == alone
    engine.close()


def test_each_row_has_its_own_limit_and_end_tokens(engine: Ct2Engine, llama: Path) -> None:
    alone = raw(llama, (6, 9), 12)
    end = alone[5]
    assert end not in alone[:5]
    short, ended, full = collect(
        engine,
        [
            Request((6, 9), 3, frozenset({end}), GREEDY),
            Request((6, 9), 12, frozenset({end}), GREEDY),
            Request((6, 9), 12, NO_END, GREEDY),
        ],
    )
    assert (tokens(short), short[-1].finish) == (alone[:3], "length")
    assert (tokens(ended), ended[-1]) == (alone[:5], Delta(1, None, "stop"))
    assert (tokens(full), full[-1].finish) == (alone, "length")


def test_the_models_own_end_token_means_nothing_unless_asked_for(tmp_path: Path) -> None:
    folder = write_llama(tmp_path, seed=3)
    # Make the token that comes third the model's own end token.
    third = raw(folder, (6, 9), 12)[2]
    config = json.loads((folder / "config.json").read_text())
    config["eos_token"] = f"t{third}"
    (folder / "config.json").write_text(json.dumps(config))
    engine = Ct2Engine(folder, context_length=64)
    assert len(tokens(collect(engine, [Request((6, 9), 12, NO_END, GREEDY)])[0])) == 12
    engine.close()


def test_min_tokens_hold_back_end_tokens(engine: Ct2Engine, llama: Path) -> None:
    alone = raw(llama, (6, 9), 12)
    ends = frozenset({alone[2], 10**6})
    plain, late = collect(
        engine,
        [Request((6, 9), 12, ends, GREEDY), Request((6, 9), 12, ends, GREEDY, min_tokens=6)],
    )
    assert plain[-1] == Delta(0, None, "stop")
    assert len(tokens(plain)) == 2
    assert len(tokens(late)) >= 6
    assert not ends & set(tokens(late)[:6])
    assert tokens(late) == raw(llama, (6, 9), 12, end_token=[alone[2]], min_length=6)


def test_limits_reach_to_the_context_and_not_beyond(tmp_path: Path) -> None:
    engine = Ct2Engine(write_bigcode(tmp_path, context=32), context_length=32)
    long, short = collect(
        engine, [Request(tuple(range(3, 23)), 500, NO_END, GREEDY), Request((5, 6), 500, NO_END, GREEDY)]
    )
    assert (len(tokens(long)), long[-1].finish) == (12, "length")
    assert (len(tokens(short)), short[-1].finish) == (30, "length")
    assert len(collect(engine, [Request((5,) * 31, 1, NO_END, GREEDY)])[0]) == 1
    engine.close()


def test_more_context_than_learned_positions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="context_length is 33, but the model has learned 32 positions"):
        Ct2Engine(write_bigcode(tmp_path, context=32), context_length=33)


def test_a_failure_in_mid_batch_is_an_engine_error_and_the_next_batch_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bigcode(tmp_path, context=16)
    monkeypatch.setattr("rrtf_serve.engine.ct2.learned_positions", lambda folder: None)
    engine = Ct2Engine(folder, context_length=64)
    batch = engine.start([Request((5, 6), 40, NO_END, GREEDY)])
    seen: list[Delta] = []
    with pytest.raises(EngineError, match="No position encodings") as caught:
        while deltas := batch.step():
            seen += deltas
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert len(seen) <= 15
    assert batch.step() == []
    batch.close()
    assert len(collect(engine, [Request((5, 6), 4, NO_END, GREEDY)])[0]) == 4
    engine.close()


def test_an_exception_in_the_callback_reaches_the_reader(
    engine: Ct2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(frozenset[int]):
        def __contains__(self, token: object) -> bool:
            raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr("rrtf_serve.engine.ct2.frozenset", lambda ids: Broken(), raising=False)
    batch = engine.start([Request((5, 6), 4, frozenset({EOS}), GREEDY)])
    with pytest.raises(EngineError, match="a fault of ours"):
        batch.step()
    batch.close()


def test_cancelling_a_row_leaves_the_others_as_they_were(engine: Ct2Engine) -> None:
    requests = [Request(prompt, 100, NO_END, GREEDY) for prompt in PROMPTS]
    whole = collect(engine, requests)
    batch = engine.start(requests)
    rows: list[list[Delta]] = [[] for _ in requests]
    while deltas := batch.step():
        for delta in deltas:
            rows[delta.row].append(delta)
        if len(rows[2]) >= 3:
            batch.cancel(2)
    batch.close()
    assert rows[2][-1].finish in {"cancelled", "length"}
    assert tokens(rows[2]) == tokens(whole[2])[: len(tokens(rows[2]))]
    for number, row in enumerate(rows):
        if number != 2:
            assert row == whole[number]


def test_a_cancelled_row_stops_at_the_next_step(engine: Ct2Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Semaphore(0)
    moved = ct2_batch._Leg._moved

    def gated(leg: ct2_batch._Leg, result: object) -> bool:
        gate.acquire()
        return moved(leg, result)

    monkeypatch.setattr(ct2_batch._Leg, "_moved", gated)
    batch = engine.start([Request((5, 6), 100, NO_END, GREEDY)])
    gate.release(3)
    seen: list[Delta] = []
    while len(seen) < 3:
        seen += batch.step()
    batch.cancel(0)
    gate.release()
    assert batch.step() == [Delta(0, None, "cancelled")]
    assert batch.step() == []
    batch.close()


def test_rows_cancelled_before_their_call_never_run(engine: Ct2Engine) -> None:
    far_apart = [Request((5,) * 100, 4, NO_END, GREEDY), Request((6,), 100, NO_END, GREEDY)]
    batch = engine.start(far_apart)
    batch.cancel(0)
    batch.cancel(1)
    ends = {}
    while deltas := batch.step():
        ends.update({delta.row: delta.finish for delta in deltas})
    batch.close()
    assert ends[1] == "cancelled"


def test_close_stops_what_runs(tmp_path: Path) -> None:
    engine = Ct2Engine(write_llama(tmp_path, hidden=128, layers=8), context_length=100_000)
    batch = engine.start([Request((5, 6), 90_000, NO_END, GREEDY)])
    assert batch.step()
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 5
    batch.close()
    with pytest.raises(EngineError, match="closed"):
        engine.start([Request((5,), 4, NO_END, GREEDY)])
    with pytest.raises(EngineError, match="closed"):
        engine.score((5, 6), 0)
    engine.close()


def test_more_rows_than_fit_into_a_call_run_in_several(llama: Path) -> None:
    engine = Ct2Engine(llama, context_length=64, max_batch=2)
    rows = collect(engine, [Request(prompt, 6, NO_END, GREEDY) for prompt in PROMPTS])
    assert [tokens(row) for row in rows] == [raw(llama, prompt, 6) for prompt in PROMPTS]
    engine.close()


def test_prompts_of_very_different_length_do_not_share_a_call(
    engine: Ct2Engine, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[list[int]] = []
    run = ct2_batch._Leg.run

    def counted(leg: ct2_batch._Leg, *arguments: object) -> None:
        calls.append([len(row.prompt) for row in leg._rows])
        run(leg, *arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(ct2_batch._Leg, "run", counted)
    prompts = [(5,) * 90, (6,) * 3, (7,) * 88, (8,) * 10]
    rows = collect(engine, [Request(prompt, 6, frozenset({EOS}), GREEDY) for prompt in prompts])
    assert calls == [[88, 90], [3, 10]]
    assert [tokens(row) for row in rows] == [raw(llama, prompt, 6) for prompt in prompts]
    # Without an end token in common CTranslate2 would write out of bounds while it feeds the longer prompt.
    calls.clear()
    collect(engine, [Request(prompt, 6, NO_END, GREEDY) for prompt in prompts])
    assert calls == [[90], [3], [88], [10]]
    calls.clear()
    ends = [frozenset({EOS, 7}), frozenset({EOS}), frozenset({4}), NO_END]
    collect(engine, [Request((5,) * (3 + n), 6, end, GREEDY) for n, end in enumerate(ends)])
    assert calls == [[3, 4], [5], [6]]


def log_softmax64(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    exact -= exact.max(axis=-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(axis=-1, keepdims=True))


def reference(folder: Path, ids: list[int]) -> np.ndarray:
    """Log-probabilities after each token of `ids`: [T, V]."""
    names = json.loads((folder / "vocabulary.json").read_text())
    generator = ctranslate2.Generator(str(folder), device="cpu")
    return log_softmax64(np.asarray(generator.forward_batch([[names[token] for token in ids]]))[0])


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.5])
def test_logprobs_are_those_of_a_forward_pass_at_any_temperature(
    engine: Ct2Engine, llama: Path, temperature: float
) -> None:
    sampling = Sampling(temperature=temperature, logprobs=4)
    prompts = [(5, 6, 7), (9, 8), (60, 50, 40), (9, 9)]
    for prompt, row in zip(
        prompts, collect(engine, [Request(prompt, 8, NO_END, sampling) for prompt in prompts]), strict=True
    ):
        expected = reference(llama, [*prompt, *tokens(row)])[len(prompt) - 1 :]
        for at, delta in enumerate(row):
            assert delta.logprob is not None
            assert delta.logprob.token == delta.token
            assert delta.logprob.logprob == pytest.approx(expected[at][delta.token], abs=1e-4)
            best = np.argsort(-expected[at])[:4]
            assert [token for token, _ in delta.logprob.top] == best.tolist()
            assert [value for _, value in delta.logprob.top] == pytest.approx(expected[at][best], abs=1e-4)


def test_logprobs_of_the_chosen_token_alone(engine: Ct2Engine, llama: Path) -> None:
    row = collect(engine, [Request((5, 6, 7), 6, NO_END, Sampling(temperature=0, logprobs=0))])[0]
    expected = reference(llama, [5, 6, 7, *tokens(row)])[2:]
    for at, delta in enumerate(row):
        assert delta.logprob is not None
        assert delta.logprob.top == ()
        assert delta.logprob.logprob == pytest.approx(expected[at][delta.token], abs=1e-4)


def test_logits_kept_by_a_call_are_bounded_and_the_answer_is_the_same(
    engine: Ct2Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = Sampling(temperature=0, logprobs=3)
    requests = [Request(prompt, 20, frozenset({EOS}), sampling) for prompt in [(5, 6), (9, 8), (60, 50)]]
    whole = collect(engine, requests)
    monkeypatch.setattr(ct2_batch, "LOGITS_BYTES", 4 * 96 * 6)  # two steps of three rows
    cut = collect(engine, requests)
    assert [tokens(row) for row in cut] == [tokens(row) for row in whole]
    for row, other in zip(cut, whole, strict=True):
        assert [d.logprob.logprob for d in row if d.logprob] == pytest.approx(
            [d.logprob.logprob for d in other if d.logprob], abs=1e-4
        )
    penalised = Sampling(temperature=0, logprobs=3, repetition_penalty=1.2)
    with pytest.raises(ValueError, match="max_tokens can be 6 at most with repetition_penalty and logprobs"):
        engine.start([Request((5, 6), 7, NO_END, penalised)])
    assert len(collect(engine, [Request((5, 6), 6, NO_END, penalised)])[0]) == 6


def test_the_repetition_penalty_ignores_who_else_is_in_the_batch(engine: Ct2Engine, llama: Path) -> None:
    sampling = Sampling(temperature=0, repetition_penalty=1.8)
    requests = [Request(prompt, 16, NO_END, sampling) for prompt in PROMPTS]
    together = [tokens(row) for row in collect(engine, requests)]
    assert together == [raw(llama, prompt, 16, repetition_penalty=1.8) for prompt in PROMPTS]
    assert together != [raw(llama, prompt, 16) for prompt in PROMPTS]


def test_score_equals_a_forward_pass(engine: Ct2Engine, llama: Path) -> None:
    prompt = (5, 6, 7, 50, 3, 3, 90)
    records = engine.score(prompt, 5)
    expected = reference(llama, list(prompt))
    assert [record.token for record in records] == list(prompt[1:])
    for at, record in enumerate(records):
        assert record.logprob == pytest.approx(expected[at][record.token], abs=1e-4)
        assert [token for token, _ in record.top] == np.argsort(-expected[at])[:5].tolist()
    assert engine.score((5,), 5) == []
    assert engine.score((5, 6), 0)[0].top == ()


def test_what_can_be_scored_is_bounded_by_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrtf_serve.engine.ct2.LOGITS_BYTES", 4 * 96 * 10)
    engine = Ct2Engine(write_llama(tmp_path), context_length=64)
    assert engine.capabilities.max_scored_tokens == 10
    assert len(engine.score((5,) * 10, 1)) == 9
    with pytest.raises(ValueError, match="11 tokens; at most 10 can be scored"):
        engine.score((5,) * 11, 1)
    engine.close()


def test_sampling_follows_the_models_distribution(engine: Ct2Engine, llama: Path) -> None:
    expected = np.exp(reference(llama, [5, 6])[-1])
    counts = np.zeros(len(expected))
    rows = 4000
    for row in collect(engine, [Request((5, 6), 1, NO_END, Sampling())] * rows):
        counts[tokens(row)[0]] += 1
    # Each count is within five standard deviations of what the model says; a top_k of 1 would be far off.
    assert (np.abs(counts - rows * expected) <= 5 * np.sqrt(rows * expected * (1 - expected)) + 1).all()
    assert (counts > 0).sum() > 5


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1e-6),
        Sampling(temperature=1e-300),
        Sampling(temperature=5e-5),
        Sampling(top_k=1),
        Sampling(top_p=0),
        Sampling(top_p=1e-9),
    ],
)
def test_limits_of_sampling_are_greedy(engine: Ct2Engine, sampling: Sampling) -> None:
    greedy = collect(engine, [Request((5, 6), 20, NO_END, GREEDY)])[0]
    assert tokens(collect(engine, [Request((5, 6), 20, NO_END, sampling)])[0]) == tokens(greedy)


def test_top_p_and_top_k_restrict_the_choice(engine: Ct2Engine, llama: Path) -> None:
    order = np.argsort(-reference(llama, [5, 6])[-1])
    cumulative = np.cumsum(np.exp(reference(llama, [5, 6])[-1][order]))
    nucleus = set(order[: int(np.searchsorted(cumulative, 0.6)) + 1].tolist())
    for sampling, allowed in [
        (Sampling(top_p=0.6), nucleus),
        (Sampling(top_k=3), set(order[:3].tolist())),
        (Sampling(top_k=10**9), set(range(96))),
    ]:
        rows = collect(engine, [Request((5, 6), 1, NO_END, sampling)] * 200)
        assert {tokens(row)[0] for row in rows} <= allowed


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), 4, NO_END), "prompt is empty"),
        (Request((5, 96), 4, NO_END), "token id 96 is outside the vocabulary of 96 tokens"),
        (Request((-1,), 4, NO_END), "token id -1 is outside"),
        (Request((5,) * 128, 4, NO_END), "128 tokens, which leaves no room in a context of 128"),
        (Request((5,), 0, NO_END), "max_tokens is 0"),
        (Request((5,), 4, NO_END, Sampling(temperature=-1)), "temperature is -1"),
        (Request((5,), 4, NO_END, Sampling(temperature=float("nan"))), "temperature is nan"),
        (Request((5,), 4, NO_END, Sampling(top_p=1.1)), "top_p is 1.1"),
        (Request((5,), 4, NO_END, Sampling(top_k=-1)), "top_k is -1"),
        (Request((5,), 4, NO_END, Sampling(repetition_penalty=0)), "repetition_penalty is 0"),
        (Request((5,), 4, NO_END, Sampling(seed=1)), "seed is set, but CTranslate2 has no such option"),
        (Request((5,), 4, NO_END, Sampling(logprobs=21)), "logprobs is 21; it must be from 0 to 20"),
    ],
)
def test_what_the_model_cannot_take_is_refused(engine: Ct2Engine, request_: Request, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.start([request_])


def test_unequal_sampling_and_empty_batches_are_refused(engine: Ct2Engine) -> None:
    with pytest.raises(ValueError, match="equal sampling"):
        engine.start([Request((5,), 4, NO_END), Request((5,), 4, NO_END, GREEDY)])
    with pytest.raises(ValueError, match="no requests"):
        engine.start([])
    with pytest.raises(ValueError, match="token id 99"):
        engine.score((5, 99), 0)


def test_unknown_devices_and_compute_types_name_the_flag(llama: Path) -> None:
    with pytest.raises(ValueError, match="--device tpu: choose cpu, cuda or auto"):
        Ct2Engine(llama, context_length=64, device="tpu")
    with pytest.raises(ValueError, match=r"--compute-type int3: this machine's \w+ supports .*float32"):
        Ct2Engine(llama, context_length=64, compute_type="int3")
    if not ctranslate2.get_cuda_device_count():
        with pytest.raises(ValueError, match="--device cuda: no CUDA device found"):
            Ct2Engine(llama, context_length=64, device="cuda")


def test_compute_type_and_threads_are_used_and_described(llama: Path) -> None:
    engine = Ct2Engine(llama, context_length=64, device="cpu", compute_type="int8", threads=1)
    assert engine.describe() == {
        "device": "cpu",
        "compute_type": "int8_float32",
        "threads": 1,
        "weights_bytes": (llama / "model.bin").stat().st_size,
        "vocabulary": 96,
    }
    engine.close()


def test_unusable_folders_say_what_is_wrong(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    weights = (folder / "model.bin").read_bytes()
    (folder / "model.bin").write_bytes(weights[:200])
    with pytest.raises(ModelError, match=r"model\.bin: cut short"):
        Ct2Engine(folder, context_length=64)
    (folder / "model.bin").write_bytes(weights.replace(b"TransformerDecoder", b"TransformerDecader"))
    with pytest.raises(ModelError, match="CTranslate2 can't load it"):
        Ct2Engine(folder, context_length=64)
    (folder / "model.bin").write_bytes(weights)
    names = json.loads((folder / "vocabulary.json").read_text())
    (folder / "vocabulary.json").write_text(json.dumps([*names[:-1], names[0]]))
    with pytest.raises(ModelError, match="a token occurs twice"):
        Ct2Engine(folder, context_length=64)
    (folder / "vocabulary.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        Ct2Engine(folder, context_length=64)
    (folder / "vocabulary.json").unlink()
    with pytest.raises(ModelError, match="is it a CTranslate2 folder"):
        Ct2Engine(folder, context_length=64)


EXIT = """
import sys
from pathlib import Path
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.protocol import Request
engine = Ct2Engine(Path(sys.argv[1]), context_length=100_000)
batch = engine.start([Request((5, 6), 90_000, frozenset())])
assert batch.step()
if sys.argv[2] == "closed":
    engine.close()
"""


@pytest.mark.parametrize("ending", ["closed", "forgotten"])
def test_the_process_ends_cleanly_whatever_still_runs(llama: Path, ending: str) -> None:
    """Ten times each: without care about three runs in four abort."""
    for _ in range(10):
        done = subprocess.run(
            [sys.executable, "-c", EXIT, str(llama), ending], capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_nothing_keeps_a_dropped_engine_in_memory(llama: Path) -> None:
    threads = threading.active_count()
    engine = Ct2Engine(llama, context_length=64)
    collect(engine, [Request((5,), 4, NO_END, GREEDY)])
    loaded = engine._loaded
    del engine
    gc.collect()
    with pytest.raises(EngineError, match="closed"):
        loaded.get()
    assert threading.active_count() == threads
