"""`rrtf-bench training-speed`: what is timed, in which order, and what the figures are made of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cost_child import in_child
from benchmarks.cost_steps import SIDES, time_steps
from benchmarks.loss_check import write_tiny
from benchmarks.training_speed import (
    TrainingSpeedConfig,
    judge_report,
    reference_tuples,
    rounds,
    sampling_report,
    steps_report,
    training_speed,
)
from rrtf_serve.models.errors import ModelError
from rrtf_serve.sandbox.options import SandboxOptions
from training.records import write_tuples


def record(seconds: list[float], tokens: list[int], peak: float, cuda: float | None = None) -> dict[str, Any]:
    process = {"wall_s": 1.0, "base_mb": 100.0, "peak_mb": peak, "cuda_peak_mb": cuda}
    return {"seconds": seconds, "tokens": tokens, "device": "cpu", "process": process}


def test_ratios_are_taken_round_by_round() -> None:
    records = {
        "steps/rrtf/0": record([1.0, 3.0], [10, 10], 300.0),
        "steps/sft/0": record([1.0, 1.0], [10, 10], 200.0),
        "steps/plain/0": record([2.0, 2.0], [10, 10], 300.0),
        "steps/rrtf/1": record([10.0, 10.0], [10, 10], 300.0),
        "steps/sft/1": record([10.0, 10.0], [10, 10], 300.0),
        "steps/plain/1": record([20.0, 20.0], [10, 10], 500.0),
    }
    found = steps_report(records, 2)
    assert found["rrtf"]["step_s"] == {"median": 6.0, "min": 2.0, "max": 10.0, "n": 2}
    assert found["rrtf"]["tokens_per_s"]["max"] == 5.0
    assert (found["rrtf_to_sft"]["time"]["min"], found["rrtf_to_sft"]["time"]["max"]) == (1.0, 2.0)
    assert not found["rrtf_to_sft"]["time_met"]
    assert found["rrtf_to_plain"]["time"]["median"] == 0.75
    assert found["rrtf_to_plain"]["time_met"] and found["rrtf_to_plain"]["memory_met"]
    assert found["rrtf_to_sft"]["memory"]["max"] == 1.5
    assert found["rrtf_to_sft"]["memory_above_libraries"]["max"] == 2.0


def test_on_cuda_memory_is_the_devices() -> None:
    records = {
        f"steps/{side}/0": record([1.0], [1], 300.0, cuda)
        for side, cuda in (("rrtf", 110.0), ("sft", 100.0), ("plain", 220.0))
    }
    found = steps_report(records, 1)
    assert found["rrtf_to_sft"]["memory"]["median"] == pytest.approx(1.1)
    assert found["rrtf_to_plain"]["memory"]["median"] == 0.5


def test_sampling_and_judge_are_rates_against_rates() -> None:
    records: dict[str, dict[str, Any]] = {
        "sampling/ct2/0": {"samples": 20, "tokens": 600, "seconds": 2.0, "settings": {}},
        "sampling/torch/0": {"samples": 20, "tokens": 100, "seconds": 2.0, "settings": {}},
        "sampling/transformers/0": {"samples": 1, "tokens": 50, "seconds": 1.0, "settings": {}},
        "judge/sandbox/0": {"samples": 20, "seconds": 1.0, "workers": 2, "failed_by_the_sandbox": []},
    }
    found = sampling_report(records, 1)
    assert found["ct2_to_transformers"]["median"] == 6.0
    assert found["torch_to_transformers"]["median"] == 1.0
    assert found["met"]
    judged = judge_report(records, 1)
    assert judged["to_sampling"]["median"] == 2.0
    assert judged["met"]


def test_sides_take_turns_and_the_judge_follows_the_sampling() -> None:
    order = rounds(TrainingSpeedConfig(repeats=2))
    assert [each[:2] for each in order[:3]] == [("steps", "rrtf"), ("steps", "sft"), ("steps", "plain")]
    assert [each[:2] for each in order[7:10]] == [("steps", "plain"), ("steps", "sft"), ("steps", "rrtf")]
    for number in (0, 1):
        drawn, judged = ("sampling", "ct2", number), ("judge", "sandbox", number)
        assert order.index(drawn) < order.index(judged)
    assert len(order) == len(set(order)) == 14


def test_tuples_of_references_rank_the_own_above_a_strangers() -> None:
    made = reference_tuples(TrainingSpeedConfig(limit=3))
    assert [item.task_id for item in made] == ["demo/0", "demo/1", "demo/2"]
    assert [item.candidates[0].text for item in made] == [
        made[(at + 1) % 3].candidates[1].text for at in range(3)
    ]
    assert made[0].candidates[0].text.startswith("```python\ndef free_shelf_space(")
    assert made[0].candidates[0].text.endswith("\n```")


def test_all_sides_step_over_the_same_tokens(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    config = TrainingSpeedConfig(
        str(tmp_path / "tiny"), output=tmp_path, limit=4, batch=2, device="cpu", precision="fp32", threads=1
    )
    write_tuples(tmp_path / "tuples.jsonl", reference_tuples(config))
    options = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(config.fit_options(2)).items()
    }
    found = {side: time_steps({"side": side, "warmup": 1, "steps": 2, "options": options}) for side in SIDES}
    assert found["rrtf"]["tokens"] == found["sft"]["tokens"] == found["plain"]["tokens"]
    assert all(len(each["seconds"]) == 2 and min(each["seconds"]) > 0 for each in found.values())


def test_what_a_child_refuses_is_refused_here(tmp_path: Path) -> None:
    settings = {"side": "rrtf", "warmup": 0, "steps": 1, "options": {
        "tuples": str(tmp_path / "none.jsonl"), "model": "m", "output": str(tmp_path)}}  # fmt: skip
    with pytest.raises(ValueError, match=r"none.jsonl: no such file; `rrtf-train rank` writes it"):
        in_child("steps", settings)
    sampling = {"side": "ct2", "problems": "training/none.jsonl", "decoding": {}, "k": 1, "data_dir": None}
    with pytest.raises(ValueError, match=r"training/none.jsonl: neither a file nor a suite"):
        in_child("sampling", sampling)
    with pytest.raises(ValueError, match="must be one of rrtf, grpo"):
        in_child("lunch", {})


def test_a_child_that_dies_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="steps: the measuring process ended with status 1; its message"):
        in_child("steps", {"side": "rrtf"})  # a fault of the caller's, which no user can mend


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"parts": ("naps",)}, "--parts naps: must be"), ({"parts": ("judge",)}, "name both"),
     ({"repeats": 0}, "--repeats must be"), ({"limit": 1}, "--limit must be"), ({"dtype": "int8"}, "--dtype"),
     ({"rows": 0}, "--batch must be"), ({"format": "haiku"}, "--prompt haiku"), ({"steps": 0}, "--steps")],
)  # fmt: skip
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSpeedConfig(**changes)


@pytest.mark.slow
def test_a_whole_measurement_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    write_tiny(tmp_path / "tiny")
    config = TrainingSpeedConfig(
        str(tmp_path / "tiny"), output=tmp_path / "speed", repeats=1, limit=3, steps=1, warmup=1, batch=3,
        k=1, max_tokens=8, single=1, device="cpu", threads=1,
    )  # fmt: skip
    report = training_speed(config, SandboxOptions(workers=1))
    assert report["sampling"]["ct2"]["settings"]["compute_type"].startswith("int8")
    assert report["steps"]["rrtf"]["peak_mb"]["min"] > 100
    journal = tmp_path / "speed" / "rounds.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 7
    journal.write_text("".join(lines[:6]))  # stopped before its last measurement
    again = training_speed(config, SandboxOptions(workers=1))
    assert journal.read_text().splitlines(keepends=True)[:6] == lines[:6]
    assert again["steps"] == report["steps"]
    page = (tmp_path / "speed" / "training-speed.md").read_text()
    assert "| rrtf | " in page and "Judge with 1 workers" in page
    assert json.loads((tmp_path / "speed" / "training-speed.json").read_text())["judge"]["workers"] == 1


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an install without the extra: a module that hides trl stands before it on the path."""
    (tmp_path / "trl.py").write_text("raise ModuleNotFoundError(\"No module named 'trl'\", name='trl')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with pytest.raises(ModelError, match=r"grpo needs trl, which is not installed: pip install 'rrtf-serve"):
        in_child("grpo", {})
