"""`rrtf-bench training-speed`: what a training step, sampling and judging cost, each against its yardstick.

steps      RRTF's step against SFT over the same packed tokens: time, at most 1.15 times; memory, at most 1.1
sampling   CTranslate2 in batches, and the torch engine, against `generate` at batch 1: CTranslate2 at least 5
           times the tokens per second
judge      the sandbox against that sampling: at least as many answers per second

Every measurement is a process of its own, and the sides take turns, so that what the machine does besides
falls on all of them. OUTPUT/rounds.jsonl has a line for each; a stopped run goes on with the next.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

import training
from benchmarks.cost_child import in_child
from benchmarks.cost_settings import keep_settings
from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.config import ServeConfig
from rrtf_serve.preparation import prepare_source
from rrtf_serve.problems import gold
from rrtf_serve.problems.judging import judge_file
from rrtf_serve.problems.prompts import FORMATS, render
from rrtf_serve.problems.samplers import Decoding
from rrtf_serve.problems.samples import Journal
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sampling import SamplerConfig
from rrtf_serve.sandbox.options import SandboxOptions
from training.answers import answer_text
from training.fit import find_student
from training.fit_options import FitOptions
from training.problem_sets import load_problem_set
from training.records import Candidate, Pair, Tuple, read_tuples, write_tuples
from training.sample import write_json

STEP_SIDES = ("rrtf", "sft", "plain")
SAMPLING_SIDES = ("ct2", "torch", "transformers")
PARTS = ("steps", "sampling", "judge")
DTYPES = ("float32", "bfloat16", "float16")
STEP_TIME, STEP_MEMORY, SAMPLING, JUDGE = (
    1.15,
    1.1,
    5.0,
    1.0,
)  # targets: the first two at most, the others at least
DEMO = Path(training.__file__).with_name("demo") / "problems.jsonl"

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingSpeedConfig:
    """What is timed and how. Raises ValueError naming the flag."""

    model: str = "smollm2-135m-instruct"
    problems: str = str(DEMO)  # a suite for training, or a file
    tuples: Path | None = None  # None: made of the problems' references
    output: Path = Path("rrtf-training-speed")
    parts: tuple[str, ...] = PARTS
    repeats: int = 5
    limit: int = 24  # problems
    steps: int = 4  # timed in each process
    warmup: int = 2
    batch: int = 8  # tuples at a step
    micro_tokens: int = 2048
    attention: str = "sdpa"
    precision: str = "bf16"
    k: int = 4  # answers to each problem
    max_tokens: int = 256
    temperature: float = 0.8
    format: str = "chat"
    rows: int = 16  # decoded together
    quantization: str = "int8"  # of CTranslate2
    dtype: str = "float32"  # of the torch engine and of transformers
    single: int = 6  # problems for `generate`, one answer each
    device: str = "auto"
    threads: int = 0
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"--parts {part}: must be one of {', '.join(PARTS)}")
        if "judge" in self.parts and "sampling" not in self.parts:
            raise ValueError("--parts judge: judges what `sampling` draws; name both")
        if self.format not in FORMATS:
            raise ValueError(f"--prompt {self.format}: must be one of {', '.join(FORMATS)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype}: must be one of {', '.join(DTYPES)}")
        least = {"repeats": 1, "limit": 2, "steps": 1, "warmup": 0, "k": 1, "single": 1, "threads": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"--{name} must be at least {low}, not {getattr(self, name)}")
        self.decoding()
        self.fit_options(1)
        SamplerConfig(self.model, batch=self.rows)

    def decoding(self) -> Decoding:
        return Decoding(self.temperature, 0.95 if self.temperature else 1.0, self.max_tokens, 0)

    def fit_options(self, epochs: int) -> FitOptions:
        return FitOptions(
            tuples=self.tuples or self.output / "tuples.jsonl", model=self.model, output=self.output / "fit",
            lr=1e-6, epochs=epochs, batch=self.batch, micro_tokens=self.micro_tokens,
            attention=self.attention, precision=self.precision, device=self.device, threads=self.threads,
        )  # fmt: skip


def training_speed(
    config: TrainingSpeedConfig, options: SandboxOptions, say: Say = lambda _: None
) -> dict[str, Any]:
    """Measure what is missing; the report.

    Raises ValueError, ModelError, SandboxUnavailable, RuntimeError (a process that ended).
    """
    output = config.output
    problem_set = load_problem_set((config.problems,), config.data_dir, config.limit)
    if "judge" in config.parts:  # hours of sampling must not end in "no sandbox here"
        options.open().close()
    settings = {name: value for name, value in asdict(config).items() if name not in ("output", "repeats")}
    plain = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    digests = {"problems_digest": problem_set.suite.digest}
    if config.tuples is not None:
        read_tuples(config.tuples)  # refused now, if at all
        digests["tuples_sha256"] = hashlib.sha256(config.tuples.read_bytes()).hexdigest()
    keep_settings(output / "settings.json", {**plain, **digests})
    if "steps" in config.parts and config.tuples is None:
        write_tuples(output / "tuples.jsonl", reference_tuples(config))
    wanted = rounds(config)
    _prepare(config)
    with Journal(output / "rounds.jsonl") as journal:
        missing = [each for each in wanted if "/".join(map(str, each)) not in journal.records]
        say(f"{len(wanted)} measurements, {len(missing)} to do: {config.repeats} rounds in {output}")
        for part, side, number in tqdm(missing, desc="training-speed", unit="measurement"):
            found = _measure(config, options, part, side, number)
            journal.add({"key": f"{part}/{side}/{number}", **found})
        records = dict(journal.records)
    report: dict[str, Any] = {"model": config.model, "settings": plain}
    if "steps" in config.parts:
        report["steps"] = steps_report(records, config.repeats)
    if "sampling" in config.parts:
        report["sampling"] = sampling_report(records, config.repeats)
    if "judge" in config.parts:
        report["judge"] = judge_report(records, config.repeats)
    report["machine"] = machine_record()
    write_json(output / "training-speed.json", report)
    (output / "training-speed.md").write_text(markdown(report), "utf-8")
    return report


def _prepare(config: TrainingSpeedConfig) -> None:
    """Fetch and convert here, so that no measured process has to. Raises ModelError."""
    find_student(config.model)
    if "sampling" in config.parts:
        prepare_source(ServeConfig(model=config.model, quantization=config.quantization))


def rounds(config: TrainingSpeedConfig) -> list[tuple[str, str, int]]:
    """(part, side, round), in the order of the measurements: every second round the other way about."""
    found: list[tuple[str, str, int]] = []
    for number in range(config.repeats):
        turn = 1 if number % 2 == 0 else -1
        if "steps" in config.parts:
            found += [("steps", side, number) for side in STEP_SIDES[::turn]]
        if "sampling" in config.parts:
            found += [("sampling", side, number) for side in SAMPLING_SIDES[::turn]]
        if "judge" in config.parts:
            found.append(("judge", "sandbox", number))
    return found


def reference_tuples(config: TrainingSpeedConfig) -> list[Tuple]:
    """A tuple per problem: its own reference above the next problem's. For timing; no model is kept."""
    problems = list(load_problem_set((config.problems,), config.data_dir, config.limit).problems.values())
    texts: list[str] = []
    for problem in problems:
        record = {"completion": problem.reference, "prompt_format": "reference"}
        text, why = answer_text(record, problem, render(problem, config.format))
        if not text:
            raise ValueError(
                f"--problems {config.problems}: {problem.task_id} has no reference to train on ({why}); give "
                "--tuples"
            )
        texts.append(text)
    found = []
    for at, problem in enumerate(problems):
        good = Candidate("reference", "teacher", texts[at], "ALL_PASS", 1, 1, 1.0)
        other = Candidate("other", "student", texts[at - 1], "RUNTIME_ERROR", 0, 1, 0.0)
        prompt = render(problem, config.format)
        found.append(Tuple(problem.task_id, "speed", prompt, (good, other), (Pair(0, 1, 1.0),), 0))
    return found


def _measure(
    config: TrainingSpeedConfig, options: SandboxOptions, part: str, side: str, number: int
) -> dict[str, Any]:
    if part == "judge":
        return _judge(config, options, number)
    if part == "steps":
        tuples = len(read_tuples(config.tuples or config.output / "tuples.jsonl"))
        per_epoch = -(-tuples // config.batch)
        fit = config.fit_options(-(-(config.warmup + config.steps) // per_epoch))
        plain = {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(fit).items()
        }
        settings = {"side": side, "warmup": config.warmup, "steps": config.steps, "options": plain}
        return in_child("steps", settings, config.threads)
    single = side == "transformers"
    file = _samples(config, side, number)
    file.unlink(missing_ok=True)  # of a measurement that was stopped
    settings = {
        "side": side, "model": config.model, "problems": config.problems, "format": config.format,
        "limit": min(config.single, config.limit) if single else config.limit,
        "k": 1 if single else config.k, "decoding": asdict(config.decoding()), "batch": config.rows,
        "threads": config.threads, "device": config.device, "dtype": config.dtype,
        "quantization": config.quantization, "file": str(file),
        "data_dir": str(config.data_dir) if config.data_dir else None,
    }  # fmt: skip
    return in_child("sampling", settings, config.threads)


def _samples(config: TrainingSpeedConfig, side: str, number: int) -> Path:
    return config.output / "samples" / f"{side}-{number}.jsonl"


def _judge(config: TrainingSpeedConfig, options: SandboxOptions, number: int) -> dict[str, Any]:
    """What CTranslate2 drew in this round, every programme anew."""
    suite = load_suite(config.problems, config.data_dir)
    samples = _samples(config, "ct2", number)
    out = config.output / "judged" / samples.name
    for old in (out, out.with_name(f"{out.name}.journal")):
        old.unlink(missing_ok=True)
    with options.open() as sandbox:
        tasks = list(suite.problems)[: config.limit]
        golds = gold.measure(suite, sandbox, tasks)  # interpreters are read from disk, cells start
        began = time.perf_counter()
        tally = judge_file(samples, suite, out, sandbox, golds)
        seconds = time.perf_counter() - began
        workers = sandbox.workers
    judged = sum(tally.results.values())
    return {
        "samples": judged,
        "seconds": seconds,
        "workers": workers,
        "failed_by_the_sandbox": tally.failed_by_sandbox,
    }


Records = dict[str, dict[str, Any]]


def _each(records: Records, part: str, side: str, repeats: int) -> list[dict[str, Any]]:
    return [records[f"{part}/{side}/{number}"] for number in range(repeats)]


def steps_report(records: Records, repeats: int) -> dict[str, Any]:
    """Seconds per step, tokens per second, peak MB of each side, and RRTF's ratios to the two SFTs, round by
    round. Memory is torch's on CUDA, else the process' resident peak; `ratio_above_libraries` leaves out what
    the libraries hold before a model is loaded."""
    sides = {side: _each(records, "steps", side, repeats) for side in STEP_SIDES}
    report: dict[str, Any] = {
        side: {
            "step_s": summary([sum(each["seconds"]) / len(each["seconds"]) for each in found]),
            "tokens_per_s": summary([sum(each["tokens"]) / sum(each["seconds"]) for each in found]),
            "peak_mb": summary([_peak(each) for each in found]),
            "device": found[0]["device"],
        }
        for side, found in sides.items()
    }
    for side in ("sft", "plain"):
        pairs = list(zip(sides["rrtf"], sides[side], strict=True))
        times = summary([sum(ours["seconds"]) / sum(theirs["seconds"]) for ours, theirs in pairs])
        memory = summary([_peak(ours) / _peak(theirs) for ours, theirs in pairs])
        above = summary([_above(ours) / _above(theirs) for ours, theirs in pairs])
        report[f"rrtf_to_{side}"] = {
            "time": times, "time_target": STEP_TIME, "time_met": times["median"] <= STEP_TIME,
            "memory": memory, "memory_above_libraries": above, "memory_target": STEP_MEMORY,
            "memory_met": memory["median"] <= STEP_MEMORY,
        }  # fmt: skip
    return report


def _peak(record: dict[str, Any]) -> float:
    process = record["process"]
    return float(process["cuda_peak_mb"] or process["peak_mb"])


def _above(record: dict[str, Any]) -> float:
    process = record["process"]
    return float(process["cuda_peak_mb"] or process["peak_mb"] - process["base_mb"])


def sampling_report(records: Records, repeats: int) -> dict[str, Any]:
    """Tokens per second of each side, and how many times `generate` at batch 1 it is."""
    sides = {side: _each(records, "sampling", side, repeats) for side in SAMPLING_SIDES}
    rates = {side: [each["tokens"] / each["seconds"] for each in found] for side, found in sides.items()}
    report: dict[str, Any] = {
        side: {
            "tokens_per_s": summary(rates[side]),
            "samples_per_s": summary([each["samples"] / each["seconds"] for each in found]),
            "settings": found[0]["settings"],
        }
        for side, found in sides.items()
    }
    for side in ("ct2", "torch"):
        pairs = zip(rates[side], rates["transformers"], strict=True)
        report[f"{side}_to_transformers"] = summary([ours / theirs for ours, theirs in pairs])
    report |= {"target": SAMPLING, "met": report["ct2_to_transformers"]["median"] >= SAMPLING}
    return report


def judge_report(records: Records, repeats: int) -> dict[str, Any]:
    """Answers judged per second, and how many times CTranslate2's answers per second that is."""
    judged = _each(records, "judge", "sandbox", repeats)
    drawn = _each(records, "sampling", "ct2", repeats)
    rates = [each["samples"] / each["seconds"] for each in judged]
    ratios = [rate / (each["samples"] / each["seconds"]) for rate, each in zip(rates, drawn, strict=True)]
    return {
        "samples_per_s": summary(rates),
        "workers": judged[0]["workers"],
        "to_sampling": summary(ratios),
        "target": JUDGE,
        "met": summary(ratios)["median"] >= JUDGE,
        "failed_by_the_sandbox": [name for each in judged for name in each["failed_by_the_sandbox"]],
    }


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    lines = [f"# Speed and memory of training: {report['model']}", ""]
    if steps := report.get("steps"):
        lines += ["| step | s | tokens/s | peak MB |", "|---|---|---|---|"]
        for side in STEP_SIDES:
            found = steps[side]
            shown = [_shown(found[name], places) for name, places in _STEP_COLUMNS]
            lines.append(f"| {side} | {' | '.join(shown)} |")
        lines += ["", "| RRTF against | time | memory | memory above the libraries |", "|---|---|---|---|"]
        for side in ("sft", "plain"):
            found = steps[f"rrtf_to_{side}"]
            shown = [_shown(found[name], 3) for name in ("time", "memory", "memory_above_libraries")]
            lines.append(f"| {side} | {' | '.join(shown)} |")
        lines += ["", f"Targets: time at most {STEP_TIME}, memory at most {STEP_MEMORY}.", ""]
    if sampling := report.get("sampling"):
        lines += ["| sampling | tokens/s | answers/s | times generate |", "|---|---|---|---|"]
        for side in SAMPLING_SIDES:
            found, times = sampling[side], sampling.get(f"{side}_to_transformers")
            lines.append(
                f"| {side} | {_shown(found['tokens_per_s'], 1)} | {_shown(found['samples_per_s'], 2)} | "
                f"{_shown(times, 1) if times else '1'} |"
            )
        lines += ["", f"Target: ct2 at least {SAMPLING:g} times generate at batch 1.", ""]
    if judge := report.get("judge"):
        lines += [
            f"Judge with {judge['workers']} workers: {_shown(judge['samples_per_s'], 1)} answers/s, "
            f"{_shown(judge['to_sampling'], 2)} times the sampling; target at least {JUDGE:g}.",
            "",
        ]
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items() if value is not None)
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join([*lines, f"Settings: {settings}.", "", f"Machine: {machine}", ""])


_STEP_COLUMNS = (("step_s", 3), ("tokens_per_s", 1), ("peak_mb", 0))


def _shown(found: dict[str, float], places: int) -> str:
    median, low, high = (f"{found[name]:.{places}f}" for name in ("median", "min", "max"))
    return f"{median} ({low} to {high}, n {found['n']:.0f})"
