"""`evolve`: harder tasks out of tasks, round by round (Evol-Instruct; arXiv 2307.14936, section 3.1).

Each seed starts one or more lines. In a round every line's task is put to the evolver with a method that is
drawn from the seed of the run; an answer that breaks no rule becomes the line's task, else the line stays
where it is and tries again in the next round, with another draw.

FOLDER/responses.jsonl   what the evolver said, by key, as it comes; nothing is asked twice
FOLDER/tasks.jsonl       accepted tasks with licence and lineage
FOLDER/eliminated.jsonl  the others, and seeds that were unfit, with the rule and what broke it
FOLDER/report.json       counts by round, method and rule

The last three are written anew after each round, complete or not at all. What is accepted follows from the
answers alone and not from the order in which they came, so a stopped run ends as one that was not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rrtf_serve.problems.origins import Record
from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, Sampler
from rrtf_serve.problems.samples import Journal
from training.evolution import METHODS, draw_method, read_answer, request
from training.evolution_rules import Eliminator, Limits, purpose
from training.problem_files import keep_aside, write_lines, write_text
from training.seeds import Seed


@dataclass(frozen=True)
class EvolveOptions:
    """What `evolve` can be told. Raises ValueError naming the flag."""

    rounds: int = 3
    lines: int = 1  # independent ones from each seed
    methods: tuple[str, ...] = tuple(METHODS)
    seed: int = 0
    temperature: float = 0.9
    top_p: float = 0.95
    max_tokens: int = 512
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        for name in ("rounds", "lines"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, not {getattr(self, name)}")
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown or not self.methods:
            raise ValueError(f"--methods {' '.join(unknown)}: must be some of {', '.join(METHODS)}")
        if self.lines > 1 and self.temperature == 0:
            raise ValueError("--lines above 1 needs a --temperature above 0: greedy lines would be alike")
        _ = self.decoding  # has rules of its own

    @property
    def decoding(self) -> Decoding:
        return Decoding(self.temperature, self.top_p, self.max_tokens, self.seed)


@dataclass
class _Line:
    """One seed's descent, at its present task."""

    seed: Seed
    number: int
    task_id: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.seed.task_id}~{self.number}"


@dataclass
class _Outcome:
    """What came of a run so far."""

    fit: list[Seed]
    eliminated: list[Record]
    tasks: list[Record] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def write(self, folder: Path, report: dict[str, Any]) -> None:
        decisive = {name: report[name] for name in ("evolver", "options")}
        keep_aside(folder, ("tasks.jsonl", "eliminated.jsonl"), decisive)
        write_lines(folder / "tasks.jsonl", self.tasks)
        write_lines(folder / "eliminated.jsonl", self.eliminated)
        write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")


@dataclass(frozen=True)
class _Step:
    """What a line asks in one round."""

    line: _Line
    method: str
    prompt: Prompt
    key: str


def evolve(
    seeds: Sequence[Seed],
    sampler: Sampler,
    folder: Path,
    options: EvolveOptions | None = None,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Evolve seeds into FOLDER; returns the report.

    Raises ValueError where no seed is fit or two share a task_id, SamplerError where the evolver fails (what
    it said is kept), BusyError where another run has the folder.
    """
    options = options or EvolveOptions()
    _check_names(seeds)
    eliminator = Eliminator(options.limits)
    outcome = _fit_seeds(seeds, eliminator, options.limits)
    if not outcome.fit:
        rules = dict(Counter(record["rule"] for record in outcome.eliminated))
        raise ValueError(f"none of the {len(seeds)} seeds asks for a Python function of its own: {rules}")
    lines = [
        _Line(seed, number, seed.task_id, seed.text)
        for seed in outcome.fit
        for number in range(1, options.lines + 1)
    ]
    report: dict[str, Any] = {}
    with Journal(folder / "responses.jsonl", _flaw) as journal:
        for number in range(1, options.rounds + 1):
            steps = [_step(line, number, sampler, options) for line in lines]
            _ask(steps, number, sampler, options, journal, progress=progress)
            counts: Counter[str] = Counter()
            for step in steps:
                answer = journal.records[step.key]
                record = _record(step, number, answer, sampler, options)
                counts[_decide(step, answer, record, eliminator, outcome)] += 1
            outcome.rounds.append({"round": number, "asked": len(steps), **counts})
            report = _report(len(seeds), outcome, sampler, options)
            outcome.write(folder, report)
    return report


def _flaw(record: Record) -> str:
    return "" if all(isinstance(record.get(name), str) for name in ("text", "finish")) else "no answer"


def _decide(step: _Step, answer: Record, record: Record, eliminator: Eliminator, outcome: _Outcome) -> str:
    """Accept or eliminate; "accepted", or the rule."""
    broken = eliminator.broken(record["text"], step.line.text, step.method, answer["finish"])
    if broken is not None:
        rule, offending = broken
        outcome.eliminated.append(record | {"rule": rule, "offending": offending})
        return rule
    outcome.tasks.append(record)
    eliminator.keep(record["task_id"], record["text"])
    step.line.task_id, step.line.text = record["task_id"], record["text"]
    return "accepted"


def _check_names(seeds: Sequence[Seed]) -> None:
    twice = [name for name, count in Counter(seed.task_id for seed in seeds).items() if count > 1]
    if twice:
        raise ValueError(f"task_id {twice[0]!r} comes twice among the seeds; give one of them another name")


def _fit_seeds(seeds: Sequence[Seed], eliminator: Eliminator, limits: Limits) -> _Outcome:
    """Those that ask for Python code and are no repetition; and the others with their reasons."""
    fit: list[Seed] = []
    unfit: list[Record] = []
    for seed in seeds:
        count = len(seed.text.split())
        broken = purpose(seed.text)
        if broken is None and count > limits.most_words:
            broken = "too-long", f"{count} words"
        if broken is None:
            broken = eliminator.repeats(seed.text)
        if broken is None:
            fit.append(seed)
            eliminator.keep(seed.task_id, seed.text)
        else:
            record = {"task_id": seed.task_id, "text": seed.text, "licence": seed.licence}
            lineage = seed.lineage | {"seed": seed.task_id, "round": 0}
            unfit.append(record | {"lineage": lineage, "rule": broken[0], "offending": broken[1]})
    return _Outcome(fit, unfit)


def _step(line: _Line, number: int, sampler: Sampler, options: EvolveOptions) -> _Step:
    method = draw_method(options.methods, options.seed, line.name, number)
    prompt = request(line.text, method, options.limits.words(line.text))
    decides = [sampler.model, sampler.digest, sampler.provenance(), asdict(options.decoding), asdict(prompt)]
    # Two lines of one seed may meet at the same prompt, and a line may ask again what failed.
    content = json.dumps([*decides, line.number, number], sort_keys=True)
    return _Step(line, method, prompt, hashlib.sha256(content.encode()).hexdigest()[:32])


def _ask(
    steps: Sequence[_Step],
    number: int,
    sampler: Sampler,
    options: EvolveOptions,
    journal: Journal,
    *,
    progress: bool,
) -> None:
    """Put to the evolver what it has not answered yet."""
    # The index is what tells the seeds of two answers to one prompt apart.
    asks = [Ask(step.prompt, options.rounds * (step.line.number - 1) + number - 1) for step in steps]
    done = {at for at, step in enumerate(steps) if step.key in journal.records}
    bar = tqdm(
        total=len(steps),
        initial=len(done),
        desc=f"round {number} of {options.rounds}",
        unit="task",
        file=sys.stderr,
        disable=not progress,
    )
    with bar:
        for at, response in sampler.answer(asks, options.decoding, done):
            record = {"key": steps[at].key, "text": response.text, "finish": response.finish}
            journal.add(record | {"tokens": response.tokens})
            bar.update()


def _record(step: _Step, number: int, answer: Record, sampler: Sampler, options: EvolveOptions) -> Record:
    line = step.line
    return {
        "task_id": f"{line.name}.{number}",
        "text": read_answer(answer["text"]),
        "licence": line.seed.licence,
        "lineage": line.seed.lineage
        | {
            "seed": line.seed.task_id,
            "parent": line.task_id,
            "round": number,
            "method": step.method,
            "evolver": {"model": sampler.model, "digest": sampler.digest, **sampler.provenance()},
            "decoding": asdict(options.decoding),
            "key": step.key,
        },
    }


def _report(seeds: int, outcome: _Outcome, sampler: Sampler, options: EvolveOptions) -> dict[str, Any]:
    tasks, eliminated = outcome.tasks, outcome.eliminated
    return {
        "seeds": seeds,
        "fit_seeds": len(outcome.fit),
        "unfit_seeds": dict(Counter(each["rule"] for each in eliminated if each["lineage"]["round"] == 0)),
        "rounds": outcome.rounds,
        "methods": {
            method: {
                "accepted": sum(each["lineage"]["method"] == method for each in tasks),
                "eliminated": sum(each["lineage"].get("method") == method for each in eliminated),
            }
            for method in options.methods
        },
        "tasks": len(tasks),
        "licences": dict(Counter(each["licence"] for each in tasks)),
        "evolver": {"model": sampler.model, "digest": sampler.digest, **sampler.provenance()},
        "sampler": sampler.settings(),
        "options": asdict(options),
    }
