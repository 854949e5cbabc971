"""`rrtf-bench table`: one model run in several ways; memory, load time, speed and score side by side.

After table 4 of PanGu-Coder2 (arXiv 2307.14936, section 4.4). Each way runs in a process of its own
(table_worker). The output folder holds table.json, table.md, rounds.json (what a stopped run goes on from)
and a folder of samples for each row of a suite.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from benchmarks.table_children import ChildFailedError
from benchmarks.table_page import markdown
from benchmarks.table_report import Facts, make_report
from benchmarks.table_rounds import (
    CodePrompts,
    Job,
    Rounds,
    Work,
    measure_rounds,
    write_json,
    write_text,
)
from benchmarks.table_rows import Prepared, Row, default_rows, parse_row, prepare_row
from benchmarks.table_suite import Candidate, SuiteConfig, compared, sample_and_judge, score_of
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, Source, safe_name
from rrtf_serve.problems.samplers import SamplerError
from rrtf_serve.sandbox.options import SandboxOptions

_CONTEXT_OF_A_PROMPT = 1024  # tokens that a suite's prompts may have, for a context made at load

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TableConfig:
    """What `rrtf-bench table` can be told. Raises ValueError naming the flag. Lengths are in tokens."""

    model: str
    rows: tuple[str, ...] = ()  # NAME=ENGINE[-TYPE]:MODEL, beside the default rows
    defaults: bool = True
    output: Path = Path("rrtf-table")
    prefill: int = 512
    batches: tuple[int, ...] = (1, 4, 16)
    prompt_tokens: int = 64
    new_tokens: int = 32
    repeats: int = 5
    threads: int = 0
    device: str = "cpu"
    baseline: str | None = None  # None: transformers float32, else the first row
    llama_python: str | None = None
    suite: str | None = None
    limit: int | None = None
    max_tokens: int = 512
    suite_batch: int = 16
    passk: tuple[str, ...] = ()  # NAME=FOLDER of a finished run
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        names = [row.name for row in self.all_rows()]
        if not names:
            raise ValueError("no rows: give --row, or leave out --no-default-rows")
        if double := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two rows are called {double.pop()!r}; name them apart with --row NAME=...")
        if self.baseline is not None and self.baseline not in names:
            raise ValueError(f"--baseline {self.baseline!r} is none of the rows: {', '.join(names)}")
        if unknown := [name for name in self.finished() if name not in names]:
            raise ValueError(f"--passk {unknown[0]!r} is none of the rows: {', '.join(names)}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"--device {self.device}: must be cpu or cuda")
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, not {self.repeats}")
        if not 0 <= self.threads <= 1024:
            raise ValueError(f"--threads must be from 0 to 1024, not {self.threads}")
        if not 1 <= self.suite_batch <= 256:
            raise ValueError(f"--suite-batch must be from 1 to 256, not {self.suite_batch}")
        if any(row.engine == "llama" for row in self.all_rows()) and not self.llama_python:
            raise ValueError("a llama row needs --llama-python, a Python that has llama-cpp-python")
        self.work()

    def all_rows(self) -> list[Row]:
        """The default rows, one of them replaced by a given row of its name, and the given ones."""
        given = [parse_row(text) for text in self.rows]
        taken = {row.name for row in given}
        defaults = default_rows(self.model) if self.defaults else []
        return [row for row in defaults if row.name not in taken] + given

    def base(self) -> str:
        names = [row.name for row in self.all_rows()]
        usual = next(
            (r.name for r in self.all_rows() if (r.engine, r.type) == ("transformers", "float32")), names[0]
        )
        return self.baseline or usual

    def work(self) -> Work:
        return Work(self.prefill, self.batches, self.prompt_tokens, self.new_tokens)

    def finished(self) -> dict[str, Path]:
        """Folders of finished runs by row."""
        found = {}
        for text in self.passk:
            name, equals, path = text.partition("=")
            if not equals or not Path(path).is_dir():
                raise ValueError(f"--passk {text!r}: expected NAME=FOLDER of a run of rrtf-bench passk")
            found[name] = Path(path)
        return found

    def suite_config(self) -> SuiteConfig | None:
        if self.suite is None:
            return None
        return SuiteConfig(self.suite, self.limit, self.max_tokens, self.suite_batch, self.data_dir)


def measure_table(config: TableConfig, sandbox: SandboxOptions) -> dict[str, Any]:
    """Measure what is missing and write table.json and table.md, anew after each round.

    A row that fails is named with its reason. Raises ValueError, ModelError where no row can be measured,
    SandboxUnavailable, BusyError.
    """
    config.output.mkdir(parents=True, exist_ok=True)
    prepared, failed = prepare_rows(config)
    if not prepared:
        raise ModelError("no row can be measured: " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    work = config.work()
    key = {
        "work": asdict(work),
        "threads": config.threads,
        "device": config.device,
        "rows": {each.row.name: [each.row.spec.partition(":")[0], each.digest] for each in prepared},
        "machine": machine_record(),
    }
    rounds = Rounds(config.output, key)
    jobs = make_jobs(config, prepared, rounds)
    scores: dict[str, dict[str, Any]] = {}

    def write() -> dict[str, Any]:
        good = {name for name, score in scores.items() if "failed" not in score}
        tests = compared({name: suite_folder(config, name) for name in good}, config.base())
        facts = Facts(config.model, config.all_rows(), config.base(), prepared, rounds, failed, scores, tests)
        settings = {**asdict(work), "threads": config.threads, "device": config.device}
        suite = config.suite or ("finished runs" if config.passk else None)
        report = make_report(facts, settings, suite)
        write_json(config.output / "table.json", report)
        write_text(config.output / "table.md", markdown(report))
        return report

    measure_rounds(jobs, work, config.repeats, rounds, write)
    scores |= {name: score_of(folder) for name, folder in config.finished().items()}
    if config.suite:
        for job, each in zip(jobs, prepared, strict=True):
            if job.name not in scores and not job.measured.failed:
                scores[job.name] = _score(config, job, each, _text_source(each, prepared), sandbox)
                write()
    return write()


def prepare_rows(config: TableConfig) -> tuple[list[Prepared], dict[str, str]]:
    """The rows whose models are there, and why others are not."""
    prepared, failed = [], {}
    for row in config.all_rows():
        try:
            prepared.append(prepare_row(row, config.output / "models"))
        except ModelError as error:
            log.warning("%s: %s", row.name, error)
            failed[row.name] = str(error)
    return prepared, failed


def make_jobs(config: TableConfig, prepared: list[Prepared], rounds: Rounds) -> list[Job]:
    """Raises ModelError where there is no tokenizer for a llama row."""
    work = config.work()
    pools: dict[Path, CodePrompts] = {}
    jobs = []
    for each in prepared:
        folder = _text_source(each, prepared).path
        if folder not in pools:
            pools[folder] = CodePrompts.load(folder)
        jobs.append(
            Job(
                each.row.name,
                _settings(config, each, work.most_rows, work.context),
                _python(config, each.row),
                pools[folder],
                each.needed_bytes,
                rounds.of(each.row.name),
            )
        )
    return jobs


def _settings(config: TableConfig, each: Prepared, rows: int, context: int) -> dict[str, Any]:
    """What table_worker is told. `context`: tokens of all rows together."""
    return {
        "engine": each.row.engine,
        "type": each.row.type,
        "path": str(each.source.path),
        "device": config.device,
        "threads": config.threads,
        "rows": rows,
        "context": context,
    }


def _python(config: TableConfig, row: Row) -> str:
    return str(config.llama_python) if row.engine == "llama" else sys.executable


def _text_source(each: Prepared, prepared: list[Prepared]) -> Source:
    """Where the row's tokenizer lies: its folder, for a GGUF file that of the first row that has one."""
    if each.source.kind is not Kind.GGUF:
        return each.source
    found = next((other.source for other in prepared if other.source.kind is not Kind.GGUF), None)
    if found is None:
        raise ModelError(
            f"{each.row.name}: a GGUF file has no tokenizer.json; add a row with a folder of its model"
        )
    return found


def _score(
    config: TableConfig, job: Job, each: Prepared, text: Source, sandbox: SandboxOptions
) -> dict[str, Any]:
    suite = config.suite_config()
    assert suite is not None
    context = config.suite_batch * (_CONTEXT_OF_A_PROMPT + config.max_tokens)
    settings = _settings(config, each, config.suite_batch, context)
    kind = each.row.spec.partition(":")[0]
    candidate = Candidate(
        job.name, f"{each.digest}:{kind}", settings, job.python, text, job.measured.described
    )
    log.warning("%s: %s", job.name, config.suite)
    try:
        return sample_and_judge(candidate, suite, suite_folder(config, job.name), sandbox)
    except (ChildFailedError, SamplerError) as error:
        log.warning("%s: %s", job.name, error)
        return {"failed": str(error)}


def suite_folder(config: TableConfig, name: str) -> Path:
    return config.finished().get(name) or config.output / f"{safe_name(str(config.suite))}-{safe_name(name)}"
