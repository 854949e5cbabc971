"""The measured rounds of `rrtf-bench table`: every row asked for the same work, in turns, again and again.

First each row runs alone in a fresh process: memory, and whether it runs at all. Then all stay loaded and are
asked in turn, each stopped while another is asked, where they fit into memory together; otherwise each is
loaded anew in each round. What is measured is kept in rounds.json after each round; a stopped run goes on
with the next.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.table_children import Child, ChildFailedError
from convert.calibration import standard_library_files
from convert.memory import available_memory
from rrtf_serve.models.tokens import Tokenizer

PREFILL = "prefill"
_TRIES = 5  # at a task whose tokens came all at once
_SPARE = 0.9  # of the memory that is available
_POOL_CHARACTERS = 400_000  # of source code, from which prompts are cut

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Work:
    """One round's work, in tokens. Raises ValueError naming the flag."""

    prefill: int = 512
    batches: tuple[int, ...] = (1, 4, 16)
    prompt: int = 64
    new_tokens: int = 32

    def __post_init__(self) -> None:
        if self.prefill < 1 or self.prompt < 1:
            raise ValueError("--prefill and --prompt-tokens must be at least 1")
        if self.new_tokens < 3:
            raise ValueError(f"--new-tokens is {self.new_tokens}; time per token needs at least 3")
        if not self.batches or not all(1 <= batch <= 256 for batch in self.batches):
            raise ValueError("--batches must be one or more numbers from 1 to 256")
        if len(set(self.batches)) < len(self.batches):
            raise ValueError("--batches names one twice")

    @property
    def tasks(self) -> list[str]:
        return [PREFILL, *map(str, self.batches)]

    @property
    def most_rows(self) -> int:
        return max(self.batches)

    @property
    def context(self) -> int:
        """Tokens that one answer may come to hold, all rows together."""
        return max(self.prefill + 1, self.most_rows * (self.prompt + self.new_tokens))


@dataclass(frozen=True)
class CodePrompts:
    """Prompts of source code, no two of one round alike: an engine may remember what it has read."""

    ids: list[int]

    @classmethod
    def load(cls, folder: Path) -> CodePrompts:
        """From a folder with a tokenizer.json. The code is the held-out part of Python's standard library."""
        texts: list[str] = []
        for path in standard_library_files("held-out"):
            texts.append(path.read_text("utf-8"))
            if sum(map(len, texts)) > _POOL_CHARACTERS:
                break
        return cls(Tokenizer.load(folder).encode("\n".join(texts)[:_POOL_CHARACTERS], specials=False))

    def of(self, work: Work, task: str, turn: int) -> list[list[int]]:
        """The prompts of a task in round `turn`; -1 is the one that warms up."""
        sizes = {PREFILL: work.prefill, **{str(b): b * work.prompt for b in work.batches}}
        before = sum(sizes[each] for each in work.tasks[: work.tasks.index(task)])
        start = (turn + 1) * sum(sizes.values()) + before
        taken = [self.ids[(start + at) % len(self.ids)] for at in range(sizes[task])]
        length = work.prefill if task == PREFILL else work.prompt
        return [taken[at : at + length] for at in range(0, len(taken), length)]


@dataclass
class Job:
    """One row to measure: how its worker is started, and what has been measured so far."""

    name: str
    settings: dict[str, Any]
    python: str
    prompts: CodePrompts
    needed_bytes: int
    measured: Measured


@dataclass
class Measured:
    """`rounds[i]` holds round i's figures: tokens/s of the prefill, ms per token of each batch. `alone` is
    the first loading, when files may still be on the disk; `loads` are the later ones."""

    alone: dict[str, Any] | None = None
    loads: list[dict[str, Any]] = field(default_factory=list)
    rounds: list[dict[str, float]] = field(default_factory=list)
    described: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    failed: str | None = None


class Rounds:
    """rounds.json in `folder`: what `key` and all rows have measured. Raises ValueError where it holds
    figures of other settings, models or another machine."""

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self._path = folder / "rounds.json"
        self._key: dict[str, Any] = json.loads(json.dumps(key))
        self.rows: dict[str, Measured] = {}
        self.together = True
        if not self._path.is_file():
            return
        record = json.loads(self._path.read_text("utf-8"))
        if record["key"] != self._key:
            changed = [name for name in key if record["key"].get(name) != self._key[name]]
            raise ValueError(
                f"--output {folder}: holds figures of another {' and '.join(changed) or 'run'}; give another "
                "folder, or remove rounds.json there"
            )
        self.together = record["together"]
        self.rows = {name: Measured(**row) for name, row in record["rows"].items()}
        if not any(row.rounds for row in self.rows.values()):
            # What failed may have lacked memory or a library; once others have rounds, it can't be paired.
            self.rows = {name: row for name, row in self.rows.items() if not row.failed}

    def of(self, name: str) -> Measured:
        return self.rows.setdefault(name, Measured())

    def save(self) -> None:
        rows = {name: asdict(row) for name, row in self.rows.items()}
        write_json(self._path, {"key": self._key, "together": self.together, "rows": rows})


def write_json(path: Path, record: dict[str, Any]) -> None:
    """The whole record or, where the process is killed, what was there before."""
    write_text(path, json.dumps(record, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_text(text, "utf-8")
    fresh.replace(path)


def measure_rounds(
    jobs: list[Job], work: Work, repeats: int, rounds: Rounds, after_round: Callable[[], object]
) -> None:
    """Measure what is missing of `repeats` rounds; a row that fails says so in its record and is left out."""
    for job in tqdm(jobs, desc="each alone", unit="row"):
        if job.measured.alone is None and not job.measured.failed:
            _measure_alone(job, work)
            rounds.save()
    done = max((len(job.measured.rounds) for job in jobs), default=0)
    if done >= repeats:
        return
    rounds.together = fit_together(jobs)
    if not rounds.together:
        log.warning("the rows do not fit into memory together: each is loaded anew in each round")
    with ExitStack() as held, tqdm(total=(repeats - done) * len(work.tasks) * len(jobs), unit="task") as bar:
        children: dict[str, Child] = {}
        if rounds.together:
            for job in _running(jobs):
                with _failures(job):
                    children[job.name] = held.enter_context(_warm(job, work))
        for turn in range(done, repeats):
            bar.set_description(f"round {turn + 1} of {repeats}")
            running = _running(jobs)
            if not running:
                return
            figures = _round(running, children if rounds.together else None, work, turn, bar)
            for job in _running(jobs):
                job.measured.rounds.append(figures[job.name])
            rounds.save()
            after_round()


def _round(
    jobs: list[Job], children: dict[str, Child] | None, work: Work, turn: int, bar: Any
) -> dict[str, dict[str, float]]:
    """Figures by row and task. `children`: the workers that stay; None: each row is loaded for the round."""
    figures: dict[str, dict[str, float]] = {job.name: {} for job in jobs}
    # Which goes first changes, so that none always follows the same other.
    order = jobs[turn % len(jobs) :] + jobs[: turn % len(jobs)]
    if children is None:
        for job in order:
            with _failures(job), _warm(job, work) as child:
                for task in work.tasks:
                    figures[job.name][task] = figure(child, job.prompts, work, task, turn)
                    bar.update()
        return figures
    for task in work.tasks:
        for job in order:
            if not job.measured.failed:
                with _failures(job):
                    figures[job.name][task] = figure(children[job.name], job.prompts, work, task, turn)
            bar.update()
    for job in _running(jobs):
        job.measured.loads[-1] = children[job.name].load.record()
    return figures


def _measure_alone(job: Job, work: Work) -> None:
    available = available_memory()
    if available is not None and available < job.needed_bytes:
        job.measured.failed = (
            f"needs about {job.needed_bytes / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB are available"
        )
        return
    with _failures(job), _warm(job, work) as child:
        job.measured.described, job.measured.versions = child.described, child.versions
        job.measured.alone = child.load.record()
        # The rounds' own loading, if there is one, comes later.
        job.measured.loads.clear()


@contextmanager
def _warm(job: Job, work: Work) -> Iterator[Child]:
    """A worker that has done each task once; the first time is slower, and memory grows until then."""
    child = Child(job.settings, job.python)
    try:
        for task in work.tasks:
            figure(child, job.prompts, work, task, -1)
        job.measured.loads.append(child.load.record())
        yield child
    finally:
        child.close()


@contextmanager
def _failures(job: Job) -> Iterator[None]:
    try:
        yield
    except ChildFailedError as error:
        log.warning("%s: %s", job.name, error)
        job.measured.failed = str(error)


def _running(jobs: list[Job]) -> list[Job]:
    return [job for job in jobs if not job.measured.failed]


def fit_together(jobs: list[Job]) -> bool:
    """Whether all that run can stay loaded at once, by the peaks that they had alone."""
    loads = [job.measured.alone for job in _running(jobs) if job.measured.alone]
    available = available_memory()
    needed = 1e6 * sum(load["peak_mb"] for load in loads)
    if available is not None and needed > _SPARE * available:
        return False
    device = 1e6 * sum(load["device_mb"] or 0 for load in loads)
    return device == 0 or device <= _SPARE * _free_on_device()


def _free_on_device() -> int:
    import torch  # noqa: PLC0415 - a worker has measured a CUDA device, so it is there

    return int(torch.cuda.mem_get_info()[0])


def figure(child: Child, prompts: CodePrompts, work: Work, task: str, turn: int) -> float:
    """Tokens/s of the prefill, first new token included; ms per token of a batch, decoding alone."""
    wanted = 1 if task == PREFILL else work.new_tokens
    for _ in range(_TRIES):
        arrivals = [row["at"] for row in child.generate(prompts.of(work, task, turn), wanted)]
        fewest = min(map(len, arrivals))
        if fewest < wanted:
            raise ChildFailedError(f"made {fewest} of {wanted} tokens; its context may be too short")
        if task == PREFILL:
            return work.prefill / float(arrivals[0][0])
        if (found := step_ms(arrivals)) is not None:
            return found
    raise ChildFailedError("its tokens came all at once, too fast to be timed; give it more --new-tokens")


def step_ms(arrivals: list[list[float]]) -> float | None:
    """Milliseconds from one token of a row to its next while all rows decode; seconds of every token in.

    Counted on the row that ends first, from the last row's first token on: an engine may read the prompts one
    after another, and decode those that it has read meanwhile. None where that row has no step left to time:
    a reader that falls behind finds many tokens at once.
    """
    all_began = max(row[0] for row in arrivals)
    first = min(arrivals, key=lambda row: row[-1])
    start = max((at for at in first if at <= all_began), default=first[0])
    steps = sum(at > start for at in first)
    return 1000 * (first[-1] - start) / steps if steps else None
