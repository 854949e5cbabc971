"""`rrtf-train tests`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rrtf_serve.problems.suites import SUITES, load_suite
from rrtf_serve.sampling import ENGINES, SamplerConfig, open_sampler
from rrtf_serve.sandbox.options import SandboxOptions
from training.agreed_tests import Source, TestOptions, write_tests
from training.agreement import Rule
from training.commands.options import (
    Commands,
    add_data_dir,
    api_key,
    default_of,
    given,
    make_parser,
    print_report,
    show_warnings,
)
from training.hidden_tests import compare, hide_tests
from training.problem_files import LICENCES
from training.proposals import read_tasks
from training.sample import write_json

_EXAMPLES = """\
examples:
  rrtf-train tests tasks.jsonl -o tested --model qwen2.5-coder-1.5b-instruct
  rrtf-train tests tasks.jsonl -o tested --model qwen2.5-coder-1.5b-instruct qwen2.5-coder-0.5b-instruct
  MY_KEY=... rrtf-train tests tasks.jsonl -o tested --url https://host/v1 --model big-coder \\
      --api-key-env MY_KEY
  rrtf-train tests --hidden mbpp-train -o check --limit 40 --model qwen2.5-coder-0.5b-instruct
                                                 how good such tests are, held against a suite's own

then: rrtf-train sample RUN --problems tested/problems.jsonl ...
"""

_NUMBERS: dict[str, tuple[type, str]] = {
    "solutions": (int, "of each model for each task"),
    "temperature": (float, "of solutions and calls"),
    "top_p": (float, "of both"),
    "max_tokens": (int, "of each answer"),
    "call_answers": (int, "answers of the first model that propose calls"),
    "calls_asked": (int, "calls wanted in each"),
    "most_calls": (int, "calls tried for one task"),
    "seed": (int, "of the first answer"),
}
_RULE: dict[str, tuple[type, str]] = {
    "least_programmes": (int, "distinct solutions that a task must have"),
    "majority": (float, "share of them that must return a call's value"),
    "least_agreeing": (int, "of them that must return every kept value"),
    "least_tests": (int, "tests that a task must get"),
    "most_tests": (int, "tests that it gets at most"),
}


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "tests",
        summary="tasks without tests get them where independent solutions agree",
        description="The first model proposes a header and calls for each task, all models write solutions, "
        "the sandbox runs them, and the values that a majority of distinct solutions returns become the "
        "tests: FOLDER/problems.jsonl, the rest with reasons in FOLDER/dropped.jsonl. The same command goes "
        "on after a stop. Exit status 1: no task got tests.",
        examples=_EXAMPLES,
    )
    option = parser.add_argument
    option("tasks", metavar="TASKS", type=Path, nargs="?", default=None, help="tasks file")
    option("-o", "--output", metavar="FOLDER", type=Path, required=True, help="folder to write")
    option(
        "--hidden",
        metavar="SUITE",
        default=None,
        help="instead of TASKS: a suite whose tests are hidden, then compared",
    )
    option(
        "--shown",
        type=int,
        metavar="N",
        default=1,
        help="with --hidden: assertions that the task shows as examples (default: 1)",
    )
    option("--limit", type=int, metavar="N", default=None, help="only the first tasks")
    option(
        "--model",
        metavar="SPEC",
        nargs="+",
        default=[],
        help="models, the teacher first; with --url names there",
    )
    option("--engine", choices=[each for each in ENGINES if each != "http"], help="(default: ct2)")
    option("--url", help="server with OpenAI's API")
    option("--api-key-env", metavar="NAME", default="", help="environment variable that holds the URL's key")
    option(
        "--batch",
        type=int,
        metavar="N",
        help=f"answers at a time (default: {default_of(SamplerConfig, 'batch')})",
    )
    option("--threads", type=int, metavar="N", help="of the engine (default: one per core)")
    option("--device", choices=("auto", "cpu", "cuda"), help="(default: auto)")
    option("--dtype", help="of the torch engine")
    option("--quantization", metavar="TYPE", help="of ct2 (default: int8)")
    for kind, numbers in ((TestOptions, _NUMBERS), (Rule, _RULE)):
        for name, (number, what) in numbers.items():
            flag = f"--{name.replace('_', '-')}"
            option(flag, type=number, metavar="N", help=f"{what} (default: {default_of(kind, name)})")
    option("--sandbox", metavar="LEVEL", default=None, help="default: the strongest that works here")
    option("--workers", type=int, metavar="N", default=None, help="programmes at a time")
    add_data_dir(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    if (arguments.tasks is None) == (arguments.hidden is None):
        raise ValueError("give either TASKS or --hidden SUITE")
    options = TestOptions(**given(arguments, TestOptions), rule=Rule(**given(arguments, Rule)))
    sources = _sources(arguments)
    if arguments.hidden in SUITES and arguments.hidden not in LICENCES:
        raise ValueError(
            f"--hidden {arguments.hidden}: not a suite to train on; those are {', '.join(LICENCES)}"
        )
    suite = load_suite(arguments.hidden, getattr(arguments, "data_dir", None)) if arguments.hidden else None
    tasks = read_tasks(arguments.tasks) if suite is None else hide_tests(suite, shown=arguments.shown)
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {arguments.limit}")
    sandbox = SandboxOptions(arguments.sandbox, arguments.workers)
    folder: Path = arguments.output
    with sandbox.open() as one, sandbox.open() as other:
        report = write_tests(tasks[: arguments.limit], sources, options, (one, other), folder)
        lines = _lines(report)
        if suite is not None and report["problems"]:
            report["hidden"] = compare(folder, suite, [source.name for source in sources], one)
            write_json(folder / "report.json", report)
            lines += _hidden_lines(report["hidden"])
    print_report(report, lines, as_json=arguments.json)
    return 0 if report["problems"] else 1


def _sources(arguments: argparse.Namespace) -> list[Source]:
    key = api_key(arguments.api_key_env)
    settings = given(arguments, SamplerConfig)
    settings.pop("model", None)
    if "url" in settings:
        settings |= {"engine": "http", "api_key": key}
    models: Sequence[str] = arguments.model or ([""] if "url" in settings else [])
    if not models:
        raise ValueError("--model: names no model; give at least one, or --url")
    return [
        Source(_name(model), partial(open_sampler, SamplerConfig(model=model, **settings)))
        for model in models
    ]


def _name(model: str) -> str:
    """Of a sample file, from a model's spec."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model"


def _lines(report: dict[str, Any]) -> list[str]:
    return [
        f"{report['problems']} of {report['tasks']} tasks got {report['tests']} tests",
        *(f"  dropped, {reason}: {count}" for reason, count in report["dropped"].items()),
        f"problems in {report['output']}",
    ]


def _hidden_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"held against the suite's own tests, {found['problems']} problems:"]
    for name, share in found.items():
        if isinstance(share, dict):
            low, high = share["low"], share["high"]
            lines.append(
                f"  {name.replace('_', ' ')}: {share['count']} of {share['of']} [{low:.1%}, {high:.1%}]"
            )
    return lines
