"""`rrtf-bench teacher-check`: is a teacher better than the student, on problems that may be chosen by?

The first experiment before any training: RRTF learns from problems that a teacher solves better than the
student, so a teacher that is not better teaches nothing. Every model answers the same problems in the same
way; each teacher is compared with the student problem by problem.

OUTPUT/NAME/              a folder of `rrtf-bench passk` for each model; a stopped check goes on where it was
OUTPUT/teacher-check.json the report;  OUTPUT/teacher-check.md  the same as a page
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from benchmarks.passk import PasskConfig, compare_runs, passk
from rrtf_serve.problems.estimator import wilson_interval
from rrtf_serve.problems.evaluate import per_problem
from rrtf_serve.problems.judging import read_results
from rrtf_serve.problems.suites import SUITES, load_suite
from rrtf_serve.sampling import ENGINES
from rrtf_serve.sandbox.options import SandboxOptions
from training.problem_sets import TRAINABLE, VALIDATION
from training.sample import write_json

STUDENT = "student"
Say = Callable[[str], None]


@dataclass(frozen=True)
class TeacherCheckConfig:
    """What is compared on what. Raises ValueError naming the flag.

    A model is a spec (name, repository, file or folder) or the address of an OpenAI-compatible server.
    """

    student: str
    teachers: tuple[str, ...]
    suite: str = "mbpp-stubs-validation"
    engine: str = "ct2"  # of the models that are no address
    format: str = "chat"
    n: int = 1
    temperature: float = 0.0
    top_p: float = 0.95
    max_tokens: int = 512
    seed: int = 0
    limit: int | None = None
    batch: int = 16
    threads: int = 0
    device: str = "auto"
    data_dir: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    output: Path = Path("rrtf-teacher-check")

    def __post_init__(self) -> None:
        if self.suite in SUITES and self.suite not in (*VALIDATION, *TRAINABLE):
            raise ValueError(
                f"--suite {self.suite}: is a test, and a teacher is a choice; take "
                f"{', '.join((*VALIDATION, *TRAINABLE))}, or a file"
            )
        if not self.teachers:
            raise ValueError("--teacher: name at least one model")
        if len({self.student, *self.teachers}) <= len(self.teachers):
            raise ValueError("--teacher: each model once, and none of them the student")
        if self.engine not in ENGINES or self.engine == "http":
            raise ValueError(f"--engine {self.engine}: must be ct2 or torch; an address needs none")
        for _, config in self.runs():
            config.parts()

    def names(self) -> dict[str, str]:
        """Of the folders -> the models, the student first."""
        found = {STUDENT: self.student}
        for number, teacher in enumerate(self.teachers, 1):
            short = re.sub(r"[^A-Za-z0-9._-]+", "-", teacher.rstrip("/").rpartition("/")[2]).strip("-")
            found[f"teacher-{number}-{short}" if short else f"teacher-{number}"] = teacher
        return found

    def runs(self) -> list[tuple[str, PasskConfig]]:
        """Each model's, by the name of its folder. Raises ValueError naming the flag."""
        greedy = self.temperature == 0
        return [
            (
                name,
                PasskConfig(
                    model="" if _is_address(model) else model,
                    suite=self.suite,
                    engine="http" if _is_address(model) else self.engine,
                    url=model if _is_address(model) else None,
                    api_key=self.api_key if _is_address(model) else None,
                    format=self.format,
                    n=self.n,
                    temperature=self.temperature,
                    top_p=1.0 if greedy else self.top_p,
                    max_tokens=self.max_tokens,
                    seed=None if greedy else self.seed,
                    limit=self.limit,
                    ks=(1,),
                    batch=self.batch,
                    threads=self.threads,
                    device=self.device,
                    data_dir=self.data_dir,
                    output=self.output / name,
                ),
            )
            for name, model in self.names().items()
        ]


def _is_address(model: str) -> bool:
    return model.startswith(("http://", "https://"))


def teacher_check(
    config: TeacherCheckConfig, options: SandboxOptions, say: Say = lambda _: None
) -> dict[str, Any]:
    """Sample and judge every model, compare each teacher with the student; the report.

    Raises what `passk` raises; ValueError on a suite without tests.
    """
    suite = load_suite(config.suite, config.data_dir)
    untested = [problem.task_id for problem in suite.problems.values() if problem.tests is None]
    if untested:
        raise ValueError(f"--suite {config.suite}: {untested[0]} has no tests, so nothing can be compared")
    asked = min(len(suite.problems), config.limit or len(suite.problems))
    say(f"{asked} problems of {suite.name}, {config.n} answers each, of {1 + len(config.teachers)} models")
    reports: dict[str, dict[str, Any]] = {}
    for name, run in config.runs():
        say(f"{name}: {config.names()[name]} ...")
        reports[name] = passk(run, options)
    found = {
        "suite": suite.name,
        "suite_digest": suite.digest,
        "prompt_format": config.format,
        "decoding": reports[STUDENT]["decoding"],
        "n": config.n,
        "models": {name: _score(reports[name]) for name in reports},
        **compared(config.output, [name for name in reports if name != STUDENT]),
        "ok": all(report["ok"] for report in reports.values()),
        "machine": machine_record(),
    }
    write_json(config.output / "teacher-check.json", found)
    (config.output / "teacher-check.md").write_text(markdown(found), "utf-8")
    return found


def _score(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": report["model"],
        "digest": report["model_digest"],
        "engine": report["engine"],
        "pass@1": report["scores"].get("pass@1"),
        "cut_off_at_max_tokens": report["cut_off_at_max_tokens"],
        "mean_tokens": report["mean_tokens"],
    }


def compared(folder: Path, teachers: list[str]) -> dict[str, Any]:
    """The part of the report that follows from the judged files alone.

    A problem counts where all models have answers. "below_student": those whose best teacher passes less
    often than the student, which `rrtf-train rank` drops. Raises ValueError where models share no problem.
    """
    rates = {
        name: per_problem(read_results(folder / name / "results.jsonl").counts, 1)
        for name in (STUDENT, *teachers)
    }
    tasks = [task for task in rates[STUDENT] if all(task in rates[name] for name in teachers)]
    if not tasks:
        raise ValueError(f"{folder}: the models have no problem in common")
    best = {task: max(rates[name][task] for name in teachers) for task in tasks}
    below = [task for task in tasks if best[task] < rates[STUDENT][task]]
    low, high = wilson_interval(len(below), len(tasks))
    return {
        "teachers": {name: _verdict(folder, name) for name in teachers},
        "problems": len(tasks),
        "solved_by": {
            "both": sum(rates[STUDENT][task] > 0 and best[task] > 0 for task in tasks),
            "a teacher alone": sum(rates[STUDENT][task] == 0 < best[task] for task in tasks),
            "the student alone": sum(best[task] == 0 < rates[STUDENT][task] for task in tasks),
            "nobody": sum(best[task] == 0 == rates[STUDENT][task] for task in tasks),
        },
        "below_student": {
            "problems": below,
            "share": len(below) / len(tasks),
            "interval": {"low": low, "high": high, "method": "wilson"},
        },
        "per_problem": {task: {name: found[task] for name, found in rates.items()} for task in tasks},
    }


def _verdict(folder: Path, teacher: str) -> dict[str, Any]:
    found = compare_runs(folder / STUDENT, folder / teacher)
    low, high = found["interval"]["low"], found["interval"]["high"]
    word = "better" if low > 0 else "worse" if high < 0 else "not resolved"
    return {"is": word, **found}


def markdown(report: dict[str, Any]) -> str:
    """The report as a page."""
    decoding = ", ".join(f"{key} {value}" for key, value in report["decoding"].items() if value is not None)
    lines = [
        f"# Teachers and student on {report['suite']}",
        "",
        f"Prompt format `{report['prompt_format']}`; {decoding}; n = {report['n']}; "
        f"{report['problems']} problems.",
        "",
        "| model | pass@1 | 95 % interval | against the student | 95 % interval | p | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, model in report["models"].items():
        score = model["pass@1"]
        own = f"{score['value']:.1%} | {_span(score['interval'])}" if score else "nothing scored | "
        other = report["teachers"].get(name)
        against = (
            f"{other['difference']:+.1%} | {_span(other['interval'])} | {other['p_value']:.3g} | "
            f"{other['is']}"
            if other
            else " | | |"
        )
        lines.append(f"| {name}: {model['model']} | {own} | {against} |")
    below = report["below_student"]
    solved = ", ".join(f"{who} {count}" for who, count in report["solved_by"].items())
    names = list(report["models"])
    lines += [
        "",
        f"Solved at least once by: {solved}.",
        "",
        f"Problems whose best teacher is below the student: {len(below['problems'])} of {report['problems']} "
        f"({below['share']:.1%}, {_span(below['interval'])}); `rrtf-train rank` drops such problems.",
        "",
        f"| problem | {' | '.join(names)} |",
        f"|---{'|---' * len(names)}|",
    ]
    for task, rates in report["per_problem"].items():
        lines.append(f"| {task} | {' | '.join(f'{rates[name]:g}' for name in names)} |")
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join([*lines, "", f"Machine: {machine}", ""])


def _span(interval: dict[str, Any]) -> str:
    return f"{interval['low']:.1%} to {interval['high']:.1%}"
