"""The sandbox's one entry point.

with Sandbox() as sandbox:
    verdict = sandbox.judge(FunctionJob(code, "add", "assert add(1, 2) == 3"), Limits(wall_s=3))
    for verdict in sandbox.judge_many(jobs):
        ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from rrtf_serve.sandbox.jobs import Job
from rrtf_serve.sandbox.limits import Level, Limits
from rrtf_serve.sandbox.verdict import Verdict


class Sandbox:
    """Judges jobs at one level of confinement; thread-safe.

    level          None: RRTF_SANDBOX, or else the strongest of bubblewrap and landlock that passes its self-test
    workers        runs at the same time; None: the number of usable cores
    site_packages  folders the candidate may import from besides the standard library, read-only
    preload        modules imported once before any candidate, so that importing them costs nothing

    Raises SandboxUnavailable when the level can't be had, ValueError on an unknown level in RRTF_SANDBOX.
    """

    def __init__(
        self,
        level: Level | None = None,
        workers: int | None = None,
        *,
        site_packages: tuple[Path, ...] = (),
        preload: tuple[str, ...] | None = None,
    ) -> None:
        raise NotImplementedError

    @property
    def level(self) -> Level:
        raise NotImplementedError

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every confined process; idempotent."""

    def judge(self, job: Job, limits: Limits | None = None) -> Verdict:
        """Run one job. Never raises for anything the candidate or its tests do.

        A run that breaks its time limit while others run is repeated once with nothing beside it; one that the
        sandbox itself failed is repeated, then INFRA_ERROR.
        """
        raise NotImplementedError

    def judge_many(
        self, jobs: Iterable[Job | tuple[Job, Limits]], limits: Limits | None = None
    ) -> Iterator[Verdict]:
        """One verdict per job, in the jobs' order; `jobs` is read a few ahead of what has been judged."""
        raise NotImplementedError
