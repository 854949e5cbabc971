"""What the host orders, and the kernel's own limits on one process."""

from __future__ import annotations

import math
import resource
from dataclasses import dataclass

STACK_BYTES = 64 << 20  # deep recursion is honest; stays below the gap Linux keeps under the stack anyway
OPEN_FILES = 256


@dataclass
class Setup:
    """How a zygote is to run; sent by cell.py."""

    level: str
    folder: str  # the run's private folder; where the level has no mounts, emptied after each run
    uid: int | None  # become this user first; None: stay who we are
    readable: list[str]  # folders children may read (landlock)
    packages: list[str]  # on sys.path after the standard library
    preload: list[str]


@dataclass
class Order:
    """One run: a role and the numbers of limits.Limits."""

    role: str  # "candidate", "examiner", "script" or "command"
    cpu_s: float
    memory_bytes: int
    processes: int
    files: int
    file_bytes: int
    address_bytes: int = 0  # what the zygote itself has mapped; children may have that besides memory_bytes


def limit_resources(order: Order, *, count_processes: bool) -> None:
    """Set this process's hard limits.

    count_processes  this user runs nothing but the run and its zygote, so that counting by user is right
    """
    seconds = max(1, math.ceil(order.cpu_s))
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds),  # SIGKILL at once: the softer signal can be ignored
        resource.RLIMIT_DATA: (order.memory_bytes, order.memory_bytes),
        resource.RLIMIT_FSIZE: (order.file_bytes, order.file_bytes),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
        # Programmes that recurse deeply raise it themselves; the limits on memory hold all the same.
        resource.RLIMIT_STACK: (STACK_BYTES, resource.RLIM_INFINITY),
    }
    if order.role != "command":
        # Other languages' runtimes reserve far more than they use; RLIMIT_DATA and watch.py hold those.
        total = order.memory_bytes + order.address_bytes
        limits[resource.RLIMIT_AS] = (total, total)
    if count_processes:
        limits[resource.RLIMIT_NPROC] = (order.processes + 2, order.processes + 2)
    for which, (soft, hard) in limits.items():
        present = resource.getrlimit(which)[1]
        if present != resource.RLIM_INFINITY:
            soft, hard = min(soft, present), min(hard, present)  # noqa: PLW2901  # never above what we were given
        resource.setrlimit(which, (soft, hard))
