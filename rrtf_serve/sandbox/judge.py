"""The sandbox's one entry point.

with Sandbox() as sandbox:
    verdict = sandbox.judge(FunctionJob(code, "add", "assert add(1, 2) == 3"), Limits(wall_s=3))
    for verdict in sandbox.judge_many(jobs):
        ...
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType

from rrtf_serve.sandbox import cgroup, languages, private, selftest
from rrtf_serve.sandbox.cases import References
from rrtf_serve.sandbox.cell import FIRST_UID, UIDS, Cell, CellError, CellOptions
from rrtf_serve.sandbox.jobs import BadJob, CaseJob, FunctionJob, Job, StdioJob
from rrtf_serve.sandbox.limits import Level, Limits
from rrtf_serve.sandbox.runs import Effort, Judged, judge_cases, judge_function, judge_program, judge_stdio
from rrtf_serve.sandbox.verdict import Kind, Status, Verdict

# What generated solutions import most; loading it once takes the cost off every run.
PRELOAD = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "enum", "fractions", "functools", "hashlib",
    "heapq", "itertools", "json", "math", "operator", "random", "re", "statistics", "string", "time",
    "typing",
)  # fmt: skip
ATTEMPTS = 3  # of a run that the sandbox itself failed
# A run that broke its time limit with less than this share of it on the processor may have been held up ...
STARVED = 0.8
HELD_UP = 0.1  # ... if it stood waiting for one for at least this share; a programme that sleeps does not
AHEAD = 4  # jobs read per worker before a verdict is taken

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
        private.sweep(range(FIRST_UID, FIRST_UID + UIDS) if os.getuid() == 0 else range(0))
        self._level, self._report = selftest.choose(level)
        self._packages = tuple(path.resolve() for path in site_packages)
        python = CellOptions(self._level, self._packages, (*PRELOAD, *preload))
        # Only programmes of other languages see where their interpreters lie.
        other = CellOptions(self._level, (), (), tuple(languages.program_files()))
        self.workers = workers or len(os.sched_getaffinity(0))
        self._idle: SimpleQueue[_Worker] = SimpleQueue()
        for number in range(0, 3 * self.workers, 3):
            cells = (Cell(python, number), Cell(python, number + 1), Cell(other, number + 2))
            self._idle.put(_Worker(*cells))
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
        names = [[str(p), sorted(e.name for e in p.iterdir())] for p in self._packages]
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
            everybody = [self._idle.get() for _ in range(self.workers)]
            for worker in everybody:
                worker.close()
                self._idle.put(worker)  # whoever waits for one is told that the sandbox is closed

    def judge(self, job: Job, limits: Limits | None = None) -> Verdict:
        """Run one job. Never raises for anything the candidate or its tests do.

        A run that breaks its time limit after standing in line for the processor is repeated once, with
        nothing beside it. One that the sandbox itself failed, in whatever way, is repeated, then
        INFRA_ERROR. Raises ValueError where the sandbox is closed, and its subclass BadJob on a job that
        can't be run at all (an unknown language, cases that are not plain data).
        """
        return self._judge(job, limits or Limits(), _Call())

    def judge_many(
        self, jobs: Iterable[Job | tuple[Job, Limits]], limits: Limits | None = None
    ) -> Iterator[Verdict]:
        """One verdict per job, in the jobs' order; `jobs` is read a few ahead of the verdict awaited.

        Ends the runs under way when it is itself ended early: closed, or interrupted.
        """
        waiting: deque[Future[Verdict]] = deque()
        with ThreadPoolExecutor(self.workers, "sandbox") as pool, _Call() as call:
            for job in jobs:
                waiting.append(self._submit(pool, job, limits, call))
                if len(waiting) >= AHEAD * self.workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def judge_as_completed(
        self, jobs: Iterable[Job | tuple[Job, Limits]], limits: Limits | None = None
    ) -> Iterator[tuple[int, Verdict]]:
        """Each job's position and verdict as soon as it is judged: a slow job holds up no other's verdict.

        `jobs` is read a few ahead of what has been judged. Ended early, it ends the runs under way.
        """
        running: dict[Future[Verdict], int] = {}
        with ThreadPoolExecutor(self.workers, "sandbox") as pool, _Call() as call:
            for position, job in enumerate(jobs):
                running[self._submit(pool, job, limits, call)] = position
                if len(running) >= AHEAD * self.workers:
                    yield from _ended(running)
            while running:
                yield from _ended(running)

    def _submit(
        self, pool: ThreadPoolExecutor, job: Job | tuple[Job, Limits], limits: Limits | None, call: _Call
    ) -> Future[Verdict]:
        one, its_limits = job if isinstance(job, tuple) else (job, limits or Limits())
        return pool.submit(self._judge, one, its_limits, call)

    def _judge(self, job: Job, limits: Limits, call: _Call) -> Verdict:
        verdict, effort = self._attempt(job, limits, self._gate.beside_others, call)
        if verdict.kind is Kind.TIMEOUT and _was_held_up(effort, limits):
            verdict, _ = self._attempt(job, limits, self._gate.alone, call)
        return verdict

    def _attempt(
        self, job: Job, limits: Limits, gate: Callable[[], AbstractContextManager[None]], call: _Call
    ) -> Judged:
        error = ""
        for _ in range(ATTEMPTS):
            worker = self._take_worker()
            try:
                with gate(), call.using(worker):
                    return self._run(job, limits, worker)
            except BadJob:
                raise
            except _Stopped:
                worker.close()
                raise
            except (CellError, OSError) as problem:
                error = str(problem)
                worker.close()
            except Exception as problem:
                # A fault of ours: it must cost no other job its verdict, and it must be seen.
                log.exception("the sandbox failed on a job")
                error = f"{type(problem).__name__}: {problem}"
                worker.close()
            except BaseException:  # interrupted: whatever still runs there is nobody's any more
                worker.close()
                raise
            finally:
                self._idle.put(worker)
        return Verdict(Status.INFRA_ERROR, self._level, message=error), Effort()

    def _take_worker(self) -> _Worker:
        worker = self._idle.get()
        if self._closed:
            self._idle.put(worker)
            raise ValueError("the sandbox is closed")
        return worker

    def _run(self, job: Job, limits: Limits, worker: _Worker) -> Judged:
        if isinstance(job, FunctionJob):
            cells = worker.candidate.started(), worker.examiner.started()
            return judge_function(job, limits, self._level, cells)
        if isinstance(job, CaseJob):
            cells = worker.candidate.started(), worker.examiner.started()
            return judge_cases(job, limits, self._level, self._references, cells)
        if isinstance(job, StdioJob):
            return judge_stdio(job, limits, self._level, worker.candidate.started())
        return judge_program(job, limits, self._level, worker.command.started())


def _ended(running: dict[Future[Verdict], int]) -> Iterator[tuple[int, Verdict]]:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        yield running.pop(future), future.result()


def _was_held_up(effort: Effort, limits: Limits) -> bool:
    if effort.cpu >= STARVED * min(limits.wall_s, limits.cpu_s):
        return False
    return effort.held_up is None or effort.held_up >= HELD_UP * limits.wall_s


@dataclass(frozen=True)
class _Worker:
    """The cells of one run at a time; each starts when it is first needed."""

    candidate: Cell
    examiner: Cell
    command: Cell  # of other languages

    def close(self) -> None:
        for cell in (self.candidate, self.examiner, self.command):
            cell.close()

    def hang_up(self) -> None:
        """End what runs; the one method that another thread may call."""
        for cell in (self.candidate, self.examiner, self.command):
            cell.hang_up()


class _Stopped(Exception):  # noqa: N818  # reads as what happened
    """The caller has no use for the verdict any more."""


class _Call:
    """The runs of one call of the sandbox; they end with it: nobody asks about their verdicts any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy: list[_Worker] = []
        self._stopped = False

    def __enter__(self) -> _Call:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._stopped = True
            for worker in self._busy:
                worker.hang_up()

    @contextmanager
    def using(self, worker: _Worker) -> Iterator[None]:
        """Raises _Stopped before or in the place of whatever a run raises once the call has ended."""
        with self._lock:
            if self._stopped:
                raise _Stopped
            self._busy.append(worker)
        try:
            yield
        except Exception:
            if self._stopped:
                raise _Stopped from None
            raise
        finally:
            with self._lock:
                self._busy.remove(worker)


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
