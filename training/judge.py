"""A run's answers judged by their problems' tests in the sandbox: the stage `judge`.

RUN/judged/STEM.jsonl    the samples with verdicts, as `problems.judging.judge_file` writes them
RUN/judged/dropped.json  problems whose reference solution fails here: task_id -> why; nobody ranks them

Equal programmes are judged once, and a folder that is judged again is judged for what is new.
"""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rrtf_serve.problems import gold
from rrtf_serve.problems.evaluate import per_problem
from rrtf_serve.problems.gold import Gold
from rrtf_serve.problems.jobs import check_languages
from rrtf_serve.problems.judging import Tally, judge_file
from rrtf_serve.problems.problem import Suite
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.options import SandboxOptions
from training.sample import read_index, sample_path, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeOptions:
    """How answers are judged. Raises ValueError naming the flag."""

    sandbox: str | None = None  # level; None: RRTF_SANDBOX, else the strongest that works here
    workers: int | None = None  # programmes at a time; None: one per core
    site_packages: tuple[Path, ...] = ()  # what answers may import besides the standard library
    retries: int = 2  # of answers that the sandbox itself failed, on top of its own three tries

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"--workers must be at least 1, not {self.workers}")
        if self.retries < 0:
            raise ValueError(f"--retries must be 0 or more, not {self.retries}")

    def open(self) -> Sandbox:
        """Raises SandboxUnavailable, and ValueError naming the flag."""
        return SandboxOptions(self.sandbox, self.workers, self.site_packages).open()


def judge(folder: Path, options: JudgeOptions, data_dir: Path | None = None) -> dict[str, Any]:
    """Judge all samples of the folder; a report per file.

    Answers that the sandbox failed in the end have `passed` null: they are named here and never ranked.
    Raises ValueError (no samples, no problem left), SandboxUnavailable, BusyError.
    """
    index = read_index(folder)
    problem_set = index.load(data_dir)
    with options.open() as sandbox:
        check_languages(problem_set.problems.values())
        golds = gold.measure(problem_set.suite, sandbox)
        dropped = {task: each.message or each.result for task, each in golds.items() if not each.passed}
        write_json(folder / "judged" / "dropped.json", dropped)
        for task, why in dropped.items():
            log.warning("%s: dropped, its reference solution fails here (%s)", task, why)
        if len(dropped) == len(problem_set.problems):
            raise ValueError(
                f"{folder}: the reference solutions of all problems fail here, so nothing can be ranked; the "
                "lines above say why (a package that they import goes with --site-packages)"
            )
        for each in index.files:
            if not sample_path(folder, each.stem).is_file():
                log.warning("%s: no samples yet; nothing of it is judged", sample_path(folder, each.stem))
        files = {
            each.stem: _judge_file(
                sample_path(folder, each.stem),
                judged_path(folder, each.stem),
                problem_set.suite,
                sandbox,
                golds,
                retries=options.retries,
            )
            for each in index.files
            if sample_path(folder, each.stem).is_file()
        }
        level = sandbox.level.value
    if not files:
        raise ValueError(f"{folder}: holds no samples yet; `rrtf-train sample` draws them")
    return {"sandbox": level, "dropped": dropped, "files": files}


def judged_path(folder: Path, stem: str) -> Path:
    return folder / "judged" / f"{stem}.jsonl"


def read_dropped(folder: Path) -> dict[str, str]:
    """Problems whose reference solution fails here, and why. Raises ValueError where nothing is judged."""
    path = folder / "judged" / "dropped.json"
    try:
        found: dict[str, str] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{folder}: holds no verdicts; `rrtf-train judge` comes first") from None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); `rrtf-train judge` writes it anew") from error
    return found


def _judge_file(
    samples: Path, out: Path, suite: Suite, sandbox: Sandbox, golds: dict[str, Gold], *, retries: int
) -> dict[str, Any]:
    stem = samples.stem
    started = time.monotonic()
    tally = judge_file(samples, suite, out, sandbox, golds)
    for _ in range(retries):
        if not tally.failed_by_sandbox:
            break
        log.warning("%s: the sandbox failed on %d answers", stem, len(tally.failed_by_sandbox))
        tally = judge_file(samples, suite, out, sandbox, golds)
    for name in tally.failed_by_sandbox:
        log.warning("%s: the sandbox failed on %s; it is not ranked", stem, name)
    return {**_counts(tally), "seconds": round(time.monotonic() - started, 3)}


def _counts(tally: Tally) -> dict[str, Any]:
    samples = sum(counts[0] for counts in tally.counts.values())
    rates = per_problem(tally.counts, 1).values()
    return {
        "problems": len(tally.counts),
        "samples": samples,
        "passed": sum(counts[1] for counts in tally.counts.values()),
        "pass@1": round(sum(rates) / len(rates), 6) if rates else None,
        "solved": sum(counts[1] > 0 for counts in tally.counts.values()),
        "results": dict(sorted(tally.results.items())),
        "failed_by_the_sandbox": tally.failed_by_sandbox,
    }
