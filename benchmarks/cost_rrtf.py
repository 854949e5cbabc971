"""RRTF's side of `rrtf-bench cost`, in a child: the stages of `rrtf-train run`, with their time.

Settings: file, set, folder (what `read_config` takes), seconds and steps (None: no limit). A limit ends the
training after the step in which it is reached; stages before it are never cut.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tqdm import tqdm

from rrtf_serve.problems.origins import json_lines
from training.config import RunConfig, read_config
from training.fit import prepare, resolve
from training.judge import judge, judged_path
from training.loop import Trainer
from training.rank import rank
from training.sample import read_index, sample, sample_path


def align(settings: dict[str, Any]) -> dict[str, Any]:
    """Sample, judge, rank and train; what it took. Raises what the stages raise; ValueError where the time is
    over before the first training step."""
    folder = Path(settings["folder"])
    config = read_config(Path(settings["file"]), settings["set"], folder)
    began = time.monotonic()
    phases: dict[str, float] = {}
    data = config.sample.data_dir
    with _timed(phases, "sample"):
        sample(config.sample, folder)
    with _timed(phases, "judge"):
        judge(folder, config.judge, data)
    with _timed(phases, "rank"):
        ranked = rank(folder, config.rank, None, data)
    left = None if settings["seconds"] is None else settings["seconds"] - (time.monotonic() - began)
    if left is not None and left <= 0:
        raise ValueError(
            f"--minutes: {settings['seconds'] / 60:g} are over before RRTF's first training step; raise it, "
            "or lower k or limit with --set"
        )
    with _timed(phases, "fit"):
        fitted = _fit(config, folder / "model", left, settings["steps"])
    return {
        "phases_s": phases,
        **fitted,
        "tuples": ranked["tuples"],
        "pairs": ranked["pairs"],
        **_counts(folder),
        "model": str(folder / "model"),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    began = time.monotonic()
    yield
    phases[name] = round(time.monotonic() - began, 3)


def _fit(config: RunConfig, model: Path, seconds: float | None, steps: int | None) -> dict[str, Any]:
    """As `training.loop.train`, without checkpoints: a side that is stopped is done again."""
    options = config.fit
    assert options is not None  # the parent has refused a file without [fit]
    began = time.monotonic()
    if options.threads:
        torch.set_num_threads(options.threads)
    work = prepare(options)
    planned = work.schedule.steps if steps is None else min(steps, work.schedule.steps)
    trainer = Trainer(options, work)
    log: list[dict[str, Any]] = []
    for step in tqdm(range(planned), desc="fit", unit="step"):
        log.append(trainer.step(step))
        if seconds is not None and time.monotonic() - began >= seconds:
            break
    trainer.write(model, resolve(options, work))
    device = str(trainer.accelerator.device)
    trainer.close()
    kept = ("loss", "rank", "ft", "ordered")
    return {
        "steps": len(log),
        "planned_steps": work.schedule.steps,
        "tokens_trained": sum(line["tokens"] for line in log),
        "device": device,
        "first_step": {name: log[0][name] for name in kept},
        "last_step": {name: log[-1][name] for name in kept},
    }


def _counts(folder: Path) -> dict[str, Any]:
    """Equal programmes are judged once, so programmes and tests are counted by verdict."""
    tokens = {"student": 0, "teacher": 0}
    answers = dict(tokens)
    verdicts: dict[str, int] = {}
    failed = 0
    for each in read_index(folder).files:
        for _, record in json_lines(sample_path(folder, each.stem)):
            tokens[each.role] += record.get("tokens") or 0
            answers[each.role] += 1
        for _, record in json_lines(judged_path(folder, each.stem)):
            failed += record["passed"] is None
            verdicts[record["verdict"]["key"]] = record["verdict"]["tests"]
    return {
        "answers": answers,
        "tokens_sampled": tokens,
        "programmes_run": len(verdicts),
        "tests_executed": sum(verdicts.values()),
        "failed_by_the_sandbox": failed,
    }
