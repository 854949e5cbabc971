"""Answers to a run's problems from all its sources: the stage `sample`.

RUN/samples/STEM.jsonl   one file per source and temperature, in the form of `problems.evaluate.draw`
RUN/samples/index.json   what the files are: problems, prompt format, and each file's source and role
RUN/samples/speed.jsonl  one line for each source that was drawn from: samples, tokens, seconds

A stopped run goes on where it was; what was drawn is never drawn again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rrtf_serve.problems.evaluate import Run, draw
from rrtf_serve.problems.origins import Record
from rrtf_serve.problems.problem import Problem, Suite
from rrtf_serve.problems.prompts import FORMATS, render
from rrtf_serve.problems.samplers import EngineSampler, Sampler, TooLong
from rrtf_serve.problems.samples import Journal, to_line
from rrtf_serve.sampling import open_sampler
from training.fingerprints import told_of
from training.problem_files import write_text
from training.problem_sets import ProblemSet, load_problem_set
from training.sources import REFERENCE, Source

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleOptions:
    """What is asked of whom. Raises ValueError naming the flag.

    `format` is the prompt that the student is trained on, and what every source is asked unless it has a
    format of its own.
    """

    problems: tuple[str, ...]  # suites for training, or files
    sources: tuple[Source, ...]
    format: str = "chat"
    limit: int | None = None  # the first problems of each set only
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(f"--format {self.format}: must be one of {', '.join(FORMATS)}")
        if not self.sources:
            raise ValueError("no source: give --model, --url or --kind reference, or a [[source]] table")
        names = [source.name for source in self.sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"source {twice}: the name comes twice; files are named after it")
        stems = [stem for source in self.sources for stem in source.stems()]
        twice = next((stem for stem in stems if stems.count(stem) > 1), None)
        if twice is not None:
            raise ValueError(f"{twice}.jsonl would hold answers of two kinds; change a name or temperature")

    def load(self) -> ProblemSet:
        """Raises ValueError as `load_problem_set` does."""
        return load_problem_set(self.problems, self.data_dir, self.limit)


@dataclass(frozen=True)
class SampleFile:
    """One file of answers."""

    stem: str
    source: str
    role: str
    asked: str = ""  # who answers; "" in folders of before it was written down


@dataclass(frozen=True)
class Index:
    """What a run's folder holds samples of."""

    problems: tuple[str, ...]
    format: str
    limit: int | None
    files: tuple[SampleFile, ...]
    digests: dict[str, str] = field(default_factory=dict)  # of the problems, by task_id

    def load(self, data_dir: Path | None) -> ProblemSet:
        """Raises ValueError as `load_problem_set` does, and where problems are not what was sampled."""
        found = load_problem_set(self.problems, data_dir, self.limit)
        self.check(found)
        return found

    def check(self, found: ProblemSet) -> None:
        """Raises ValueError where a problem that was sampled has changed or is gone."""
        changed = [
            task
            for task, digest in self.digests.items()
            if task not in found.problems or found.problems[task].digest != digest
        ]
        if changed:
            raise ValueError(
                f"{len(changed)} problems have changed since they were sampled, or are gone: "
                f"{', '.join(changed[:5])}; give those back, or take another folder"
            )


def sample(options: SampleOptions, folder: Path) -> dict[str, Any]:
    """Draw what is missing; a report of samples, tokens and seconds for each file.

    Raises ValueError, ModelError, SamplerError (what was drawn is kept), BusyError.
    """
    problem_set = options.load()
    for source in options.sources:  # all that can be refused is refused before hours of work
        source.sampler_config()
        for decoding in source.decodings():
            source.run(problem_set.suite, decoding, options.format)
    if told := told_of(problem_set.problems.values()):  # of suites: a file of such problems is refused
        log.warning("%s; `rrtf-train clean` makes a file without them", told)
    _write_index(options, problem_set, folder)
    report: dict[str, Any] = {}
    for source in options.sources:
        if source.kind == "reference":
            report[source.stem(None)] = _take_references(source, problem_set, folder)
        else:
            with open_sampler(source.sampler_config()) as sampler:
                for decoding in source.decodings():
                    run, too_long = _fitting(source.run(problem_set.suite, decoding, options.format), sampler)
                    drawn = _draw(source, sampler, run, folder, too_long)
                    report[source.stem(decoding)] = {**drawn, "too_long": too_long}
    return report


def sample_path(folder: Path, stem: str) -> Path:
    return folder / "samples" / f"{stem}.jsonl"


def read_index(folder: Path) -> Index:
    """Raises ValueError where the folder holds no samples of `rrtf-train sample`, or a damaged index."""
    path = folder / "samples" / "index.json"
    try:
        record = json.loads(path.read_text("utf-8"))
        files = tuple(SampleFile(**each) for each in record["files"])
        digests = dict(record.get("digests", {}))
        return Index(tuple(record["problems"]), record["format"], record["limit"], files, digests)
    except FileNotFoundError:
        raise ValueError(f"{folder}: holds no samples; `rrtf-train sample` draws them") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: damaged ({error!r}); move it away and sample each source again: what was drawn is kept"
        ) from error


def _write_index(options: SampleOptions, problem_set: ProblemSet, folder: Path) -> None:
    """Sources may be added to a folder, and sets of problems; what its samples answer must stay in it."""
    place = folder / "samples"
    place.mkdir(parents=True, exist_ok=True)
    # Two sources may be drawn from at once, and each must find the other here.
    with (place / ".index.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read_index(folder) if (place / "index.json").exists() else None
        write_json(place / "index.json", asdict(_index(options, problem_set, before, folder)))


def _index(options: SampleOptions, problem_set: ProblemSet, before: Index | None, folder: Path) -> Index:
    """Raises ValueError where what is asked does not go with what was."""
    files: dict[str, SampleFile] = {}
    if before is not None:
        missing = [name for name in before.problems if name not in options.problems]
        for what, there, here in (
            ("--problems", missing, []), ("--format", before.format, options.format),
            ("--limit", before.limit, options.limit),
        ):  # fmt: skip
            if there != here:
                raise ValueError(
                    f"{what}: {folder} was sampled with {there}, which is not what is asked now"
                    f"{f' ({here})' if here else ''}; give it, or another folder"
                )
        before.check(problem_set)
        files = {each.stem: each for each in before.files}
    for source in options.sources:
        asked = source.asked
        for stem, each in files.items():
            if (each.source == source.name and each.asked not in ("", asked)) or (
                each.source != source.name and stem in source.stems()
            ):
                raise ValueError(
                    f"source {source.name}: {sample_path(folder, stem)} was drawn from source {each.source} "
                    f"({each.asked}), and this is {asked}; give this one another --name"
                )
            if each.source == source.name:  # a role is a whole source's
                files[stem] = replace(each, role=source.role)
        for stem in source.stems():
            files[stem] = SampleFile(stem, source.name, source.role, asked)
    digests = {task: problem.digest for task, problem in problem_set.problems.items()}
    return Index(options.problems, options.format, options.limit, tuple(files.values()), digests)


def _fitting(run: Run, sampler: Sampler) -> tuple[Run, list[str]]:
    """The run without problems that leave no room for an answer, and the names of those. Of a URL nothing is
    known; its server refuses them itself (`_draw_fitting`).

    Raises ValueError where none is left.
    """
    if not isinstance(sampler, EngineSampler):
        return run, []
    least = run.decoding.max_tokens
    too_long = [each.task_id for each in run.problems if sampler.room(render(each, run.format)) < least]
    if not too_long:
        return run, []
    return _without(run, too_long, sampler), too_long


def _without(run: Run, too_long: list[str], sampler: Sampler) -> Run:
    """Raises ValueError where nothing is left."""
    for task in too_long:
        log.warning("%s: left out for %s, whose context has no room for an answer", task, sampler.model)
    fitting = {task: each for task, each in run.suite.problems.items() if task not in too_long}
    if not fitting:
        raise ValueError(
            f"{sampler.model}: no problem leaves room for --max-tokens {run.decoding.max_tokens}; lower it, "
            "or take a model with a longer context"
        )
    return replace(run, suite=Suite(run.suite.name, fitting))


def _draw_fitting(sampler: Sampler, run: Run, path: Path, too_long: list[str]) -> frozenset[str]:
    """Draw, and leave out what a server refuses as too long; `too_long` grows by it."""
    while True:
        try:
            return draw(sampler, run, path)
        except TooLong as error:
            log.warning("%s", error)
            too_long.append(error.task_id)
            run = _without(run, [error.task_id], sampler)


def _draw(source: Source, sampler: Sampler, run: Run, folder: Path, too_long: list[str]) -> dict[str, Any]:
    path = sample_path(folder, source.stem(run.decoding))
    before = _count(path)
    started = time.monotonic()
    try:
        keys = _draw_fitting(sampler, run, path, too_long)
    finally:  # a run that is stopped has its speed, too
        seconds = time.monotonic() - started
        samples, tokens = (now - then for now, then in zip(_count(path), before, strict=True))
        speed = {
            "source": source.name,
            "temperature": run.decoding.temperature,
            "samples": samples,
            "tokens": tokens,
            "seconds": round(seconds, 3),
            "samples_per_second": round(samples / seconds, 3),
            "tokens_per_second": round(tokens / seconds, 1),
            "sampler": sampler.settings(),
        }
        if samples:
            with (folder / "samples" / "speed.jsonl").open("ab") as file:
                file.write(to_line(speed))
    return {"file": str(path), "role": source.role, "model": sampler.model, "total": len(keys), **speed}


def _count(path: Path) -> tuple[int, int]:
    """Samples and tokens in a file; a last line that a kill cut short is not one."""
    if not path.is_file():
        return 0, 0
    samples = tokens = 0
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                samples += 1
                tokens += json.loads(line).get("tokens") or 0
    return samples, tokens


def _take_references(source: Source, problem_set: ProblemSet, folder: Path) -> dict[str, Any]:
    """The data sets' own solutions as samples of this source; problems without one have none."""
    path = sample_path(folder, source.stem(None))
    having = [problem for problem in problem_set.problems.values() if problem.reference]
    if not having:
        raise ValueError(
            f"source {source.name}: none of the problems has a reference solution; leave this source out"
        )
    with Journal(path) as journal:
        wanted = dict(_references(having))
        _refuse_changed(path, journal.records.keys() - wanted.keys())
        for key, record in wanted.items():
            if key not in journal.records:
                journal.add(record)
    return {"file": str(path), "role": source.role, "model": REFERENCE, "total": len(having)}


def _references(problems: Iterable[Problem]) -> Iterable[tuple[str, Record]]:
    for problem in problems:
        content = f"{REFERENCE}\n{problem.digest}"
        key = hashlib.sha256(content.encode("ascii")).hexdigest()[:32]
        record = {
            "task_id": problem.task_id,
            "completion": problem.reference,
            "finish": "stop",
            "tokens": None,
            "model": REFERENCE,
            "model_digest": problem.digest,
            "prompt_format": REFERENCE,
            "index": 0,
            "key": key,
        }
        yield key, record


def _refuse_changed(path: Path, strangers: Iterable[str]) -> None:
    count = len(list(strangers))
    if count:
        raise ValueError(
            f"{path}: {count} of its solutions are of problems that have changed since; remove it, or give "
            "another folder"
        )


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Complete or not at all."""
    write_text(path, json.dumps(record, indent=2) + "\n")
