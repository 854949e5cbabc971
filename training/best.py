"""The best model of a run so far: DIR/best, and what each validation found in DIR/validation.jsonl."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.samples import Journal
from training.validation import Validation


class Best:
    """Keeps the step that solves most problems; of equals the earliest."""

    def __init__(self, folder: Path, validation: Validation) -> None:
        self._folder = folder
        self._validation = validation
        self._journal = Journal(folder / "validation.jsonl")

    def consider(self, step: int, candidate: Path, runnable: Path) -> None:
        """Score `runnable`, a whole model, and move `candidate`, what is kept of it, to best/ if it leads.

        A step that was scored before is not scored again: after a kill the same step makes the same model.
        """
        key = f"step-{step}"
        work = self._folder / "validation" / key
        found = self._journal.records.get(key) or {
            "key": key, "step": step, **self._validation.score(runnable, work),
        }  # fmt: skip
        others = [record for name, record in self._journal.records.items() if name != key]
        if all(_rank(found) > _rank(record) for record in others):
            best = self._folder / "best"
            shutil.rmtree(best, ignore_errors=True)
            candidate.rename(best)
        if key not in self._journal.records:  # last, so that a kill before leaves it to be done again
            self._journal.add(found)

    def close(self) -> None:
        self._journal.close()


def best_of(folder: Path) -> dict[str, Any]:
    """What a finished run's validations found."""
    records = [record for _, record in json_lines(folder / "validation.jsonl")]
    best = max(records, key=_rank)
    return {"best_step": best["step"], "best_passed": best["passed"], "best_problems": best["problems"]}


def _rank(record: dict[str, Any]) -> tuple[int, int]:
    return record["passed"], -record["step"]
