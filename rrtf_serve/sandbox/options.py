"""What every command that judges can be told of the sandbox."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level


@dataclass(frozen=True)
class SandboxOptions:
    """How the sandbox is opened."""

    level: str | None = None  # None: RRTF_SANDBOX, else the strongest that works here
    workers: int | None = None  # None: one per core
    site_packages: tuple[Path, ...] = ()  # what candidates may import besides the standard library

    def open(self) -> Sandbox:
        """Raises SandboxUnavailable; ValueError on an unknown level, naming the flag."""
        if self.level is not None and self.level not in set(Level):
            raise ValueError(f"--sandbox {self.level}: must be one of {', '.join(Level)}")
        for folder in self.site_packages:
            if not folder.is_dir():
                raise ValueError(f"--site-packages {folder}: no such folder")
        level = Level(self.level) if self.level else None
        return Sandbox(level, self.workers, site_packages=self.site_packages)
