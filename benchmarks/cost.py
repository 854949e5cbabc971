"""`rrtf-bench cost`: RRTF against online RL (TRL's GRPO), same student, problems, tests and hardware.

RRTF is what a run file of `rrtf-train run` says, sampling and judging included; GRPO takes the student, the
problems, the prompts and the way of training from the same file. Each side runs in a process of its own; its
wall time and peak memory are measured. Then base and both models answer the development problems.

The budget: --minutes for each side, or --steps of training for each; with neither, RRTF does what the file
says and GRPO gets the wall time that this took. Scoring is in no budget.

OUTPUT/sides/NAME.json   what a side took; a stopped comparison goes on with the side that is missing
OUTPUT/NAME/             what a side made: samples, log, model
OUTPUT/scores/NAME/      folders of `rrtf-bench passk`
OUTPUT/cost.json, OUTPUT/cost.md   the report
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.cost_child import in_child
from benchmarks.cost_report import cost_report, markdown
from benchmarks.cost_settings import keep_settings, read_json
from benchmarks.machine import machine_record
from benchmarks.passk import PasskConfig, passk
from rrtf_serve.problems.suites import SUITES
from rrtf_serve.sandbox.options import SandboxOptions
from training.config import RunConfig, read_config, resolved
from training.fit import find_student
from training.problem_sets import VALIDATION
from training.sample import write_json

SIDES = ("rrtf", "grpo")
BASE = "base"

Say = Callable[[str], None]


@dataclass(frozen=True)
class GrpoOptions:
    """What GRPO is told beside the run file. Raises ValueError naming the flag."""

    prompts: int = 4  # at a step
    generations: int = 8  # of each prompt
    rows: int = 8  # answers in one forward pass
    temperature: float = 1.0
    max_tokens: int = 256  # of an answer
    lr: float = 1e-6
    beta: float = 0.0  # weight of the divergence from the base model; above 0 TRL holds a second model

    def __post_init__(self) -> None:
        least = {"prompts": 1, "generations": 2, "rows": 1, "max_tokens": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                flag = f"--grpo-{name.replace('_', '-')}"
                raise ValueError(f"{flag} must be at least {low}, not {getattr(self, name)}")
        if self.prompts * self.generations % self.rows:
            raise ValueError(
                f"--grpo-rows {self.rows}: must divide --grpo-prompts times --grpo-generations, "
                f"{self.prompts * self.generations}"
            )
        # Written so that NaN fails them.
        if not 0 < self.temperature < 100:
            raise ValueError(f"--grpo-temperature must be above 0 and below 100, not {self.temperature}")
        if not 0 < self.lr < 1:
            raise ValueError(f"--grpo-lr must be above 0 and below 1, not {self.lr}")
        if not 0 <= self.beta < float("inf"):
            raise ValueError(f"--grpo-beta must be 0 or more, not {self.beta}")


@dataclass(frozen=True)
class CostConfig:
    """What is compared. Raises ValueError naming the flag, or the file and its key."""

    file: Path
    settings: tuple[str, ...] = ()  # of the file, as `rrtf-train run --set` takes them
    output: Path = Path("rrtf-cost")
    sides: tuple[str, ...] = SIDES
    minutes: float | None = None
    steps: int | None = None
    grpo: GrpoOptions = GrpoOptions()
    development: str = "mbpp-stubs-validation"
    limit: int | None = None  # development problems
    max_tokens: int = 512  # of a development answer
    batch: int = 16

    def __post_init__(self) -> None:
        for side in self.sides:
            if side not in SIDES:
                raise ValueError(f"--sides {side}: must be one of {', '.join(SIDES)}")
        if self.minutes is not None and self.steps is not None:
            raise ValueError("--minutes and --steps: one budget, or neither")
        if self.minutes is not None and not 0 < self.minutes < float("inf"):
            raise ValueError(f"--minutes must be above 0, not {self.minutes}")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"--steps must be at least 1, not {self.steps}")
        if self.development in SUITES and self.development not in VALIDATION:
            raise ValueError(
                f"--development {self.development}: is not for choosing; take {', '.join(VALIDATION)}, or a "
                "file"
            )
        run = self.run("rrtf")
        if run.fit is None:
            raise ValueError(f"{self.file}: has no [fit], so there is nothing to compare with")
        if run.fit.tune != "full":
            raise ValueError(f"{self.file}: [fit] tune is {run.fit.tune}; the comparison is of full training")
        if run.fit.method == "dpo":
            raise ValueError(f"{self.file}: [fit] method is dpo; take rrtf or one of its controls")
        if run.sample.format != "chat":
            raise ValueError(f"{self.file}: format is {run.sample.format}; GRPO's side asks by chat alone")
        if self.development in run.sample.problems:
            raise ValueError(f"--development {self.development}: is trained on by {self.file}")
        if not self.sides:
            raise ValueError("--sides: name at least one")
        self.score("base", run.fit.model)

    def run(self, side: str) -> RunConfig:
        """The file, with the side's folder."""
        return read_config(self.file, self.settings, self.output / side)

    def score(self, name: str, model: str) -> PasskConfig:
        """How a model answers the development problems. Raises ValueError naming the flag."""
        run = self.run("rrtf")
        assert run.fit is not None
        return PasskConfig(
            model=model, suite=self.development, engine="torch", format=run.sample.format,
            max_tokens=self.max_tokens, limit=self.limit, batch=self.batch, threads=run.fit.threads,
            device=run.fit.device, data_dir=run.sample.data_dir,
            output=self.output / "scores" / name, ks=(1,),
        )  # fmt: skip


def cost(config: CostConfig, say: Say = lambda _: None) -> dict[str, Any]:
    """Do the sides and scores that are missing; the report.

    Raises ValueError, ModelError, SamplerError, SandboxUnavailable, RuntimeError (a side that ended without a
    report).
    """
    run = config.run("rrtf")
    assert run.fit is not None
    problems = run.sample.load()
    sandbox = SandboxOptions(run.judge.sandbox, run.judge.workers, run.judge.site_packages)
    sandbox.open().close()  # hours of training must not end in "no sandbox here"
    student = find_student(run.fit.model)  # fetched and converted here: no side pays for it
    keep_settings(config.output / "settings.json", _settings(config, run, problems.suite.digest))
    if "grpo" in config.sides and read_json(_place(config, "grpo")) is None:
        say("checking GRPO's prompts ...")
        in_child("grpo-check", _told(config, "grpo", None))
    if config.minutes is None and config.steps is None:
        budget = "what the file says for RRTF, and the same wall time for GRPO"
    else:
        budget = f"{config.minutes:g} minutes a side" if config.minutes else f"{config.steps} steps a side"
    say(f"{len(problems.problems)} problems, student {student.card.name}; budget: {budget}")
    found: dict[str, dict[str, Any]] = {}
    for side in (each for each in SIDES if each in config.sides):
        found[side] = _side(config, side, run.fit.threads, say)
    models = {BASE: str(student.folder), **{side: each["model"] for side, each in found.items()}}
    scores = {}
    for name, model in models.items():
        say(f"scoring {name} on {config.development} ...")
        scores[name] = passk(config.score(name, model), sandbox)
    report = {
        "student": student.card.name,
        "problems": len(problems.problems),
        "development": config.development,
        "budget": budget,
        "grpo": asdict(config.grpo),
        **cost_report(found, scores, config.output / "scores"),
        "machine": machine_record(),
        "ok": all(score["ok"] for score in scores.values()),
    }
    write_json(config.output / "cost.json", report)
    (config.output / "cost.md").write_text(markdown(report), "utf-8")
    return report


def _settings(config: CostConfig, run: RunConfig, digest: str) -> dict[str, Any]:
    """What decides the measurements; the sides may be added to."""
    stages = resolved(run)
    for name in ("tuples", "output"):  # they follow from --output
        del stages["fit"][name]
    named = ("minutes", "steps", "development", "limit", "max_tokens")
    return {
        **{name: getattr(config, name) for name in named},
        "grpo": asdict(config.grpo),
        **stages,
        "problems_digest": digest,
    }


def _side(config: CostConfig, side: str, threads: int, say: Say) -> dict[str, Any]:
    """Measured before, or now: from nothing, as half a side's time can't be added up."""
    path = _place(config, side)
    kept = read_json(path)
    if kept is not None:
        say(f"{side}: measured before")
        return kept
    for old in (config.output / side, config.output / "scores" / side):
        shutil.rmtree(old, ignore_errors=True)
    seconds = None if config.minutes is None else 60 * config.minutes
    if side == "grpo" and seconds is None and config.steps is None:
        other = read_json(_place(config, "rrtf"))
        if other is None:
            raise ValueError("--sides grpo: its budget is RRTF's time; give --minutes or --steps, or do both")
        seconds = other["process"]["wall_s"]
    limit = (
        f"{seconds / 60:.1f} minutes" if seconds else f"{config.steps} steps" if config.steps else "its end"
    )
    say(f"{side}: to {limit} ...")
    report = in_child(side, _told(config, side, seconds), threads)
    report |= {"budget_s": seconds, "budget_steps": config.steps}
    write_json(path, report)
    return report


def _place(config: CostConfig, side: str) -> Path:
    return config.output / "sides" / f"{side}.json"


def _told(config: CostConfig, side: str, seconds: float | None) -> dict[str, Any]:
    """A child's settings."""
    return {
        "file": str(config.file), "set": list(config.settings), "folder": str(config.output / side),
        "seconds": seconds, "steps": config.steps, "grpo": asdict(config.grpo),
    }  # fmt: skip
