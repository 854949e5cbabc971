"""Checkpoints of a run: complete or absent, the newest few kept.

A folder step-N holds what `accelerate` saves (weights and optimiser, sharded where they are sharded). All
else of a run follows from N.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import accelerate  # type: ignore[import-untyped]  # ships no type information

_NAME = re.compile(r"step-(\d+)")


def latest(folder: Path) -> int | None:
    """The step of the newest checkpoint; None: there is none."""
    return max(_steps(folder), default=None)


def save(accelerator: accelerate.Accelerator, folder: Path, step: int, keep: int) -> None:
    """Write step-`step` and remove all but the newest `keep`. Every process is to call it."""
    fresh = folder / f".step-{step}"
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".step-*"):  # of a run that was killed while it saved
            shutil.rmtree(left)
    accelerator.wait_for_everyone()
    with _tied_matrices_unmentioned():
        accelerator.save_state(str(fresh))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        fresh.rename(folder / f"step-{step}")
        for old in sorted(_steps(folder))[:-keep]:
            # Renamed first: a kill in the middle of the removal must not leave half a checkpoint.
            gone = (folder / f"step-{old}").rename(folder / f".step-{old}")
            shutil.rmtree(gone)
    accelerator.wait_for_everyone()


@contextmanager
def _tied_matrices_unmentioned() -> Iterator[None]:
    """accelerate warns at each checkpoint that tied matrices are written once, as they should be."""
    logger = logging.getLogger("accelerate.utils.other")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def load(accelerator: accelerate.Accelerator, folder: Path, step: int) -> None:
    """Into what the accelerator has prepared."""
    accelerator.load_state(str(folder / f"step-{step}"))


def _steps(folder: Path) -> list[int]:
    names = (path.name for path in folder.glob("step-*")) if folder.is_dir() else ()
    return [int(match[1]) for name in names if (match := _NAME.fullmatch(name))]


def clear(accelerator: accelerate.Accelerator, folder: Path) -> None:
    """The run is done: its checkpoints are of no more use."""
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
