"""One run of each kind of job, and what its outcome means."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any

from rrtf_serve.sandbox import bubblewrap
from rrtf_serve.sandbox.cases import ReferenceFailed, References, candidate_order
from rrtf_serve.sandbox.cell import Cell, Exit
from rrtf_serve.sandbox.jobs import CaseJob, FunctionJob, ProgramJob, StdioJob
from rrtf_serve.sandbox.languages import prepare
from rrtf_serve.sandbox.limits import Level, Limits
from rrtf_serve.sandbox.relay import Outcome, Relay
from rrtf_serve.sandbox.single import Command, Script
from rrtf_serve.sandbox.text import same_text
from rrtf_serve.sandbox.verdict import Kind, Status, TestResult, Verdict

CODE_BYTES = 4 << 20  # a longer candidate is refused unread
SHOWN = 200
MOST_WALLS = 20  # all cases of a programme together may take this many times what one may
NEARLY = 0.7  # of a limit; what is measured in the end falls short of what struck


@dataclass(frozen=True)
class Effort:
    """What a run had of the processor: seconds it ran, and seconds it waited to run (None: not known)."""

    cpu: float = 0.0
    held_up: float | None = None


Judged = tuple[Verdict, Effort]


def judge_function(job: FunctionJob, limits: Limits, level: Level, cells: tuple[Cell, Cell]) -> Judged:
    """The cells are the candidate's and the tests'; so below."""
    if len(job.candidate_code) > CODE_BYTES:
        return _too_long(level), Effort()
    outcome = Relay(*cells, limits).run(
        {"code": job.candidate_code, "entry": job.entry_point},
        {"prelude": job.prelude, "test_code": job.test_code, "entry": job.entry_point},
    )
    return _verdict(outcome, level), _effort(outcome.candidate, outcome.examiner)


def judge_cases(
    job: CaseJob, limits: Limits, level: Level, references: References, cells: tuple[Cell, Cell]
) -> Judged:
    if len(job.candidate_code) > CODE_BYTES:
        return _too_long(level), Effort()

    def run(one: dict[str, Any], other: dict[str, Any], within: Limits) -> Outcome:
        return Relay(*cells, within).run(one, other)

    try:
        payload = references.payload(job, limits, run)
    except ReferenceFailed as error:
        return Verdict(Status.INFRA_ERROR, level, message=str(error)), Effort()
    outcome = run(candidate_order(job.candidate_code, job, limits), payload, limits)
    return _verdict(outcome, level), _effort(outcome.candidate, outcome.examiner)


def judge_stdio(job: StdioJob, limits: Limits, level: Level, cell: Cell) -> Judged:
    if len(job.program) > CODE_BYTES:
        return _too_long(level), Effort()
    tests: list[TestResult] = []
    worst = Outcome(compiled=True, complete=True)
    memory = seconds = 0.0
    effort = Effort()
    printed = ""
    for number, case in enumerate(job.cases):
        run = Script(cell, limits)
        output = run.go(job.program, case)
        outcome = run.outcome
        seconds += outcome.seconds
        if outcome.kind is Kind.TIMEOUT and worst.kind is not Kind.TIMEOUT:
            effort = _effort(run.ended)
        memory = max(memory, run.ended.memory)
        printed = printed or output[:4096]
        problem = outcome.message
        if not problem:
            problem = same_text(output, case.expected, job.tolerance)
        kind = (
            ""
            if not problem
            else outcome.kind.value
            if outcome.kind
            else "exception"
            if outcome.message
            else "assertion"
        )
        tests.append(TestResult(f"case {number}", not problem, kind, problem))
        if outcome.message and not worst.message:
            worst.kind, worst.message = outcome.kind, outcome.message
        if not outcome.compiled:
            worst.compiled = False
            break
        if problem and job.stop_early:
            break
        if seconds > MOST_WALLS * limits.wall_s and number + 1 < len(job.cases):
            outcome.stop(Kind.TIMEOUT, f"the cases together took more than {MOST_WALLS * limits.wall_s:g} s")
            worst.stop(Kind.TIMEOUT, outcome.message)
        if outcome.kind is not None:
            # Every other case would take as long, and no verdict would be another.
            rest = range(number + 1, len(job.cases))
            tests += [
                TestResult(f"case {n}", False, "not reached", "a case before broke a limit") for n in rest
            ]
            break
    status = _status(worst, tests, len(job.cases))
    return Verdict(
        status, level, worst.kind, tuple(tests), _first_problem(worst, tests), seconds, int(memory), printed
    ), effort


def judge_program(job: ProgramJob, limits: Limits, level: Level, cell: Cell) -> Judged:
    if len(job.source) > CODE_BYTES:
        return _too_long(level), Effort()
    prepared = prepare(job.language, job.source, bubblewrap.PRIVATE if level is Level.BUBBLEWRAP else None)
    run = Command(cell, limits)
    output = run.go(prepared.files, prepared.argv)
    outcome, ended = run.outcome, run.ended
    if outcome.message and outcome.kind is None:
        outcome.kind = _told_by_shell(ended, limits)
    if not outcome.message and prepared.proof not in output.splitlines():
        outcome.stop(None, "the programme ended before its end was reached")
    name = "programme"
    shown = (output.replace(prepared.proof, "") + run.errors.text).strip()
    message = outcome.message
    if ended.code == prepared.compile_failed and not outcome.kind:
        status, message = Status.COMPILE_ERROR, run.errors.text.strip()[:SHOWN] or "did not compile"
    else:
        status = Status.RUNTIME_ERROR if message else Status.ALL_PASS
    test = TestResult(
        name, status is Status.ALL_PASS, "" if status is Status.ALL_PASS else "exception", message
    )
    return Verdict(
        status, level, outcome.kind, (test,), message, outcome.seconds, ended.memory, shown[:4096]
    ), _effort(ended)


def _told_by_shell(ended: Exit, limits: Limits) -> Kind | None:
    """The limit that ended a programme inside the run's shell, which says 128 and the signal's number."""
    if ended.code - 128 in (signal.SIGKILL, signal.SIGXCPU) and ended.cpu >= NEARLY * limits.cpu_s:
        return Kind.TIMEOUT
    died = ended.code - 128 in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGTRAP, signal.SIGILL)
    return Kind.MEMORY if died and ended.memory >= NEARLY * limits.memory_bytes else None


def _too_long(level: Level) -> Verdict:
    return Verdict(
        Status.COMPILE_ERROR, level, message=f"the programme is longer than {CODE_BYTES} characters"
    )


def _verdict(outcome: Outcome, level: Level) -> Verdict:
    tests = outcome.tests
    if outcome.complete and not outcome.calls:
        outcome.stop(None, "the tests never ran the candidate")
    if not outcome.message and any(t.message.startswith("MemoryError") for t in tests if not t.passed):
        outcome.stop(Kind.MEMORY, "MemoryError")
    if outcome.kind is not None:
        reason = outcome.kind.value
        tests = [
            TestResult(t.name, t.passed, reason, t.message) if t.kind == "not reached" else t for t in tests
        ]
    memory = outcome.candidate.memory if outcome.candidate else 0
    return Verdict(
        _status(outcome, tests, len(tests)), level, outcome.kind, tuple(tests),
        _first_problem(outcome, tests),
        outcome.seconds, memory, outcome.printed,
    )  # fmt: skip


def _status(outcome: Outcome, tests: list[TestResult], wanted: int) -> Status:
    if not outcome.compiled and not outcome.tests_failed:
        return Status.COMPILE_ERROR
    passed = sum(test.passed for test in tests)
    if outcome.message or not outcome.complete or not passed:
        return Status.RUNTIME_ERROR
    return Status.ALL_PASS if passed == wanted else Status.PARTIAL


def _first_problem(outcome: Outcome, tests: list[TestResult]) -> str:
    if outcome.message:
        return outcome.message
    return next((f"{t.name}: {t.message or t.kind}"[: 2 * SHOWN] for t in tests if not t.passed), "")


def _effort(*exits: Exit | None) -> Effort:
    known = [ended for ended in exits if ended is not None]
    held_up = [ended.held_up for ended in known if ended.held_up is not None]
    return Effort(sum(ended.cpu for ended in known), sum(held_up) if held_up else None)
