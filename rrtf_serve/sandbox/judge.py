"""The sandbox's one entry point.

with Sandbox() as sandbox:
    verdict = sandbox.judge(FunctionJob(code, "add", "assert add(1, 2) == 3"), Limits(wall_s=3))
    for verdict in sandbox.judge_many(jobs):
        ...
"""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from rrtf_serve.sandbox import cgroup, languages, selftest
from rrtf_serve.sandbox.cases import References
from rrtf_serve.sandbox.cell import Cell, CellError, CellOptions
from rrtf_serve.sandbox.jobs import BadJob, CaseJob, FunctionJob, Job, StdioJob
from rrtf_serve.sandbox.limits import Level, Limits
from rrtf_serve.sandbox.runs import judge_cases, judge_function, judge_program, judge_stdio
from rrtf_serve.sandbox.verdict import Kind, Status, Verdict

# What generated solutions import most; loading it once takes the cost off every run.
PRELOAD = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "enum", "fractions", "functools", "hashlib",
    "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "time",
    "typing",
)  # fmt: skip
ATTEMPTS = 3  # of a run that the sandbox itself failed
STARVED = 0.8  # a run that got less processor time than this share of its wall limit may have been held up
AHEAD = 4  # jobs read per worker before the oldest verdict is taken

log = logging.getLogger(__name__)


class Sandbox:
    """Judges jobs at one level of confinement; thread-safe.

    level          None: RRTF_SANDBOX, or else the strongest of bubblewrap and landlock that passes its
                   self-test
    workers        runs at the same time; None: the number of usable cores
    site_packages  folders the candidate may import from besides the standard library, read-only
    preload        more modules to import once before any candidate, so that importing them costs nothing

    Raises SandboxUnavailable when the level can't be had, ValueError on an unknown level in RRTF_SANDBOX and
    on a folder of packages that is not there.
    """

    def __init__(
        self,
        level: Level | None = None,
        workers: int | None = None,
        *,
        site_packages: tuple[Path, ...] = (),
        preload: tuple[str, ...] = (),
    ) -> None:
        if workers is not None and workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        for folder in site_packages:
            if not folder.is_dir():
                raise ValueError(f"site_packages: {folder} is no folder")
        cgroup.sweep()
        self._level, self._report = selftest.choose(level)
        self._options = CellOptions(
            self._level,
            tuple(path.resolve() for path in site_packages),
            (*PRELOAD, *preload),
            tuple(languages.program_folders()),
        )
        self.workers = workers or len(os.sched_getaffinity(0))
        self._pairs: SimpleQueue[tuple[Cell, Cell]] = SimpleQueue()
        numbers = itertools.count()
        self._cells = [Cell(self._options, next(numbers)) for _ in range(2 * self.workers)]
        for pair in zip(self._cells[::2], self._cells[1::2], strict=True):
            self._pairs.put(pair)
        self._gate = _Gate()
        self._references = References()
        self._closed = False

    @property
    def level(self) -> Level:
        return self._level

    @property
    def conditions(self) -> str:
        """What decides a verdict besides the job and its limits: level, interpreter, packages (by the names
        in their folders, which hold their versions)."""
        names = [[str(p), sorted(e.name for e in p.iterdir())] for p in self._options.packages]
        python = ".".join(map(str, sys.version_info[:3]))
        return f"{self._level.value}\npython {python}\n{names}"

    def selftest(self) -> selftest.Report:
        """What was tried at start-up to break out, and what came of it."""
        return self._report

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End every confined process, after the runs that are under way; idempotent."""
        if not self._closed:
            self._closed = True
            pairs = [self._pairs.get() for _ in range(self.workers)]
            for pair in pairs:
                _close(pair)
                self._pairs.put(pair)  # whoever waits for one is told that the sandbox is closed

    def judge(self, job: Job, limits: Limits | None = None) -> Verdict:
        """Run one job. Never raises for anything the candidate or its tests do.

        A run that breaks its time limit without having had the processor for most of it is repeated once,
        with nothing beside it. One that the sandbox itself failed, in whatever way, is repeated, then
        INFRA_ERROR. Raises ValueError where the sandbox is closed, and its subclass BadJob on a job that
        can't be run at all (an unknown language, cases that are not plain data).
        """
        limits = limits or Limits()
        verdict, cpu = self._attempt(job, limits, self._gate.beside_others)
        if verdict.kind is Kind.TIMEOUT and cpu < STARVED * min(limits.wall_s, limits.cpu_s):
            verdict, _ = self._attempt(job, limits, self._gate.alone)
        return verdict

    def judge_many(
        self, jobs: Iterable[Job | tuple[Job, Limits]], limits: Limits | None = None
    ) -> Iterator[Verdict]:
        """One verdict per job, in the jobs' order; `jobs` is read a few ahead of what has been judged."""
        waiting: deque[Future[Verdict]] = deque()
        with ThreadPoolExecutor(self.workers, "sandbox") as pool:
            try:
                for job in jobs:
                    pair = job if isinstance(job, tuple) else (job, limits)
                    waiting.append(pool.submit(self.judge, *pair))
                    if len(waiting) >= AHEAD * self.workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _attempt(
        self, job: Job, limits: Limits, gate: Callable[[], AbstractContextManager[None]]
    ) -> tuple[Verdict, float]:
        """The verdict, and the seconds of processor time that the run had."""
        error = ""
        for _ in range(ATTEMPTS):
            pair = self._take_pair()
            try:
                with gate():
                    for cell in pair:
                        cell.start()
                    return self._run(job, limits, pair)
            except BadJob:
                raise
            except (CellError, OSError) as problem:
                error = str(problem)
                _close(pair)
            except Exception as problem:
                # A fault of ours: it must cost no other job its verdict, and it must be seen.
                log.exception("the sandbox failed on a job")
                error = f"{type(problem).__name__}: {problem}"
                _close(pair)
            except BaseException:  # interrupted: whatever still runs there is nobody's any more
                _close(pair)
                raise
            finally:
                self._pairs.put(pair)
        return Verdict(Status.INFRA_ERROR, self._level, message=error), 0.0

    def _take_pair(self) -> tuple[Cell, Cell]:
        pair = self._pairs.get()
        if self._closed:
            self._pairs.put(pair)
            raise ValueError("the sandbox is closed")
        return pair

    def _run(self, job: Job, limits: Limits, pair: tuple[Cell, Cell]) -> tuple[Verdict, float]:
        if isinstance(job, FunctionJob):
            return judge_function(job, limits, self._level, *pair)
        if isinstance(job, CaseJob):
            return judge_cases(job, limits, self._level, self._references, pair)
        if isinstance(job, StdioJob):
            return judge_stdio(job, limits, self._level, pair[0])
        return judge_program(job, limits, self._level, pair[0])


def _close(pair: tuple[Cell, Cell]) -> None:
    for cell in pair:
        cell.close()


class _Gate:
    """Lets many runs go side by side, or one with none beside it; who wants to be alone goes first."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._wish = 0

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._wish)
            self._running += 1
        try:
            yield
        finally:
            self._leave()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._wish += 1
            self._changed.wait_for(lambda: not self._running)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._wish -= 1
            self._leave()

    def _leave(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()
