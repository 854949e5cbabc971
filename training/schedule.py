"""What each step sees and how far it goes: functions of the step alone, so a resumed run needs no state."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Schedule:
    """`tuples` problems, `batch` at a step, `epochs` times; an epoch's last batch holds what is left."""

    tuples: int
    batch: int
    epochs: int
    seed: int
    lr: float
    warmup: float  # share of all steps

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.tuples / self.batch)

    @property
    def steps(self) -> int:
        return self.steps_per_epoch * self.epochs

    def rows(self, step: int) -> list[int]:
        """Which tuples step 0.. takes: the next ones of its epoch's own shuffle."""
        epoch, at = divmod(step, self.steps_per_epoch)
        order = list(range(self.tuples))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        return order[at * self.batch : (at + 1) * self.batch]

    def learning_rate(self, step: int) -> float:
        """Of step 0..: up in a straight line over the warm-up, then down along a cosine, to just above 0."""
        rising = math.ceil(self.warmup * self.steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        done = (step - rising) / max(1, self.steps - rising)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def share(items: Sequence[T], rank: int, world: int) -> list[T]:
    """What one of `world` processes takes of a batch."""
    return list(items[rank::world])
