"""The log of a run: log.jsonl, TensorBoard's events and a progress bar on stderr."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.samples import Journal, to_line

_NOT_PLOTTED = ("key", "step", "epoch", "time_left_s")


class History:
    """One line per step, under the key step-N; lines of steps behind `start` are of a run that was killed
    before its next checkpoint, and are dropped: they will be made again."""

    def __init__(self, folder: Path, start: int, steps: int) -> None:
        path = folder / "log.jsonl"
        _cut(path, start)
        self._journal = Journal(path)
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start + 1)
        self._bar = tqdm(total=steps, initial=start, desc="fit", unit="step")
        self._left = steps - start
        self._done = 0
        self._began = time.monotonic()

    def add(self, step: int, values: dict[str, Any]) -> None:
        """Of step 1..; None among the values: there was nothing to measure."""
        self._done += 1
        each = (time.monotonic() - self._began) / self._done
        record = {
            "key": f"step-{step}", "step": step, **values,
            "time_left_s": round(each * (self._left - self._done), 1),
        }  # fmt: skip
        self._journal.add(record)
        for name, value in record.items():
            if name not in _NOT_PLOTTED and isinstance(value, int | float):
                self._writer.add_scalar(f"train/{name}", value, step)
        self._bar.set_postfix(loss=f"{values['loss']:.4g}", ranked=values.get("ordered"))
        self._bar.update()

    def close(self) -> None:
        self._bar.close()
        self._writer.close()
        self._journal.close()


def _cut(path: Path, start: int) -> None:
    """Keep the lines up to step `start`."""
    if not path.is_file():
        return
    with Journal(path) as journal:  # drops a torn line
        kept = [record for record in journal.records.values() if _step(record) <= start]
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_bytes(b"".join(map(to_line, kept)))
    fresh.replace(path)


def _step(record: Record) -> int:
    step = record.get("step")
    return step if isinstance(step, int) else 0


def read_history(folder: Path) -> list[Record]:
    """The lines of a fit folder's log."""
    path = folder / "log.jsonl"
    return [record for _, record in json_lines(path)] if path.is_file() else []
