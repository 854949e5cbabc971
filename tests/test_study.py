"""`rrtf-bench study` and `study-report`: plans, going on after a stop, and what the tables say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import study as study_module
from benchmarks.study import Plan, read_plan, study
from benchmarks.study_report import differences, markdown, read_results, report

PLAN = """
model = "smollm2-135m-instruct"
tuples = "tuples.jsonl"
development = ["mbpp-stubs-validation"]
held_out = ["humaneval"]
[fit]
epochs = 2
[[run]]
name = "sft"
seeds = [1, 2]
fit = {method = "sft", lr = 1e-5}
[[run]]
name = "sweep"
held_out = false
fit = {method = "rrtf", epochs = 3}
"""


def plan(folder: Path, text: str = PLAN) -> Plan:
    (folder / "tuples.jsonl").write_text("{}\n", "utf-8")
    (folder / "plan.toml").write_text(text, "utf-8")
    return read_plan(folder / "plan.toml")


def test_a_plan_lists_the_base_and_each_seed_with_its_own_settings(tmp_path: Path) -> None:
    runs = plan(tmp_path).runs
    assert [run.label for run in runs] == ["base", "sft-s1", "sft-s2", "sweep-s0"]
    assert runs[1].fit == {"epochs": 2, "method": "sft", "lr": 1e-5}
    assert runs[3].fit["epochs"] == 3
    assert runs[1].suites == ("mbpp-stubs-validation", "humaneval")
    assert runs[3].suites == ("mbpp-stubs-validation",)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("epochs = 2", "epochs ="), "not valid TOML"),
        (('held_out = ["humaneval"]', 'held_out = ["humanevil"]'), "humanevil"),
        (('name = "sweep"', 'name = "base"'), "not 'base'"),
        (('name = "sweep"', 'name = "sft"\nseeds = [2]'), "sft-s2 comes twice"),
        (('name = "sweep"', 'name = "sweep"\nsteps = 3'), "unknown key 'steps'"),
        (('tuples = "tuples.jsonl"', ""), "has no tuples"),
    ],
)
def test_a_wrong_plan_is_named(tmp_path: Path, change: tuple[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        plan(tmp_path, PLAN.replace(*change))


def outcome(settings: dict[str, Any], solved: list[str], problems: int = 10, digest: str = "d") -> str:
    score = {"suite_digest": digest, "problems": problems, "passed": len(solved), "solved": solved}
    return json.dumps({"settings": settings, "training": {}, "scores": {"humaneval": score}})


def test_a_failed_command_is_reported_and_leaves_no_result(tmp_path: Path) -> None:
    """Real child processes: `fit` refuses the tuples, so nothing may look done."""
    made = plan(tmp_path)
    found = study(made, tmp_path / "out", only=["sft-s1"])
    assert not found["ok"] and list(found["failed"]) == ["sft-s1"]
    assert not (tmp_path / "out" / "results").exists()
    assert (tmp_path / "out" / "runs" / "sft-s1" / "fit.log").read_text("utf-8").strip()


def test_a_result_says_nothing_of_where_it_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two commands are stood in for; what is tested is what is kept of their reports."""
    report = {
        "ok": True, "suite_digest": "d", "per_problem": {"a": {"passed": 1}, "b": {"passed": 0}},
        "results": {}, "mean_tokens": 3.0, "cut_off_at_max_tokens": 0,
    }  # fmt: skip

    def run(command: list[str], log_file: Path) -> dict[str, Any]:
        folder = command[command.index("-o") + 1] if "fit" in command else ""
        return {"folder": f"{folder}/last", "steps": 42} if folder else report

    monkeypatch.setattr(study_module, "_run", run)
    made = plan(tmp_path)
    assert study(made, tmp_path / "out", only=["sft-s1"])["ok"]
    text = (tmp_path / "out" / "results" / "sft-s1.json").read_text("utf-8")
    assert str(tmp_path) not in text
    assert json.loads(text)["training"] == {"steps": 42}
    assert json.loads(text)["scores"]["humaneval"]["solved"] == ["a"]


def test_what_is_done_is_not_done_again_unless_its_settings_changed(tmp_path: Path) -> None:
    made = plan(tmp_path)
    results = tmp_path / "out" / "results"
    results.mkdir(parents=True)
    settings = study_module._settings(made.runs[1], made)
    (results / "sft-s1.json").write_text(outcome(settings, []), "utf-8")
    assert study(made, tmp_path / "out", only=["sft-s1"])["ok"]
    (tmp_path / "tuples.jsonl").write_text("{ }\n", "utf-8")
    with pytest.raises(ValueError, match="other settings \\(tuples"):
        study(made, tmp_path / "out", only=["sft-s1"])
    with pytest.raises(ValueError, match="--only"):
        study(made, tmp_path / "out", only=["sfd"])


def write_results(folder: Path, runs: dict[str, list[list[str]]], **other: Any) -> None:
    folder.mkdir(exist_ok=True)
    for name, seeds in runs.items():
        for seed, solved in enumerate(seeds):
            text = outcome({"name": name, "seed": seed}, solved, **other)
            (folder / f"{name}-s{seed}.json").write_text(text, "utf-8")


def test_differences_are_paired_by_problem_and_by_seed(tmp_path: Path) -> None:
    write_results(
        tmp_path,
        {"base": [["a", "b"]], "sft": [["a", "c"], ["a", "c", "d"]], "rrtf": [["c"], ["a", "c", "e"]]},
    )
    runs = read_results(tmp_path)
    found = differences(runs, "sft", "rrtf", ["humaneval"])
    assert found is not None
    assert (found["score_a"], found["score_b"]) == (pytest.approx(25), pytest.approx(20))
    assert found["difference"] == pytest.approx(-5)
    assert found["low"] < -5 < found["high"]
    assert found["seed_pairs"] == {"n": 2, "min": pytest.approx(-10), "max": pytest.approx(0)}
    against_base = differences(runs, "base", "sft", ["humaneval"])
    assert against_base is not None and against_base["seed_pairs"]["n"] == 2
    assert differences(runs, "base", "sft", ["mbpp-test"]) is None


def test_the_tables_show_counts_of_every_seed(tmp_path: Path) -> None:
    write_results(tmp_path, {"base": [["a", "b"]], "sft": [["a", "c"], ["a", "c", "d"]]})
    text = markdown(report(tmp_path, [], ["base"]))
    assert "| base | 1 | 2 of 10 (20.0%, " in text
    assert "| sft | 2 | 2 / 3 of 10 (25.0%) |" in text
    assert "| sft - base | pooled | +5.0 |" in text


def test_scores_on_different_problems_are_never_compared(tmp_path: Path) -> None:
    write_results(tmp_path, {"base": [["a"]]})
    write_results(tmp_path, {"sft": [["a"]]}, digest="other")
    with pytest.raises(ValueError, match="different problems"):
        report(tmp_path, [], ["base"])
    with pytest.raises(ValueError, match="--against"):
        report(tmp_path, [], ["dpo"])
    with pytest.raises(ValueError, match="no results"):
        read_results(tmp_path / "nothing")
