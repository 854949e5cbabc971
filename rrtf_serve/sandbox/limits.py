"""How much a run may use, and how strongly it is confined."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum


class Level(StrEnum):
    """Strongest first; see docs/sandbox.md for what each one stops and does not stop."""

    BUBBLEWRAP = "bubblewrap"  # namespaces, private file system, seccomp, rlimits
    LANDLOCK = "landlock"  # landlock, seccomp, rlimits: no installed program needed
    RLIMITS = "rlimits"  # rlimits alone; only ever on explicit request


class SandboxUnavailable(RuntimeError):  # noqa: N818  # says what is the matter, not that something is
    """No level that was asked for works here; the message says how to get one."""


@dataclass(frozen=True)
class Limits:
    """Limits of one run, enforced from outside the candidate's process. All are hard.

    A run is the candidate with all its tests. Raises ValueError naming the field that is not positive.
    """

    wall_s: float = 10.0  # seconds from the start of the candidate to its last test
    cpu_s: float = 10.0  # seconds of processor time of each confined process
    memory_bytes: int = 1 << 30  # of the process tree
    processes: int = 64  # processes and threads; Python candidates may start threads only
    files: int = 1024  # files and folders in the private folder; open files are bounded by 256
    file_bytes: int = 64 << 20  # all of the private folder together
    output_bytes: int = 1 << 20  # printed, standard output and error together
    value_bytes: int = 32 << 20  # one value on its way to or from the candidate; CaseSet: longer outputs

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"Limits.{field.name} must be above 0, not {value!r}")
