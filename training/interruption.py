"""Ctrl-C and SIGTERM in the middle of a training step: asked for now, obeyed when the step is done.

In a validation, which is kept as it goes and begun again where it stopped, they are obeyed at once.
"""

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
    now: bool = False  # whether to leave as soon as asked

    def ask(self, number: int, _: FrameType | None) -> None:
        hurry = self.now or self.asked is not None  # a second one doesn't wait for the step
        self.asked = number
        if hurry:
            self.leave()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """What runs meanwhile is left where it is."""
        self.now = True
        try:
            if self.asked is not None:
                self.leave()
            yield
        finally:
            self.now = False

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
