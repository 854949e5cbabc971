"""Ctrl-C and SIGTERM in the middle of a training step: asked for now, obeyed when the step is done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any


@dataclass
class Stop:
    """Which signal asks to stop, and what would have handled it."""

    asked: int | None = None
    before: dict[int, Any] = field(default_factory=dict)

    def ask(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None:  # a second one doesn't wait for the step
            self.leave()
        self.asked = number

    def leave(self) -> None:
        """Hand the signal on to who would have had it."""
        assert self.asked is not None
        signal.signal(self.asked, self.before[self.asked])
        signal.raise_signal(self.asked)


@contextmanager
def stop_flag() -> Iterator[Stop]:
    """Ctrl-C and SIGTERM let the step end and the checkpoint be written."""
    stop = Stop()
    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        stop.before[number] = signal.signal(number, stop.ask)
    try:
        yield stop
    finally:
        for number, handler in stop.before.items():
            signal.signal(number, handler)
