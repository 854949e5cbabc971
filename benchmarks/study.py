"""`rrtf-bench study`: train a plan of runs on the same tuples, score each on the same problems, keep both.

A plan is a TOML file: what to train on, what is shared by all runs, and the runs, each with its seeds.

    model = "smollm2-135m-instruct"
    tuples = "tuples.jsonl"
    development = ["mbpp-stubs-validation"]          # to choose by
    held_out = ["humaneval", "mbpp-test"]            # to report
    [fit]                                            # flags of `rrtf-train fit`, for all runs
    epochs = 3
    [[run]]
    name = "rrtf"
    seeds = [1, 2, 3]
    fit = {method = "rrtf"}

Each finished run is one small file OUTPUT/results/NAME-sSEED.json, complete or absent, which names its
settings and which problems it solved; the same command goes on with what is missing. `study-report` reads
those files alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.machine import machine_record
from rrtf_serve.problems.suites import SUITES
from training.problem_files import write_text
from training.tables import read_toml

BASE = "base"  # the run that trains nothing
KEEPS = ("nothing", "weights")
_KEYS = {"model", "tuples", "development", "held_out", "fit", "sampling", "run"}
_RUN_KEYS = {"name", "seeds", "fit", "tuples", "held_out", "model"}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRun:
    """One training with one seed, or the base model as it is."""

    name: str
    seed: int
    model: str
    tuples: str
    fit: dict[str, Any]
    suites: tuple[str, ...]

    @property
    def label(self) -> str:
        return self.name if self.name == BASE else f"{self.name}-s{self.seed}"


@dataclass(frozen=True)
class Plan:
    """What a study trains and scores. Raises ValueError naming the file and the key."""

    path: Path
    runs: tuple[TrainingRun, ...]
    development: tuple[str, ...]
    held_out: tuple[str, ...]
    sampling: dict[str, Any] = field(default_factory=dict)  # flags of `rrtf-bench passk`


def read_plan(path: Path) -> Plan:
    """Paths in it are relative to the plan's own folder. Raises ValueError naming the file and the key."""
    table = read_toml(path)
    _known(path, "the plan", table, _KEYS)
    suites = {key: tuple(table.get(key, ())) for key in ("development", "held_out")}
    for key, names in suites.items():
        for name in names:
            if name not in SUITES:
                raise ValueError(f"{path}: {key} names {name!r}; suites are {', '.join(SUITES)}")
    runs = [_base(path, table, suites)] if table.get("model") else []
    labels = {run.label for run in runs}
    for entry in table.get("run", []):
        _known(path, f"run {entry.get('name')!r}", entry, _RUN_KEYS)
        name = entry.get("name")
        if not isinstance(name, str) or not name.replace("-", "").replace(".", "").isalnum() or name == BASE:
            raise ValueError(
                f"{path}: a run's name is letters, digits, - and ., and not 'base'; got {name!r}"
            )
        for seed in entry.get("seeds", [0]):
            made = _training_run(path, table, entry, seed, suites)
            if made.label in labels:
                raise ValueError(f"{path}: run {made.label} comes twice")
            labels.add(made.label)
            runs.append(made)
    return Plan(path, tuple(runs), **suites, sampling=table.get("sampling", {}))


def _base(path: Path, table: dict[str, Any], suites: dict[str, tuple[str, ...]]) -> TrainingRun:
    return TrainingRun(
        BASE, 0, _model(path, table["model"]), "", {}, (*suites["development"], *suites["held_out"])
    )


def _training_run(
    path: Path, table: dict[str, Any], entry: dict[str, Any], seed: int, suites: dict[str, tuple[str, ...]]
) -> TrainingRun:
    named = {key: str(entry.get(key, table.get(key, ""))) for key in ("model", "tuples")}
    for key, value in named.items():
        if not value:
            raise ValueError(f"{path}: run {entry['name']} has no {key}, and neither has the plan")
    # A run that only serves to choose need not look at what is held out.
    held_out = suites["held_out"] if entry.get("held_out", True) else ()
    return TrainingRun(
        name=entry["name"],
        seed=seed,
        model=_model(path, named["model"]),
        tuples=str(path.parent / named["tuples"]),
        fit={**table.get("fit", {}), **entry.get("fit", {})},
        suites=(*suites["development"], *held_out),
    )


def _model(path: Path, spec: str) -> str:
    folder = path.parent / spec
    return str(folder) if folder.exists() else spec


def _known(path: Path, where: str, table: dict[str, Any], keys: set[str]) -> None:
    for key in table:
        if key not in keys:
            raise ValueError(f"{path}: {where} has an unknown key {key!r}; known: {', '.join(sorted(keys))}")


def study(
    plan: Plan, output: Path, *, only: Iterable[str] = (), jobs: int = 1, keep: str = "nothing"
) -> dict[str, Any]:
    """Do what is missing of a plan, `jobs` runs at a time. What fails is named at the end; the rest is done.

    Raises ValueError where a kept result was made with other settings.
    """
    if keep not in KEEPS:
        raise ValueError(f"--keep {keep}: must be one of {', '.join(KEEPS)}")
    names = set(only)
    chosen = [run for run in plan.runs if not names or run.name in names or run.label in names]
    known = dict.fromkeys(run.name for run in plan.runs)
    if names - known.keys() - {run.label for run in plan.runs}:
        raise ValueError(f"--only: the plan has the runs {', '.join(sorted(known))}")
    missing = [run for run in chosen if not _is_done(run, plan, output)]
    failed: dict[str, str] = {}
    with (
        tqdm(total=len(chosen), initial=len(chosen) - len(missing), desc="study", unit="run") as progress,
        ThreadPoolExecutor(jobs) as pool,
    ):
        for run, problem in pool.map(lambda each: (each, _one(each, plan, output, keep)), missing):
            if problem:
                failed[run.label] = problem
            progress.update()
    return {
        "plan": str(plan.path),
        "results": str(output / "results"),
        "runs": len(chosen),
        "done": len(chosen) - len(failed),
        "failed": failed,
        "ok": not failed,
    }


def _settings(run: TrainingRun, plan: Plan) -> dict[str, Any]:
    """Everything that decides a result, as plain data; files by their digest, so that they may move."""
    tuples = Path(run.tuples)
    digest = hashlib.sha256(tuples.read_bytes()).hexdigest()[:16] if tuples.is_file() else ""
    if run.tuples and not digest:
        raise ValueError(f"{run.tuples}: no such file of tuples (run {run.label})")
    return {
        "name": run.name,
        "seed": run.seed,
        "model": Path(run.model).name,
        "tuples": digest,
        "fit": run.fit,
        "sampling": plan.sampling,
        "suites": list(run.suites),
    }


def _is_done(run: TrainingRun, plan: Plan, output: Path) -> bool:
    path = output / "results" / f"{run.label}.json"
    if not path.is_file():
        return False
    kept, now = json.loads(path.read_text("utf-8"))["settings"], _settings(run, plan)
    differing = [key for key in now if kept.get(key) != now[key]]
    if differing:
        key = differing[0]
        raise ValueError(
            f"{path}: was made with other settings ({key}: {kept.get(key)!r} there, {now[key]!r} in the "
            "plan); name the run otherwise, or move the file away"
        )
    return True


def _one(run: TrainingRun, plan: Plan, output: Path, keep: str) -> str:
    """Train and score one run; what went wrong, "" where nothing did."""
    settings = _settings(run, plan)
    folder = output / "runs" / run.label
    folder.mkdir(parents=True, exist_ok=True)
    model = run.model
    training: dict[str, Any] = {}
    if run.name != BASE:
        command = [
            sys.executable, "-m", "training.cli", "fit", run.tuples, "--model", run.model,
            "-o", str(folder / "fit"), "--seed", str(run.seed), "--json", *_flags(run.fit),
        ]  # fmt: skip
        made = _run(command, folder / "fit.log")
        if made is None:
            return f"training failed; see {folder / 'fit.log'}"
        # Results are published; where they were made is nobody's business.
        training = {name: value for name, value in made.items() if not str(value).startswith(str(folder))}
        model = str(folder / "fit" / "last")
    scores = {}
    for suite in run.suites:
        command = [
            sys.executable, "-m", "benchmarks.cli", "passk", "--suite", suite, "--model", model,
            "--engine", "torch", "--output", str(folder / suite), "--json", *_flags(plan.sampling),
        ]  # fmt: skip
        report = _run(command, folder / f"{suite}.log")
        if report is None or not report["ok"]:
            return f"scoring on {suite} failed; see {folder / f'{suite}.log'}"
        scores[suite] = _score(report)
    result = {"settings": settings, "training": training, "scores": scores, "machine": machine_record()}
    write_text(output / "results" / f"{run.label}.json", json.dumps(result, indent=1) + "\n")
    if keep == "nothing":
        shutil.rmtree(folder / "fit", ignore_errors=True)
    else:
        shutil.rmtree(folder / "fit" / "checkpoints", ignore_errors=True)
    return ""


def _score(report: dict[str, Any]) -> dict[str, Any]:
    counts = report["per_problem"]
    return {
        "suite_digest": report["suite_digest"],
        "problems": len(counts),
        "passed": sum(entry["passed"] for entry in counts.values()),
        # The digest says which problems there were; those not named here were not solved.
        "solved": sorted(task for task, entry in counts.items() if entry["passed"]),
        "results": report["results"],
        "mean_tokens": report["mean_tokens"],
        "cut_off_at_max_tokens": report["cut_off_at_max_tokens"],
    }


def _flags(options: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in options.items():
        name = "--" + key.replace("_", "-")
        flags += [name] if value is True else [] if value is False else [name, str(value)]
    return flags


def _run(command: list[str], log_file: Path) -> dict[str, Any] | None:
    """The JSON object that a command prints, None where it failed; what it says on stderr goes to the log."""
    with log_file.open("ab") as errors:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=errors, check=False, env=os.environ)
    if not done.stdout.strip():
        log.warning("%s: exit status %d; see %s", " ".join(command), done.returncode, log_file)
        return None
    made: dict[str, Any] = json.loads(done.stdout)
    return made if done.returncode == 0 else None
