"""`fit`: tuples in, an aligned model out. The stage behind `rrtf-train fit`.

The folder it writes:
    config.json              every option, and what the run was made from
    log.jsonl, tensorboard/  a line per step
    checkpoints/step-N       complete or absent; a stopped run goes on from the newest
    last/                    the trained model: a Hugging Face folder, or a PEFT adapter
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rrtf_serve.config import ServeConfig
from rrtf_serve.loading import describe_source
from rrtf_serve.models import catalog
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.preparation import prepare_source
from rrtf_serve.problems.samples import open_alone
from training.encoding import Encoded, Encoder, encode, longest_of
from training.fit_options import FitOptions, flag
from training.problem_files import write_text
from training.records import read_tuples
from training.schedule import Schedule

log = logging.getLogger(__name__)

# Settings that may change when a run goes on: they decide where and how often, not what.
_FREE = ("output", "threads", "checkpoint_every", "keep", "device")

# What a run leaves that another run could take for its own.
_RESULTS = ("checkpoints", "last", "best", "validation")


@dataclass(frozen=True)
class Student:
    """A Hugging Face folder on disk, with what is known of it."""

    source: Source
    card: Card
    spec: str  # what an adapter on it names as its base: a path only where the model has no other name

    @property
    def folder(self) -> Path:
        return self.source.path


@dataclass(frozen=True)
class Work:
    """What a run trains on."""

    student: Student
    items: list[Encoded]
    left_out: list[str]  # names of tuples above --max-tokens
    schedule: Schedule
    prompt_format: str  # of the first tuple: the one to validate with


def fit(options: FitOptions) -> dict[str, Any]:
    """Train, or go on where a stopped run was; a report of plain data.

    Raises ValueError on options, tuples or a resumed configuration that can't be used, ModelError on a model
    that can't be trained or a training that fails, BusyError where another process trains in the folder.
    """
    work = prepare(options)
    train = _loop()
    resolved = resolve(options, work)
    if int(os.environ.get("RANK", "0")):  # a process beside the first
        return train(options, work, resolved)
    options.output.mkdir(parents=True, exist_ok=True)
    with open_alone(options.output / ".lock"):
        keep_config(options.output / "config.json", resolved)
        return train(options, work, resolved)


def _loop() -> Callable[[FitOptions, Work, dict[str, Any]], dict[str, Any]]:
    """Raises ModelError where a library is missing."""
    try:
        from training import loop  # noqa: PLC0415  # slow to import, and not in the base install
    except ModuleNotFoundError as error:
        raise ModelError(
            f"training needs {error.name}, which is not installed: install torch for your machine "
            "(https://pytorch.org), then pip install 'rrtf-serve[train]'"
        ) from error
    return loop.train


def find_student(spec: str) -> Student:
    """Fetched where it is not here, a GGUF file or an adapter turned into a Hugging Face folder once.

    Raises ModelError.
    """
    config = ServeConfig(model=spec, engine="torch")
    source = prepare_source(config)
    if source.kind is not Kind.HF:
        raise ModelError(
            f"--model {spec}: a {source.kind} folder can't be trained; name what it was made from"
        )
    known = not Path(spec).expanduser().exists() and catalog.find(spec) is not None
    return Student(source, describe_source(config, source), spec if known else str(source.path))


def prepare(options: FitOptions) -> Work:
    """Read and encode. Raises ValueError, ModelError."""
    tuples = read_tuples(options.tuples)
    student = find_student(options.model)
    encoder = Encoder.load(student.folder, student.card)
    limit = min(options.max_tokens, student.card.context_length)
    items: list[Encoded] = []
    left_out: list[str] = []
    for item in tuples:
        encoded = encode(item, options.method, encoder)
        # Of all candidates, so that every method trains on the same tuples at the same steps.
        if longest_of(item, encoder) > limit:
            left_out.append(encoded.name)
        else:
            items.append(encoded)
    if left_out:
        log.warning(
            "%s: %d tuples are longer than --max-tokens %d and are left out: %s",
            options.tuples, len(left_out), limit, ", ".join(left_out),
        )  # fmt: skip
    if not items:
        raise ValueError(
            f"{options.tuples}: none of its {len(tuples)} tuples fits into --max-tokens {limit}; raise it"
        )
    if idle := options.without_effect():
        log.warning(
            "without effect here: %s (--method %s, --tune %s)", ", ".join(idle), options.method, options.tune
        )
    if options.method in ("rank", "rrhf", "dpo") and not any(item.pairs for item in items):
        raise ValueError(
            f"{options.tuples}: no tuple has a pair, so --method {options.method} has nothing to learn; "
            "use sft, or sample more answers"
        )
    schedule = Schedule(
        len(items), options.batch, options.epochs, options.seed, options.learning_rate, options.warmup
    )
    return Work(student, items, left_out, schedule, tuples[0].prompt.format)


def resolve(options: FitOptions, work: Work) -> dict[str, Any]:
    """The options with their defaults filled in, and what decides the result beside them."""
    record = {
        name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()
    }
    return record | {
        "lr": options.learning_rate,
        "layout": options.row_layout,
        "tuples_sha256": hashlib.sha256(options.tuples.read_bytes()).hexdigest(),
        "tuples_used": len(work.items),
        "tuples_too_long": len(work.left_out),
        "model_digest": work.student.source.digest,
        "steps": work.schedule.steps,
        "torch": version("torch"),
    }


def keep_config(path: Path, resolved: dict[str, Any]) -> None:
    """Write the configuration, or hold it against the one that is there, where there is something to go on
    from. Raises ValueError with the difference."""
    begun = any(path.with_name(name).exists() for name in _RESULTS)
    if begun and path.is_file():
        try:
            before = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: not readable as JSON ({error}); move the folder away") from error
        names = [name for name in {**before, **resolved} if name not in (*_FREE, "tuples")]
        changed = [name for name in names if before.get(name) != resolved.get(name)]
        if changed:
            shown = "; ".join(
                f"{flag(name)} {before.get(name)} there, {resolved.get(name)} here" for name in changed
            )
            raise ValueError(
                f"{path.parent}: holds a run with other settings ({shown}); give another --output, or the "
                "settings it was made with"
            )
    write_text(path, json.dumps(resolved, indent=2) + "\n")
