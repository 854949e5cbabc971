"""`fit` on tiny models: what it learns, what it leaves behind, and that a killed run ends as any other."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_hf
from tuples import text_tuple, write_made

from rrtf_serve.models.errors import ModelError
from training.fit import fit, prepare, resolve
from training.fit_options import FitOptions
from training.history import read_history
from training.loop import Trainer
from training.records import write_tuples

FAST = {"epochs": 2, "batch": 4, "lr": 1e-2, "precision": "fp32", "device": "cpu", "threads": 1}
TIMES = {"seconds", "tokens_per_s", "time_left_s"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("model") / "qwen2", "qwen2")


@pytest.fixture
def options(tmp_path: Path, model: Path) -> FitOptions:
    tuples = write_made(tmp_path / "tuples.jsonl", 10)
    return FitOptions(tuples, str(model), tmp_path / "run", **FAST)  # type: ignore[arg-type]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "last" / "model.safetensors")


def log(folder: Path) -> list[dict[str, Any]]:
    return [{name: line[name] for name in line.keys() - TIMES} for line in read_history(folder)]


def same(first: Path, second: Path) -> bool:
    one, two = weights(first), weights(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def command(options: FitOptions, *more: str) -> list[str]:
    flags = {
        "--model": options.model, "-o": options.output, "--epochs": options.epochs, "--batch": options.batch,
        "--lr": options.lr, "--precision": options.precision, "--threads": options.threads,
        "--device": options.device, "--checkpoint-every": options.checkpoint_every,
        "--micro-tokens": options.micro_tokens,
    }  # fmt: skip
    words = [str(word) for pair in flags.items() for word in pair]
    return ["-m", "training.cli", "fit", str(options.tuples), *words, *more]


def test_it_learns_to_rank_and_says_so(options: FitOptions) -> None:
    options = replace(options, epochs=8)
    report = fit(options)
    lines = log(options.output)
    assert report["steps"] == len(lines) == 24
    assert [line["step"] for line in lines] == list(range(1, 25))
    first, last = lines[:3], lines[-3:]
    assert sum(line["ft"] for line in last) < 0.5 * sum(line["ft"] for line in first)
    assert sum(line["active"] for line in last) < sum(line["active"] for line in first)
    assert all(line["ordered"] + line["active"] == 1 for line in lines if line["pairs"])
    assert sum(line["tuples"] for line in first) == 10
    assert not (options.output / "checkpoints").exists()
    assert list((options.output / "tensorboard").glob("events*"))


def test_the_folder_it_writes_is_a_model_with_tied_embeddings_that_was_changed(
    options: FitOptions, model: Path
) -> None:
    import transformers

    fit(options)
    written, before = weights(options.output), load_file(model / "model.safetensors")
    assert written.keys() == before.keys()
    assert "lm_head.weight" not in written
    moved = {
        name for name in written if not torch.equal(written[name].float(), before[name].bfloat16().float())
    }
    assert len(moved) > 0.9 * len(written)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(options.output / "last")
    assert loaded.lm_head.weight.data_ptr() == loaded.model.embed_tokens.weight.data_ptr()
    # Training on what was written must find all it needs there.
    again = replace(options, model=str(options.output / "last"), output=options.output / "second", epochs=1)
    assert fit(again)["steps_now"] == 3


@pytest.mark.parametrize("method", ["sft", "rank", "rrhf"])
def test_controls(options: FitOptions, method: str) -> None:
    options = replace(options, method=method, epochs=1)
    fit(options)
    lines = log(options.output)
    assert [line["tuples"] for line in lines] == [4, 4, 2]
    for line in lines:
        assert line["loss"] == pytest.approx(
            {"sft": line["ft"], "rank": line["rank"]}.get(method, line["loss"])
        )
    assert {line["p_stu"] is None for line in lines} == {method == "sft"}
    rrtf = replace(options, method="rrtf", output=options.output.with_name("rrtf"))
    fit(rrtf)
    # The chosen answers, their order and the steps are the same; the first step's cross-entropy is too.
    assert lines[0]["ft"] == pytest.approx(log(rrtf.output)[0]["ft"], rel=1e-5)


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_the_result_does_not_depend_on_how_a_batch_is_cut(options: FitOptions, layout: str) -> None:
    whole = gradients(replace(options, layout=layout, batch=10, micro_tokens=100_000))
    pieces = gradients(replace(options, layout="shared", batch=10, micro_tokens=40))
    assert whole.keys() == pieces.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(gradient, pieces[name], rtol=1e-4, atol=1e-5 * float(gradient.abs().max()))


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_gradient_checkpointing_changes_no_gradient(options: FitOptions, tune: str) -> None:
    options = replace(options, tune=tune, batch=10)
    plain, saving = gradients(options), gradients(replace(options, gradient_checkpointing=True))
    assert plain and plain.keys() == saving.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(gradient, saving[name])


@pytest.fixture
def own_recursion_limit() -> Iterator[None]:
    """torch.compile raises the process's limit where its cache is cold; other tests nest code beyond it."""
    limit = sys.getrecursionlimit()
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("own_recursion_limit")
@pytest.mark.filterwarnings("ignore")  # torch.compile's, of its own code
def test_compiled_layers_change_no_gradient(options: FitOptions) -> None:
    options = replace(options, batch=10)
    plain, compiled = gradients(options), gradients(replace(options, compile=True))
    assert plain and plain.keys() == compiled.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(
            gradient, compiled[name], rtol=1e-4, atol=1e-5 * float(gradient.abs().max())
        )


@pytest.mark.usefixtures("own_recursion_limit")
@pytest.mark.filterwarnings("ignore")  # torch.compile's, of its own code
def test_compiling_without_a_compiler(options: FitOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()  # compiled in this process before
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    monkeypatch.setattr("torch._inductor.config.force_disable_caches", True)
    with pytest.raises(ModelError, match=r"--compile: .*Leave --compile out"):
        fit(replace(options, compile=True, seed=5))


def gradients(options: FitOptions) -> dict[str, torch.Tensor]:
    """Of the first step, unclipped."""
    trainer = Trainer(replace(options, clip=1e9), prepare(options))
    kept: dict[str, torch.Tensor] = {}

    def keep(*_: object) -> None:
        named = trainer.scorer.named_parameters()
        kept.update({name: each.grad.clone() for name, each in named if each.grad is not None})

    trainer.optimiser.optimizer.register_step_pre_hook(keep)
    trainer.step(0)
    trainer.close()
    return kept


def test_killed_and_resumed_equals_uninterrupted(options: FitOptions) -> None:
    options = replace(options, epochs=16, checkpoint_every=3)
    straight = replace(options, output=options.output.with_name("straight"))
    fit(straight)
    kills = 0
    for lines in (7, 20):
        process = subprocess.Popen([sys.executable, *command(options)], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while process.poll() is None and len(read_whole(options.output)) < lines:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 1
    report = fit(options)
    assert report["steps_now"] < report["steps"] == 48
    assert log(options.output) == log(straight.output)
    assert same(options.output, straight.output)


def read_whole(folder: Path) -> list[str]:
    path = folder / "log.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(options: FitOptions) -> None:
    options = replace(options, epochs=2000, checkpoint_every=0)
    process = subprocess.Popen([sys.executable, *command(options)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not read_whole(options.output):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error.decode()
    assert "the same command goes on from here" in error.decode()
    [saved] = (options.output / "checkpoints").iterdir()
    assert saved.name == f"step-{len(read_whole(options.output))}"
    with pytest.raises(ValueError, match=r"other settings \(--lr 0.01 there, 0.02 here\)"):
        fit(replace(options, lr=0.02))


def test_a_finished_run_is_not_done_again(options: FitOptions) -> None:
    fit(options)
    stamp = (options.output / "last" / "model.safetensors").stat().st_mtime_ns
    (options.output / "checkpoints" / "step-5").mkdir(parents=True)  # as a kill at the very end leaves it
    assert fit(options)["steps_now"] == 0
    assert (options.output / "last" / "model.safetensors").stat().st_mtime_ns == stamp
    assert not (options.output / "checkpoints").exists()


def test_two_processes_train_as_one(options: FitOptions) -> None:
    options = replace(options, epochs=2, batch=5)  # an uneven share for each
    alone = replace(options, output=options.output.with_name("alone"))
    fit(alone)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    launched = subprocess.run(
        [*launch, *command(options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stdout.count("after 4 steps of rrtf") == 1  # one of them reports
    one, two = log(alone.output), log(options.output)
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert second[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), (
                name
            )


def test_lora_trains_an_adapter_alone(options: FitOptions) -> None:
    options = replace(options, tune="lora", lora_rank=2)
    fit(options)
    folder = options.output / "last"
    assert sorted(path.name for path in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    adapter = load_file(folder / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapter)
    assert any(float(value.abs().max()) > 0 for name, value in adapter.items() if "lora_B" in name)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == options.model
    assert {"q_proj", "down_proj"} <= set(settings["target_modules"])


def test_an_adapter_names_its_base_by_the_name_that_it_has_everywhere(options: FitOptions) -> None:
    options = replace(options, tune="lora", lora_rank=2)
    work = prepare(options)
    trainer = Trainer(options, replace(work, student=replace(work.student, spec="a-catalogue-name")))
    trainer.write(options.output / "last", resolve(options, work))
    trainer.close()
    settings = json.loads((options.output / "last" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "a-catalogue-name"


def test_a_pair_within_the_margin_is_active(options: FitOptions) -> None:
    fit(replace(options, margin=50.0, epochs=1))
    lines = [line for line in log(options.output) if line["pairs"]]
    assert lines and all(line["active"] == 1 for line in lines)
    assert any(line["ordered"] > 0 for line in lines)


def test_tuples_that_are_too_long_are_left_out_and_counted(options: FitOptions) -> None:
    long = text_tuple(99)
    long = replace(long, prompt=replace(long.prompt, text="def f():" + "a" * 200))
    write_tuples(options.tuples, [*(text_tuple(number) for number in range(4)), long])
    report = fit(replace(options, max_tokens=100))
    assert (report["tuples"], report["too_long"]) == (4, 1)
    with pytest.raises(ValueError, match=r"none of its 5 tuples fits into --max-tokens 5; raise it"):
        fit(replace(options, max_tokens=5, output=options.output.with_name("other")))


def test_every_method_trains_on_the_same_tuples(
    options: FitOptions, caplog: pytest.LogCaptureFixture
) -> None:
    """A rejected answer that is too long takes its tuple from the control that would not read it, too."""
    long = text_tuple(5, rejected=1)
    good, bad = long.candidates
    long = replace(long, candidates=(good, replace(bad, text="a" * 200)))
    write_tuples(options.tuples, [*(text_tuple(number) for number in range(4)), long])
    options = replace(options, max_tokens=100)
    used = [
        [item.name for item in prepare(replace(options, method=method)).items]
        for method in ("rrtf", "sft", "rank", "rrhf", "dpo")
    ]
    assert used == [[f"made/T/{number}" for number in range(4)]] * 5
    assert "1 tuples are longer than --max-tokens 100 and are left out: made/T/5" in caplog.text


def test_a_loss_that_is_not_finite_stops_the_run(options: FitOptions, model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    state["model.norm.weight"][0] = float("nan")
    save_file(state, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"step 1: the loss is not finite. Lower --lr \(now 0.01\)"):
        fit(replace(options, model=str(broken)))
    assert log(options.output) == []


def test_adapters_begin_as_the_seed_says(options: FitOptions) -> None:
    options = replace(options, tune="lora", epochs=1)
    folders = [options.output.with_name(name) for name in ("one", "two", "three")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        fit(replace(options, output=folder, seed=seed))
    one, two, three = (load_file(folder / "last" / "adapter_model.safetensors") for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not any(torch.equal(one[name], three[name]) for name in one)


def test_no_pairs_is_nothing_to_rank(options: FitOptions) -> None:
    write_tuples(options.tuples, [replace(text_tuple(number), pairs=()) for number in range(3)])
    with pytest.raises(ValueError, match="no tuple has a pair, so --method rank has nothing to learn"):
        fit(replace(options, method="rank"))
    assert fit(replace(options, method="rrtf"))["tuples"] == 3


def test_options_without_effect_are_named(options: FitOptions, caplog: pytest.LogCaptureFixture) -> None:
    prepare(replace(options, method="sft", beta=0.2, margin=0.1, lora_rank=8, ft_reduction="mean"))
    [said] = [each.message for each in caplog.records if each.levelname == "WARNING"]
    assert said == "without effect here: --margin, --beta, --lora-rank (--method sft, --tune full)"
    assert replace(options, method="dpo", beta=0.2).without_effect() == []


def test_config_json_names_what_was_used(options: FitOptions) -> None:
    fit(options)
    kept = json.loads((options.output / "config.json").read_text())
    assert kept == json.loads(json.dumps(resolve(options, prepare(options))))
    assert kept["layout"] == "shared"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"method": "ppo"}, "--method ppo: must be one of"), ({"lr": 0.0}, "--lr must be above 0"),
     ({"batch": 0}, "--batch must be at least 1"), ({"keep": 0}, "--keep must be at least 1"),
     ({"warmup": 1.0}, "--warmup must be"), ({"clip": float("nan")}, "--clip must be above 0"),
     ({"lora_rank": 0}, "--lora-rank must be at least 1"), ({"tune": "half"}, "--tune half: must be one of"),
     ({"beta": -0.1}, "--beta must be above 0"), ({"beta": float("nan")}, "--beta must be above 0"),
     ({"attention": "flash_attention_2", "layout": "shared"}, "use --layout separate")],
)  # fmt: skip
def test_wrong_options_are_named(options: FitOptions, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(options, **changes)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_device_that_is_not_here_is_named(options: FitOptions) -> None:
    with pytest.raises(ModelError, match="--device cuda: torch finds no CUDA device"):
        fit(replace(options, device="cuda"))


def test_a_launchers_accumulation_changes_no_gradient(
    options: FitOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = gradients(options)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    launched = gradients(options)
    assert all(torch.equal(plain[name], launched[name]) for name in plain)


def test_out_of_memory_says_what_to_lower(options: FitOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object) -> torch.Tensor:
        return torch.empty(2**50)  # the allocator's own error, which is a bare RuntimeError on a CPU

    monkeypatch.setattr("training.loop.score_rows", too_much)
    with pytest.raises(ModelError, match=r"out of memory: lower --micro-tokens \(now 2048\)"):
        fit(options)


def test_a_weight_of_another_shape_is_refused(options: FitOptions, model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    state = load_file(broken / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(state | {name: state[name][:10].clone()}, broken / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"its weights are not of the shapes that its config\.json names"):
        fit(replace(options, model=str(broken)))


def test_what_left_nothing_to_go_on_from_may_be_started_anew_with_other_settings(
    options: FitOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(ModelError, match="out of memory"):
        patch.setattr("training.loop.score_rows", stopped)
        fit(options)
    options = replace(options, micro_tokens=64)  # as the message advises
    assert fit(options)["steps_now"] == 6
    assert json.loads((options.output / "config.json").read_text())["micro_tokens"] == 64
    with pytest.raises(ValueError, match="--micro-tokens 64 there, 32 here"):
        fit(replace(options, micro_tokens=32))


def test_qlora_without_cuda_says_what_to_take(options: FitOptions) -> None:
    with pytest.raises(ModelError, match="--tune qlora needs a CUDA GPU"):
        fit(replace(options, tune="qlora"))
