"""`rrtf-bench passk`: sample a suite from a model, judge, and report pass@k; `rrtf-bench compare`: two such
runs.

The output folder holds samples.jsonl (raw response and extracted code), results.jsonl (with verdicts),
report.json and report.md; samples.jsonl may hold more than the run that is reported: those of a larger n or
limit. A stopped run goes on where it was. Two runs can't share a folder at a time.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.machine import machine_record
from rrtf_serve.problems import gold
from rrtf_serve.problems.estimator import compare
from rrtf_serve.problems.evaluate import Run, cut_off, draw, mean_tokens, per_problem, score
from rrtf_serve.problems.jobs import check_languages
from rrtf_serve.problems.judging import judge_file, read_results
from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.problem import Suite
from rrtf_serve.problems.prompts import render
from rrtf_serve.problems.samplers import Decoding
from rrtf_serve.problems.samples import open_alone
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sampling import SamplerConfig, open_sampler
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.options import SandboxOptions

# Settings that the default folder's name tells apart where they are not the usual ones, and how.
NAMED = {
    "top_p": "p",
    "max_tokens": "m",
    "seed": "s",
    "batch": "b",
    "prompt_spread": "spread",
    "dtype": "",
    "device": "",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One decoding of a protocol and the k that are read from it."""

    name: str
    format: str
    decoding: Decoding
    n: int
    ks: tuple[int, ...]


def paper_protocol(n: int = 200, max_tokens: int = 512, seed: int | None = None) -> list[Part]:
    """PanGu-Coder2's (arXiv 2307.14936, section 4.1): n = 200, top_p 0.95, docstring-first prompt;
    temperature 0.2 for pass@1, 1.2 for pass@10 and pass@100. The paper does not say how many tokens it
    allows. Raises ValueError on an n below 10, which leaves the second part without a figure."""
    if n < 10:
        raise ValueError(f"--n {n}: the paper's pass@10 needs at least 10 samples of every problem")
    if n < 100:
        log.warning("--n %d: the paper's pass@100 needs 100 samples of every problem and is left out", n)
    return [
        Part(
            f"t{t}", "docstring-first", Decoding(t, 0.95, max_tokens, seed), n, tuple(k for k in ks if k <= n)
        )
        for t, ks in ((0.2, (1,)), (1.2, (10, 100)))
    ]


@dataclass(frozen=True)
class PasskConfig:
    """Everything `rrtf-bench passk` can be told. Raises ValueError naming the flag.

    None: the protocol's own, else n 1, temperature 0 and top_p 1.
    """

    model: str
    suite: str
    engine: str = "ct2"
    url: str | None = None
    api_key: str | None = None
    format: str | None = None  # None: the protocol's own, else chat
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int = 512
    seed: int | None = None
    limit: int | None = None
    ks: tuple[int, ...] = ()  # empty: 1, and 10 and 100 where n allows
    protocol: str | None = None
    batch: int = 16  # rows decoded together (ct2), or requests at a time (http)
    prompt_spread: int = 16  # tokens by which the prompts of a batch may differ (ct2)
    threads: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the torch engine
    data_dir: Path | None = None
    output: Path | None = None

    def __post_init__(self) -> None:
        self.sampler()
        if self.protocol not in (None, "paper"):
            raise ValueError(f"--protocol {self.protocol}: the only one is 'paper'")
        given = {
            "--prompt": self.format, "--temperature": self.temperature, "--top-p": self.top_p,
            "--k": self.ks or None,
        }  # fmt: skip
        for flag, value in given.items():
            if self.protocol and value is not None:
                raise ValueError(f"{flag}: --protocol {self.protocol} sets it; leave one of the two out")

    def sampler(self) -> SamplerConfig:
        """What answers. Raises ValueError naming the flag."""
        return SamplerConfig(
            **{
                field.name: getattr(self, field.name)
                for field in fields(SamplerConfig)
                if field.name != "quantization"
            }
        )

    def parts(self) -> list[Part]:
        """Raises ValueError on a k that n has no samples for."""
        if self.protocol == "paper":
            return paper_protocol(200 if self.n is None else self.n, self.max_tokens, self.seed)
        n = 1 if self.n is None else self.n
        top_p = 1.0 if self.top_p is None else self.top_p
        decoding = Decoding(self.temperature or 0.0, top_p, self.max_tokens, self.seed)
        for k in self.ks:
            if not 1 <= k <= n:
                raise ValueError(f"--k {k}: must be from 1 to --n, which is {n}")
        ks = self.ks or tuple(k for k in (1, 10, 100) if k <= n)
        return [Part("", self.format or "chat", decoding, n, ks)]


def passk(config: PasskConfig, options: SandboxOptions) -> dict[str, Any]:
    """Sample, judge and report. Raises ValueError, ModelError, SamplerError, SandboxUnavailable; BusyError
    where another run has the folder."""
    suite = load_suite(config.suite, config.data_dir)
    parts = config.parts()
    runs = [(part, Run(suite, part.format, part.decoding, part.n, config.limit)) for part in parts]
    with ExitStack() as held:
        if any(problem.tests is None for problem in suite.problems.values()):
            head, folder, _ = _draw(config, suite, runs, held)
            return {**head, "samples_only": f"{suite.name} comes without tests; samples are in {folder}"}
        # First of all: hours of sampling must not end in "no sandbox here" or "no compiler here".
        sandbox = held.enter_context(options.open())
        check_languages(runs[0][1].problems)
        return _passk(config, suite, runs, sandbox, held)


def _draw(
    config: PasskConfig, suite: Suite, runs: list[tuple[Part, Run]], held: ExitStack
) -> tuple[dict[str, Any], Path, list[frozenset[str]]]:
    """What the report says of the model, the output folder, and the keys of each part's samples in it. The
    folder is this run's alone until `held` closes."""
    with open_sampler(config.sampler()) as sampler:
        folder = config.output or output_folder(config, sampler.model)
        for _, run in runs:  # what is refused leaves no folder behind
            sampler.check([render(problem, run.format) for problem in run.problems])
        held.enter_context(open_alone(folder / ".lock"))
        held.callback((folder / ".lock").unlink)
        keys = [draw(sampler, run, folder / part.name / "samples.jsonl") for part, run in runs]
        record = {"model": sampler.model, "model_digest": sampler.digest, "engine": config.engine}
        record |= sampler.settings() | {"sampler": sampler.provenance()}
    head = {"suite": suite.name, "suite_digest": suite.digest, **record, "limit": config.limit}
    return head, folder, keys


def _passk(
    config: PasskConfig, suite: Suite, runs: list[tuple[Part, Run]], sandbox: Sandbox, held: ExitStack
) -> dict[str, Any]:
    head, folder, keys = _draw(config, suite, runs, held)
    head["sandbox"] = sandbox.level.value
    reports = {}
    for (part, run), drawn in zip(runs, keys, strict=True):
        place = folder / part.name
        tally = judge_file(place / "samples.jsonl", suite, place / "results.jsonl", sandbox, only=drawn)
        tasks = [problem.task_id for problem in run.problems]
        reports[part.name] = {
            "prompt_format": part.format,
            "decoding": asdict(part.decoding),
            "n": part.n,
            **score(tally, tasks, gold.measure(suite, sandbox, tasks), part.ks),
            "cut_off_at_max_tokens": cut_off(each for _, each in json_lines(place / "results.jsonl")),
            "mean_tokens": mean_tokens(each for _, each in json_lines(place / "results.jsonl")),
            "per_problem": {task: {"samples": n, "passed": c} for task, (n, c) in tally.counts.items()},
            "ok": not tally.failed_by_sandbox,
        }
    single = reports[""] if list(reports) == [""] else {"parts": reports}
    report = {
        **head,
        **single,
        "ok": all(part["ok"] for part in reports.values()),
        "output": str(folder),
        "command": " ".join(["rrtf-bench", *sys.argv[1:]]),
        "machine": machine_record(),
    }
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (folder / "report.md").write_text(markdown(report, suite), "utf-8")
    return report


def output_folder(config: PasskConfig, model: str) -> Path:
    """One for each way of making samples, so that the next run with other settings is not refused."""
    first = config.parts()[0]
    source = f"http-{urlsplit(config.url).netloc}" if config.url else config.engine
    temperature = "" if config.protocol else f"-t{first.decoding.temperature:g}"
    others = [
        f"-{NAMED[field.name]}{value}"
        for field in fields(config)
        if field.name in NAMED and (value := getattr(config, field.name)) != field.default
    ]
    way = f"{config.protocol or first.format}-{source}{temperature}-n{first.n}{''.join(others)}"
    words = (config.suite, model, way)
    return Path(
        "rrtf-passk", *("".join(c if c.isalnum() or c in "-._" else "_" for c in word) for word in words)
    )


def compare_runs(first: Path, second: Path, k: int = 1) -> dict[str, Any]:
    """Two judged runs (folders of `passk`, or files of `judge`) over the problems that both have.

    Raises ValueError on files without common problems, or fewer than k samples of one.
    """
    counts_a, counts_b = (read_results(_results(path)).counts for path in (first, second))
    common = [task for task in counts_a if task in counts_b]
    if not common:
        raise ValueError(f"{first} and {second} have no problem in common")
    a, b = per_problem(counts_a, k), per_problem(counts_b, k)
    pairs_a, pairs_b = (
        [(counts[task][0], counts[task][1]) for task in common] for counts in (counts_a, counts_b)
    )
    found = compare(pairs_a, pairs_b, k)
    return {
        "a": str(first),
        "b": str(second),
        "k": k,
        **found.record(),
        "only_in_a": len(a) - len(common),
        "only_in_b": len(b) - len(common),
        "a_better": [task for task in common if a[task] > b[task]],
        "b_better": [task for task in common if b[task] > a[task]],
    }


def _results(path: Path) -> Path:
    if path.is_dir():
        if not (path / "results.jsonl").is_file():
            raise ValueError(f"{path}: holds no results.jsonl; name a part of it or a judged file")
        return path / "results.jsonl"
    return path


def markdown(report: dict[str, Any], suite: Suite) -> str:
    """The report as a page: what was run, scores, and every problem."""
    lines = [
        f"# {report['suite']}: {report['model']}",
        "",
        f"`{report['command']}`",
        "",
        f"Suite digest {report['suite_digest']}, model digest {report['model_digest']}, "
        f"{_listed(report['sampler'])}, sandbox {report.get('sandbox')}.",
    ]
    for name, part in (report.get("parts") or {"": report}).items():
        lines += ["", f"## {name or 'Scores'}", "", *_part_lines(part, list(suite.problems))]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join([*lines, "", f"Machine: {machine}", ""])


def _listed(record: dict[str, Any]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record.items())


def _part_lines(part: dict[str, Any], order: Sequence[str]) -> list[str]:
    decoding = ", ".join(f"{key} {value}" for key, value in part["decoding"].items() if value is not None)
    lines = [f"Prompt format `{part['prompt_format']}`; {decoding}; n = {part['n']}.", ""]
    lines += ["| score | value | 95 % interval | problems |", "|---|---|---|---|"]
    for name, found in part["scores"].items():
        passed = f" ({found['passed']} passed)" if "passed" in found else ""
        low, high = found["interval"]["low"], found["interval"]["high"]
        method = found["interval"]["method"]
        lines.append(
            f"| {name} | {found['value']:.2%}{passed} | {low:.1%} to {high:.1%}, {method} | "
            f"{found['problems']} |"
        )
    results = ", ".join(f"{word}: {count}" for word, count in part["results"].items())
    lines += ["", f"Samples by result: {results}."]
    for key in ("excluded_because_their_reference_fails", "without_samples", "failed_by_the_sandbox"):
        if part[key]:
            lines += ["", f"{key.replace('_', ' ').capitalize()}: {', '.join(part[key])}."]
    lines += ["", "| problem | passed | samples |", "|---|---|---|"]
    counts = part["per_problem"]
    return lines + [f"| {t} | {counts[t]['passed']} | {counts[t]['samples']} |" for t in order if t in counts]
