"""`rrtf-bench cost`: the sandbox as a reward, and both sides on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_problems import write_problems

from benchmarks.cost import CostConfig, GrpoOptions, cost
from benchmarks.cost_report import cost_report, markdown
from benchmarks.cost_reward import SandboxReward
from benchmarks.loss_check import write_tiny
from rrtf_serve.problems.prompts import render
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Status, Verdict
from training.rank import RankOptions

GOOD = "```python\ndef double(n):\n    return n * 2\n```"
PART = "```python\ndef double(n):\n    return 0\n```"
WRONG = "```python\ndef double(n):\n    return 'a'\n```"
BROKEN = "```python\ndef double(n:\n```"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    try:
        made = Sandbox(workers=1)
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    with made:
        yield made


def reward_of(folder: Path, sandbox: Any, options: RankOptions | None = None) -> SandboxReward:
    problems = load_suite(str(write_problems(folder / "toy.jsonl")), None).problems
    prompts = {task: render(problem, "chat") for task, problem in problems.items()}
    return SandboxReward(problems, prompts, {}, sandbox, options or RankOptions(), retries=1)


def ask(reward: SandboxReward, texts: list[str], tasks: list[str] | None = None) -> list[float | None]:
    return reward(
        completions=[[{"role": "assistant", "content": text}] for text in texts],
        completion_ids=[[1, 2, 3]] * len(texts),
        task_id=tasks or ["t/double"] * len(texts),
        trainer_state=None,
    )


def test_a_reward_is_the_rankings_score(tmp_path: Path, sandbox: Sandbox) -> None:
    reward = reward_of(tmp_path, sandbox)
    found = ask(reward, [GOOD, PART, WRONG, BROKEN, "I can't."])
    assert found[:4] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])
    assert found[4] in (0.0, pytest.approx(1 / 3))
    assert (reward.answers, reward.tokens, reward.passed, reward.failed) == (5, 15, 1, 0)
    assert reward.programmes == 5
    other = reward_of(tmp_path, sandbox, RankOptions(level_scores=(0, 0, 0, 2)))
    assert ask(other, [GOOD, PART, WRONG]) == [2.0, 0.0, 0.0]


def test_equal_programmes_run_once_and_each_answers_its_own_problem(tmp_path: Path, sandbox: Sandbox) -> None:
    reward = reward_of(tmp_path, sandbox)
    assert ask(reward, [GOOD, GOOD, f"Sure:\n{GOOD}"]) == [1.0] * 3
    assert ask(reward, [GOOD]) == [1.0]
    assert reward.programmes == 1
    assert reward.tests == 2
    triple = GOOD.replace("double", "triple")
    found = ask(reward, [triple, triple.replace("* 2", "* 3")], ["t/triple"] * 2)
    assert found[1] == 1.0 and found[0] is not None and found[0] < 1
    assert reward.programmes == 3


class Failing:
    """A sandbox that fails, and after `recovers` calls judges all as passed."""

    conditions = "none"

    def __init__(self, recovers: int) -> None:
        self.left = recovers
        self.jobs = 0

    def judge_many(self, jobs: Any) -> Iterator[Verdict]:
        self.left -= 1
        for _ in jobs:
            self.jobs += 1
            yield Verdict(Status.ALL_PASS if self.left < 0 else Status.INFRA_ERROR, Level.RLIMITS)


def test_a_failure_of_the_sandbox_is_never_a_reward(tmp_path: Path) -> None:
    failing = Failing(recovers=100)
    reward = reward_of(tmp_path, failing)
    assert ask(reward, [GOOD, WRONG]) == [None, None]
    assert failing.jobs == 4  # twice each
    assert (reward.failed, reward.passed, reward.programmes) == (2, 0, 0)
    recovering = reward_of(tmp_path, Failing(recovers=1))
    assert ask(recovering, [GOOD]) == [1.0]
    assert recovering.failed == 0


RUN = """
folder = "unused"
problems = ["{problems}"]
[[source]]
name = "student"
role = "student"
model = "{model}"
engine = "torch"
k = 2
max_tokens = 8
device = "cpu"
threads = 1
[[source]]
name = "human"
role = "teacher"
kind = "reference"
[judge]
workers = 1
[fit]
lr = 1e-3
epochs = 2
batch = 2
threads = 1
device = "cpu"
precision = "fp32"
"""


def config_of(folder: Path, run: str = RUN, **changes: Any) -> CostConfig:
    problems = write_problems(folder / "toy.jsonl")
    development = folder / "development.jsonl"
    development.write_text(problems.read_text().replace('"t/', '"d/'))
    (folder / "run.toml").write_text(run.format(problems=problems, model=folder / "tiny"))
    grpo = GrpoOptions(prompts=2, generations=2, rows=2, max_tokens=4)
    return CostConfig(
        folder / "run.toml", output=folder / "cost", max_tokens=4,
        **{"grpo": grpo, "steps": 2, "development": str(development), **changes},
    )  # fmt: skip


@pytest.mark.slow
def test_both_sides_end_to_end(tmp_path: Path, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    write_tiny(tmp_path / "tiny")
    config = config_of(tmp_path)
    said: list[str] = []
    report = cost(config, said.append)
    rrtf, grpo = report["sides"]["rrtf"], report["sides"]["grpo"]
    assert rrtf["steps"] == grpo["steps"] == 2
    assert (rrtf["answers"], grpo["answers"]["student"]) == ({"student": 6, "teacher": 3}, 8)
    assert 0 < grpo["tokens_sampled"]["student"] <= 8 * 4
    assert rrtf["tests_executed"] >= 3 * 2
    for side in (rrtf, grpo):
        assert side["peak_mb"] > side["base_mb"] > 0
        assert side["wall_s"] >= sum(side["phases_s"].values()) - 0.5
        assert side["pass@1"]["problems"] == 3
        assert (Path(side["model"]) / "model.safetensors").is_file()
    assert "rrtf_against_grpo" in report
    assert "| tokens sampled |" in (tmp_path / "cost" / "cost.md").read_text()
    # A side that is there is not done again; other settings are refused.
    said.clear()
    assert cost(config, said.append)["sides"]["grpo"]["wall_s"] == grpo["wall_s"]
    assert "grpo: measured before" in said
    with pytest.raises(ValueError, match=r"other settings \(steps: 2 there, 3 here\)"):
        cost(replace(config, steps=3))


@pytest.mark.filterwarnings("ignore")  # of libraries, about each other
def test_trl_learns_nothing_from_an_answer_without_a_reward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second answer has none and the others the same: were none taken for 0, the model would move."""
    import time

    from benchmarks import cost_grpo
    from training.config import read_config
    from training.fit import find_student
    from training.student import load_model

    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    write_tiny(tmp_path / "tiny")
    config = config_of(tmp_path)
    run = read_config(config.file, (), tmp_path / "run")
    assert run.fit is not None
    problems = run.sample.load().problems
    prompts = {task: render(problem, "chat") for task, problem in problems.items()}
    student = find_student(run.fit.model)
    settings = {
        "folder": str(tmp_path / "run"), "seconds": None, "steps": 1,
        "grpo": {"prompts": 1, "generations": 2, "rows": 2, "max_tokens": 4, "temperature": 1.0, "lr": 1e-2,
                 "beta": 0.0},
    }  # fmt: skip

    def moved(values: list[float | None]) -> float:
        def reward(completions: list[Any], **_: Any) -> list[float | None]:
            return [values[at % 2] for at in range(len(completions))]

        model = load_model(student, "full", run.fit.adapter(), attention="sdpa", half=None)  # type: ignore[union-attr]
        before = {name: value.clone() for name, value in model.state_dict().items()}
        trainer = cost_grpo._trainer(
            settings, run, model=model, tokenizer=cost_grpo._tokenizer(student, prompts),
            reward=reward, prompts=prompts, began=time.monotonic(),  # type: ignore[arg-type]
        )  # fmt: skip
        trainer.train()
        return max(float((value - before[name]).abs().max()) for name, value in model.state_dict().items())

    assert moved([None, 1.0]) == 0
    assert moved([0.0, 1.0]) > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sides": ("ppo",)}, "--sides ppo: must be"), ({"minutes": 1.0}, "--minutes and --steps: one budget"),
     ({"steps": 0}, "--steps must be"), ({"steps": None, "minutes": -1.0}, "--minutes must be"),
     ({"development": "humaneval"}, "--development humaneval: is not for choosing"),
     ({"settings": ("fit.tune=lora",)}, "tune is lora"), ({"settings": ("fit.method=dpo",)}, "method is dpo"),
     ({"settings": ("format=completion",)}, "asks by chat alone"), ({"sides": ()}, "--sides: name"),
     ({"batch": 0}, "--batch must be")],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, **changes)


def test_a_run_without_training_or_on_its_development_problems_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no \[fit\]"):
        config_of(tmp_path, RUN.partition("[fit]")[0])
    config = config_of(tmp_path)
    with pytest.raises(ValueError, match="is trained on by"):
        replace(config, development=config.run("rrtf").sample.problems[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rows": 3}, "--grpo-rows 3: must divide"), ({"generations": 1}, "--grpo-generations must be"),
     ({"temperature": 0.0}, "--grpo-temperature must be"), ({"lr": 0.0}, "--grpo-lr must be"),
     ({"beta": -1.0}, "--grpo-beta must be"), ({"max_tokens": 0}, "--grpo-max-tokens must be")],
)  # fmt: skip
def test_wrong_grpo_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrpoOptions(**changes)


def side(wall: float, peak: float, tokens: int, tests: int) -> dict[str, Any]:
    return {
        "phases_s": {"fit": wall}, "steps": 3, "device": "cpu", "answers": {"student": 4, "teacher": 0},
        "tokens_sampled": {"student": tokens, "teacher": 0}, "programmes_run": 2, "tests_executed": tests,
        "failed_by_the_sandbox": 0, "model": "m", "versions": {"torch": "2"},
        "process": {"wall_s": wall, "base_mb": 1.0, "peak_mb": peak, "cuda_peak_mb": None},
    }  # fmt: skip


def test_gain_is_points_over_the_base_per_minute(tmp_path: Path) -> None:
    solved = {"base": 2, "rrtf": 6, "grpo": 3}
    for name, count in solved.items():
        (tmp_path / name).mkdir()
        lines = [
            {"task_id": f"t{at}", "completion": "", "passed": at < count, "result": "x"} for at in range(10)
        ]
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    scores = {
        name: {"scores": {"pass@1": {"value": count / 10, "passed": count, "problems": 10, "interval": {}}}}
        for name, count in solved.items()
    }
    sides = {"rrtf": side(120.0, 100.0, 50, 10), "grpo": side(240.0, 150.0, 200, 40)}
    found = cost_report(sides, scores, tmp_path)
    assert found["sides"]["rrtf"]["gain_points"]["mean"] == pytest.approx(40)
    assert found["sides"]["rrtf"]["gain_points_per_device_minute"]["mean"] == pytest.approx(20)
    assert found["sides"]["grpo"]["gain_points_per_device_minute"]["mean"] == pytest.approx(2.5)
    assert found["rrtf_against_grpo"]["difference"] == pytest.approx(0.3)
    assert found["grpo_to_rrtf"] == {
        "wall": 2.0, "peak_memory": 1.5, "tokens_sampled": 4.0, "tests_executed": 4.0,
    }  # fmt: skip
    report = {
        "student": "s", "problems": 10, "development": "d", "budget": "b", "grpo": {"rows": 2},
        "machine": {"cpu": "c"}, **found,
    }  # fmt: skip
    page = markdown(report)
    assert "| wall time, s | 120.0 | 240.0 |" in page
    assert "RRTF against GRPO: +30.0 points" in page
    one = cost_report({"rrtf": sides["rrtf"]}, scores, tmp_path)
    assert "rrtf_against_grpo" not in one
