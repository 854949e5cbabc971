"""What a server holds: resident memory, open files, threads; and whether it came to hold more. Linux."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.server import resident_mb

SETTLE_S = 2.0  # freed memory goes back to the system just after the answer has
LOOKS = 5  # at the memory of a server that rests; the smallest counts
SPARE_FILES = 4  # a connection of the one who looks, and what the system is still closing
# Pools of threads fill as they are used: asyncio's to 32, the encoders' and the engine's beside it.
SPARE_THREADS = 48


@dataclass(frozen=True)
class Holdings:
    """resident_mb: MB of 10^6 bytes."""

    resident_mb: float
    files: int
    threads: int

    def record(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Bounds:
    """How much more than before is no fault. growth: of resident memory, as a share; spare_mb: beside it."""

    growth: float
    spare_mb: float = 0.0

    def most_mb(self, before: Holdings) -> float:
        return before.resident_mb * (1 + self.growth) + self.spare_mb


def held(pid: int) -> Holdings:
    """Raises OSError where the process has ended."""
    return Holdings(resident_mb(pid)[0], open_files(pid), threads(pid))


def held_at_rest(pid: int) -> Holdings:
    """Takes some seconds: freed memory goes back to the system just after the answer has."""
    time.sleep(SETTLE_S)
    least = resident_mb(pid)[0]
    for _ in range(LOOKS - 1):
        time.sleep(SETTLE_S / LOOKS)
        least = min(least, resident_mb(pid)[0])
    return Holdings(least, open_files(pid), threads(pid))


def grown(before: Holdings, after: Holdings, bounds: Bounds) -> list[str]:
    """What it holds too much of, in words; empty where all is well."""
    most_mb = bounds.most_mb(before)
    found = []
    if after.resident_mb > most_mb:
        found.append(
            f"{after.resident_mb:.0f} MB are resident, {before.resident_mb:.0f} before; {most_mb:.0f} may be"
        )
    if after.files > before.files + SPARE_FILES:
        found.append(f"{after.files} open files, {before.files} before")
    if after.threads > before.threads + SPARE_THREADS:
        found.append(f"{after.threads} threads, {before.threads} before")
    return found


def open_files(pid: int) -> int:
    """Open descriptors of a process, its sockets included."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))
