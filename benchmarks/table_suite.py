"""Greedy scores for the rows of `rrtf-bench table`: a row's own worker answers, the sandbox judges.

The parent makes the prompts and reads the answers as `rrtf-bench passk` does, so all rows get equal token
ids, llama.cpp's too. A folder holds samples.jsonl and results.jsonl in the form of `passk`; a stopped run
goes on with the batch that it was at.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.passk import compare_runs
from benchmarks.table_children import Child, ChildFailedError
from benchmarks.table_ways import PROMPT_SPREAD
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, Request, TokenLogprob
from rrtf_serve.loading import describe_source
from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.problems import gold
from rrtf_serve.problems.estimator import wilson_interval
from rrtf_serve.problems.evaluate import Run, draw
from rrtf_serve.problems.jobs import check_languages
from rrtf_serve.problems.judging import judge_file, read_results
from rrtf_serve.problems.samplers import Decoding, EngineSampler
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.options import SandboxOptions

FORMAT = "chat"


@dataclass(frozen=True)
class SuiteConfig:
    """`batch`: rows that a worker decodes together."""

    name: str
    limit: int | None
    max_tokens: int
    batch: int
    data_dir: Path | None

    def key(self) -> dict[str, Any]:
        """What a row's score depends on, besides the row."""
        return {"suite": self.name, "limit": self.limit, "max_tokens": self.max_tokens, "batch": self.batch}


class WorkerBatch:
    """Rows that the worker decodes to their ends at once; their tokens come in one step."""

    def __init__(self, child: Child, requests: list[Request], limits: list[int]) -> None:
        self._child = child
        self._requests = requests
        self._limits = limits

    def step(self) -> list[Delta]:
        requests, self._requests = self._requests, []
        if not requests:
            return []
        try:
            rows = self._child.generate(
                [list(request.prompt) for request in requests],
                max(self._limits),
                [sorted(request.end_ids) for request in requests],
            )
        except ChildFailedError as error:
            raise EngineError(str(error)) from error
        deltas = []
        for number, (row, limit) in enumerate(zip(rows, self._limits, strict=True)):
            tokens = row["tokens"][:limit]
            deltas += [Delta(number, token) for token in tokens]
            deltas.append(Delta(number, None, "length" if len(tokens) == limit else "stop"))
        return deltas

    def cancel(self, row: int) -> None:
        """Nothing runs between two steps, and there is only one."""

    def close(self) -> None:
        self._requests = []


class WorkerEngine:
    """A worker as an Engine, greedy only."""

    def __init__(self, child: Child, *, batch: int, context: int) -> None:
        self._child = child
        self.capabilities = Capabilities(
            max_context=context,
            max_batch=batch,
            max_logprobs=0,
            max_scored_tokens=0,
            prompt_spread=PROMPT_SPREAD,
        )

    def start(self, requests: list[Request]) -> WorkerBatch:
        """Raises ValueError on sampling that is not greedy, or a prompt that leaves no room to answer."""
        if any(request.sampling.temperature != 0 for request in requests):
            raise ValueError("a table's worker decodes greedily")
        room = self.capabilities.max_context
        longest = max(len(request.prompt) for request in requests)
        if longest >= room:
            raise ValueError(f"a prompt has {longest} tokens; this model holds {room}, answer included")
        limits = [min(request.max_tokens, room - len(request.prompt)) for request in requests]
        return WorkerBatch(self._child, requests, limits)

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        raise ValueError(f"a table's worker scores no tokens ({len(prompt)} asked, top {top})")

    def close(self) -> None:
        self._child.close()


def _cut(row: dict[str, list[Any]], limit: int) -> dict[str, list[Any]]:
    return {name: values[:limit] for name, values in row.items()}


@dataclass(frozen=True)
class Candidate:
    """A row whose answers are wanted. `digest` says which weights run in which way, `text` is the folder with
    the tokenizer, the chat template and the names of the end tokens, `described` what the worker loaded."""

    name: str
    digest: str
    settings: dict[str, Any]
    python: str
    text: Source
    described: dict[str, Any]


def sample_and_judge(
    candidate: Candidate, config: SuiteConfig, folder: Path, options: SandboxOptions
) -> dict[str, Any]:
    """Answer and judge what is missing in `folder`; the score.

    Raises ValueError, ModelError, SandboxUnavailable, SamplerError, BusyError; ChildFailedError where the
    worker does not start.
    """
    suite = load_suite(config.name, config.data_dir)
    run = Run(suite, FORMAT, Decoding(max_tokens=config.max_tokens), 1, config.limit)
    place = folder / "samples.jsonl"
    with ExitStack() as held:
        # First of all: hours of sampling must not end in "no sandbox here".
        sandbox = held.enter_context(options.open())
        check_languages(run.problems)
        serving = ServeConfig(model=str(candidate.text.path))
        card = describe_source(serving, candidate.text)
        tokenizer = Tokenizer.load(candidate.text.path)
        prompts = prompts_of(card, tokenizer)
        child = Child(candidate.settings, candidate.python)
        held.callback(child.close)
        sampler = EngineSampler(
            WorkerEngine(child, batch=config.batch, context=card.context_length),
            tokenizer,
            prompts,
            model=candidate.name,
            digest=candidate.digest,
            batch=config.batch,
            described={"engine": candidate.settings["engine"], **candidate.described},
        )
        folder.mkdir(parents=True, exist_ok=True)
        keys = draw(sampler, run, place)
        tasks = [problem.task_id for problem in run.problems]
        golds = gold.measure(suite, sandbox, tasks)
        judge_file(place, suite, folder / "results.jsonl", sandbox, golds, only=keys)
        level = sandbox.level.value
    facts = {
        "suite_digest": suite.digest, "sandbox": level, "decoding": asdict(run.decoding),
        "prompt_format": FORMAT, "sampler": sampler.settings(),
    }  # fmt: skip
    return score_of(folder) | facts


def score_of(folder: Path) -> dict[str, Any]:
    """Counts of a judged greedy run, with the 95 % Wilson interval. Raises ValueError where it is none."""
    path = folder / "results.jsonl"
    if not path.is_file():
        raise ValueError(f"{folder}: holds no results.jsonl; name a folder that rrtf-bench passk wrote")
    counts = read_results(path).counts
    if not counts or any(samples != 1 for samples, _ in counts.values()):
        raise ValueError(f"{folder}: a greedy run has one sample of each problem; this one has others")
    passed = sum(count for _, count in counts.values())
    low, high = wilson_interval(passed, len(counts))
    report = folder / "report.json"
    told = json.loads(report.read_text("utf-8")) if report.is_file() else {}
    said = {name: told[name] for name in ("suite", "command", "model_digest") if name in told}
    return {
        "folder": folder.name,
        "problems": len(counts),
        "passed": passed,
        "value": passed / len(counts),
        "interval": {"low": low, "high": high, "method": "Wilson"},
        **said,
    }


def compared(folders: dict[str, Path], baseline: str) -> dict[str, dict[str, Any]]:
    """The paired test of each row's run against the baseline's, by row; empty without the baseline's run."""
    if baseline not in folders:
        return {}
    return {
        name: {**compare_runs(folders[baseline], folder), "a": baseline, "b": name}
        for name, folder in folders.items()
        if name != baseline
    }
