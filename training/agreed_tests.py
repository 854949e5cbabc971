"""Problems without tests get them: a teacher proposes calls, independent programmes agree on what they give.

    sources = [Source("qwen-1.5b", open_teacher, solutions=6), Source("qwen-0.5b", open_student, solutions=6)]
    report = write_tests(tasks, sources, TestOptions(), sandboxes, folder)

The procedure and what it was measured to be worth are in docs/training-tests.md. The first source proposes
signatures and calls; every source writes solutions. All steps are kept in the folder, so the same call goes
on after a stop; problems.jsonl appears complete or not at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rrtf_serve.problems.evaluate import Run, draw
from rrtf_serve.problems.extraction import defines
from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.mutation import mutants
from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import FunctionTests, Problem, Suite, make_suite
from rrtf_serve.problems.samplers import Decoding, Sampler
from rrtf_serve.problems.samples import read_samples
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.verdict import Status
from training.agreement import CLOSE, Agreed, Disagreement, Rule, agree, assertion, distinct
from training.outcomes import LIMITS, Outcome, Trial, outcomes
from training.problem_files import keep_aside, write_lines
from training.proposals import (
    Proposal,
    Task,
    calls_in,
    calls_prompt,
    examples_in,
    header_of,
    name_of,
    responses,
    signature_prompt,
)
from training.sample import write_json

MOST_MUTANTS = 8
SANDBOX_FAILED = "the sandbox failed"


@dataclass(frozen=True)
class Source:
    """One writer of solutions. `open` is entered once, for all that it is asked."""

    name: str  # of its sample file, samples/NAME.jsonl
    open: Callable[[], AbstractContextManager[Sampler]]


@dataclass(frozen=True)
class TestOptions:
    """How tests are made. Raises ValueError naming the flag."""

    __test__ = False  # not a class for pytest to collect

    solutions: int = 8  # of each source for each task
    temperature: float = 0.8
    top_p: float = 0.95
    max_tokens: int = 512
    call_answers: int = 3  # answers of the first source that propose calls
    calls_asked: int = 8  # calls wanted in each of them
    most_calls: int = 20  # tried for one task
    seed: int = 0
    rule: Rule = field(default_factory=Rule)

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(
                f"--temperature must be above 0, not {self.temperature}: greedy solutions would all be the "
                "same one"
            )
        Decoding(self.temperature, self.top_p, self.max_tokens, self.seed)
        for name in ("solutions", "call_answers", "calls_asked", "most_calls"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be at least 1, not {getattr(self, name)}")

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.temperature, self.top_p, self.max_tokens, self.seed)


@dataclass(frozen=True)
class _Dropped:
    task_id: str
    reason: str
    detail: str


def write_tests(
    tasks: Sequence[Task],
    sources: Sequence[Source],
    options: TestOptions,
    sandboxes: Sequence[Sandbox],
    folder: Path,
) -> dict[str, Any]:
    """Make tests for tasks; the report, as plain data, which also lies in folder/report.json.

    `sandboxes`: two, so that what hangs on chance shows. folder/problems.jsonl has the problems that got
    tests (see user_file.py, MBPP's shape), folder/dropped.jsonl the others with their reasons.
    Raises ValueError on sources that share a name and on a folder that holds samples made otherwise,
    SamplerError, BusyError.
    """
    names = [source.name for source in sources]
    if not sources or len(set(names)) < len(names):
        raise ValueError(f"--model: needs at least one, each with a name of its own, not {names}")
    if len(sandboxes) < 2:
        raise ValueError("two sandboxes are needed: one alone can't show what differs from run to run")
    proposals: dict[str, Proposal] = {}
    dropped: list[_Dropped] = []
    suite: Suite | None = None
    for source in sources:
        with source.open() as sampler:
            if suite is None:
                proposals, dropped = _propose(tasks, sampler, options, folder)
                suite = make_suite(
                    "tasks", [_problem(each, proposals) for each in tasks if each.task_id in proposals]
                )
            if suite.problems:
                run = Run(suite, "chat", options.decoding, options.solutions)
                draw(sampler, run, _samples(folder, source.name))
    assert suite is not None
    programmes = _programmes(suite, names, folder)
    results = _results(proposals, programmes, options.rule, sandboxes, folder)
    records, undecided = _agree(tasks, proposals, programmes, results, options.rule)
    dropped += undecided
    kept, unfit = _confirm(records, sandboxes)
    dropped += unfit
    keep_aside(folder, ("problems.jsonl", "dropped.jsonl"), {"sources": names, "options": asdict(options)})
    write_lines(folder / "dropped.jsonl", [asdict(each) for each in dropped])
    write_lines(folder / "problems.jsonl", kept)
    report = {
        "tasks": len(tasks),
        "problems": len(kept),
        "tests": sum(len(record["test_list"]) for record in kept),
        "dropped": dict(Counter(each.reason for each in dropped).most_common()),
        "sources": names,
        "options": asdict(options),
        "sandbox": sandboxes[0].level.value,
        "output": str(folder / "problems.jsonl"),
    }
    write_json(folder / "report.json", report)
    return report


def _propose(
    tasks: Sequence[Task], sampler: Sampler, options: TestOptions, folder: Path
) -> tuple[dict[str, Proposal], list[_Dropped]]:
    """A signature for tasks that have none, calls for all."""
    path = folder / "proposals.jsonl"
    headers = {task.task_id: task.signature for task in tasks if task.signature}
    asked = [task for task in tasks if not task.signature]
    greedy = Decoding(0.0, 1.0, options.max_tokens)
    answers = responses(
        sampler, [signature_prompt(task) for task in asked], greedy, 1, path, what="signatures"
    )
    headers |= {task.task_id: header_of(answer[0]) for task, answer in zip(asked, answers, strict=True)}
    named = [task for task in tasks if headers[task.task_id]]
    prompts = [calls_prompt(task, headers[task.task_id], options.calls_asked) for task in named]
    answers = responses(sampler, prompts, options.decoding, options.call_answers, path, what="calls")
    found: dict[str, Proposal] = {}
    dropped = [_Dropped(task.task_id, "no signature", "") for task in tasks if not headers[task.task_id]]
    for task, texts in zip(named, answers, strict=True):
        header = headers[task.task_id]
        # A task's own examples are calls, too.
        examples = examples_in(task.text, header)
        proposed = calls_in("\n".join([task.text, *texts]), header)
        calls = tuple(dict.fromkeys([*examples, *proposed]))[: options.most_calls]
        if len(calls) < options.rule.least_tests:
            dropped.append(_Dropped(task.task_id, "too few calls", f"{len(calls)} usable ones in {header}"))
        else:
            found[task.task_id] = Proposal(header, name_of(header), calls, examples)
    return found, dropped


def _problem(task: Task, proposals: Mapping[str, Proposal]) -> Problem:
    proposal = proposals[task.task_id]
    return Problem(
        task.task_id, "", proposal.entry_point, task=task.text, signature=f"{proposal.signature}\n"
    )


def _samples(folder: Path, name: str) -> Path:
    return folder / "samples" / f"{name}.jsonl"


def _programmes(suite: Suite, names: Sequence[str], folder: Path) -> dict[str, list[tuple[str, str]]]:
    """(source, programme) of every solution that has the function, by task."""
    found: dict[str, list[tuple[str, str]]] = {task_id: [] for task_id in suite.problems}
    for name in names if suite.problems else ():
        for sample in read_samples(_samples(folder, name), suite):
            if defines(sample.program, sample.problem):
                found[sample.problem.task_id].append((name, sample.program.strip() + "\n"))
    return found


def _results(
    proposals: Mapping[str, Proposal],
    programmes: Mapping[str, list[tuple[str, str]]],
    rule: Rule,
    sandboxes: Sequence[Sandbox],
    folder: Path,
) -> dict[str, dict[int, Sequence[Outcome]]]:
    """What the distinct programmes of each task return, by their positions; empty where there are too few
    of them: copies of one programme can't confirm each other."""
    results: dict[str, dict[int, Sequence[Outcome]]] = {}
    wanted: list[tuple[str, int]] = []
    trials: list[Trial] = []
    for task_id, several in programmes.items():
        results[task_id] = {}
        places = distinct([text for _, text in several], proposals[task_id].entry_point)
        for at in places if len(places) >= rule.least_programmes else ():
            proposal = proposals[task_id]
            wanted.append((task_id, at))
            trials.append(Trial(several[at][1], proposal.entry_point, proposal.calls))
    found = outcomes(trials, sandboxes, folder / "outcomes.jsonl")
    for (task_id, at), those in zip(wanted, found, strict=True):
        results[task_id][at] = those
    return results


def _agree(
    tasks: Sequence[Task],
    proposals: Mapping[str, Proposal],
    programmes: Mapping[str, list[tuple[str, str]]],
    results: Mapping[str, Mapping[int, Sequence[Outcome]]],
    rule: Rule,
) -> tuple[list[Record], list[_Dropped]]:
    """Problem records of the tasks whose programmes agree."""
    records: list[Record] = []
    dropped: list[_Dropped] = []
    for task in (each for each in tasks if each.task_id in proposals):
        proposal, several = proposals[task.task_id], programmes[task.task_id]
        try:
            if not results[task.task_id]:
                raise Disagreement(
                    "copies of one another",
                    f"fewer than {rule.least_programmes} distinct programmes among {len(several)}",
                )
            agreed = agree(proposal.calls, results[task.task_id], rule, proposal.examples)
        except Disagreement as error:
            failures = [
                each.error for found in results[task.task_id].values() for each in found if each.infra
            ]
            if failures:  # it is run again next time
                dropped.append(_Dropped(task.task_id, SANDBOX_FAILED, failures[0]))
                continue
            dropped.append(_Dropped(task.task_id, error.reason, str(error).partition(": ")[2]))
            continue
        records.append(_record(task, proposal, agreed, several, rule))
    return records, dropped


def _record(
    task: Task, proposal: Proposal, agreed: Agreed, programmes: list[tuple[str, str]], rule: Rule
) -> Record:
    tests = [assertion(call, literal) for call, literal in agreed.expected.items()]
    return {
        "task_id": task.task_id,
        "text": task.text,
        "signature": proposal.signature,
        "entry_point": proposal.entry_point,
        "test_list": tests,
        "test_imports": [CLOSE] if any("assert close(" in each for each in tests) else [],
        # The shortest of those that agree stands for the reference.
        "code": min((programmes[at][1] for at in agreed.agreeing), key=len),
        "licence": task.licence,
        "lineage": task.lineage,
        "tests_by": {
            "kind": "agreement",
            "sources": dict(Counter(programmes[at][0] for at in agreed.agreeing)),
            "agreeing": len(agreed.agreeing),
            "programmes": agreed.programmes,
            "calls": len(proposal.calls),
            "rule": asdict(rule),
        },
    }


def problem_of(record: Record) -> Problem:
    """The record as the judge sees it."""
    tests = FunctionTests("\n".join(record["test_list"]), "\n".join(record["test_imports"]))
    return Problem(
        record["task_id"], "", record["entry_point"], tests, task=record["text"], reference=record["code"]
    )


def _confirm(records: Sequence[Record], sandboxes: Sequence[Sandbox]) -> tuple[list[Record], list[_Dropped]]:
    """Those whose reference passes the written tests in the judge, in every sandbox, and that some wrong
    programme made out of it fails."""
    builder = JobBuilder()
    kept: list[Record] = []
    dropped: list[_Dropped] = []
    jobs = [builder.build(problem_of(record), record["code"]) for record in records]
    verdicts = zip(*(list(sandbox.judge_many(jobs, LIMITS)) for sandbox in sandboxes), strict=True)
    for record, several in zip(records, verdicts, strict=True):
        failed = next((each for each in several if not each.passed), None)
        if failed is not None:
            why = SANDBOX_FAILED if failed.status is Status.INFRA_ERROR else "fails in the judge"
            dropped.append(_Dropped(record["task_id"], why, failed.message))
            continue
        wrong = list(mutants(record["code"], record["entry_point"]))[:-1][:MOST_MUTANTS]
        made = [builder.build(problem_of(record), each) for each in wrong]
        found = list(sandboxes[0].judge_many(made, LIMITS))
        failed = next((each for each in found if each.status is Status.INFRA_ERROR), None)
        if failed is not None:  # nobody knows whether the tests would have caught it
            dropped.append(_Dropped(record["task_id"], SANDBOX_FAILED, failed.message))
            continue
        caught = sum(not each.passed for each in found)
        if wrong and not caught:
            dropped.append(_Dropped(record["task_id"], "tests too weak", f"all {len(wrong)} mutants pass"))
            continue
        kept.append({**record, "tests_by": {**record["tests_by"], "mutants": len(wrong), "caught": caught}})
    return kept, dropped


def dropped_of(folder: Path) -> dict[str, str]:
    """task_id -> reason, of a finished run."""
    return {record["task_id"]: record["reason"] for _, record in json_lines(folder / "dropped.jsonl")}
