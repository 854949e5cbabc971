"""`rrtf-train evolve`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rrtf_serve.sampling import ENGINES, SamplerConfig, open_sampler
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
from training.evolution import METHODS
from training.evolution_rules import Limits
from training.evolve import EvolveOptions, evolve
from training.seeds import Seed, read_seeds

_EXAMPLES = """\
examples:
  rrtf-train evolve evolved --seeds code_alpaca_2k.json --model qwen2.5-coder-1.5b-instruct
  rrtf-train evolve evolved --seeds mbpp-train leetcode-fit --model qwen2.5-coder-1.5b-instruct --rounds 4
  MY_KEY=... rrtf-train evolve evolved --seeds mine.jsonl --licence MIT --url https://host/v1 \\
      --model big-coder --api-key-env MY_KEY --batch 32

then: rrtf-train clean evolved/tasks.jsonl -o tasks.jsonl
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "evolve",
        summary="make harder tasks out of tasks",
        description="Evolve tasks, round by round, into FOLDER/tasks.jsonl: words without tests, each with "
        "its licence and lineage. The same command goes on after a stop.",
        examples=_EXAMPLES,
    )
    option = parser.add_argument
    option("folder", metavar="FOLDER", type=Path, help="folder to write")
    option(
        "--seeds",
        nargs="+",
        required=True,
        metavar="SRC",
        help="task files, CodeAlpaca files, suites to train on",
    )
    option("--licence", default="", help="of seeds that name none (CodeAlpaca's is known)")
    option("--limit", type=int, metavar="N", default=None, help="only the first seeds of each source")
    option("--model", metavar="SPEC", default="", help="the evolver; with --url a name that it serves")
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
    for name, kind in (
        ("rounds", int), ("lines", int), ("seed", int), ("temperature", float), ("top_p", float),
        ("max_tokens", int),
    ):  # fmt: skip
        flag = f"--{name.replace('_', '-')}"
        option(
            flag, type=kind, metavar="N", help=f"{_HELP[name]}(default: {default_of(EvolveOptions, name)})"
        )
    option("--methods", nargs="+", choices=tuple(METHODS), help="(default: all)")
    for name in ("shortest", "longest", "slack_words", "most_words", "near_parent", "near"):
        default = default_of(Limits, name)
        kind = int if name.endswith("words") else float
        option(
            f"--{name.replace('_', '-')}", type=kind, metavar="X", help=f"{_HELP[name]} (default: {default})"
        )
    add_data_dir(parser)
    parser.set_defaults(run=_run)


_HELP = {
    "rounds": "",
    "lines": "independent descents of each seed ",
    "seed": "of the draws of methods and of the answers ",
    "temperature": "",
    "top_p": "",
    "max_tokens": "of an answer ",
    "shortest": "least words of a task, by its parent's",
    "longest": "most words, by its parent's",
    "slack_words": "or as many more than its parent",
    "most_words": "of any task",
    "near_parent": "Jaccard from which a task is its parent",
    "near": "Jaccard from which two tasks are one",
}


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    if not (arguments.model or "url" in arguments):
        raise ValueError("--model (or --url) is missing: something has to write the tasks")
    options = EvolveOptions(**given(arguments, EvolveOptions), limits=Limits(**given(arguments, Limits)))
    if arguments.limit is not None and arguments.limit < 1:
        raise ValueError(f"--limit must be at least 1, not {arguments.limit}")
    seeds: list[Seed] = []
    for source in arguments.seeds:
        seeds += read_seeds(source, arguments.licence, getattr(arguments, "data_dir", None))[
            : arguments.limit
        ]
    with open_sampler(_evolver(arguments)) as sampler:
        report = evolve(seeds, sampler, arguments.folder, options)
    print_report(report, _lines(report, arguments.folder), as_json=arguments.json)
    return 0


def _evolver(arguments: argparse.Namespace) -> SamplerConfig:
    values = given(arguments, SamplerConfig)
    if "url" in values:
        values["engine"] = "http"
    if key := api_key(arguments.api_key_env):
        values["api_key"] = key
    return SamplerConfig(**values)


def _lines(report: dict[str, Any], folder: Path) -> list[str]:
    lines = [
        f"{report['fit_seeds']} of {report['seeds']} seeds were fit; not: {_counts(report['unfit_seeds'])}"
    ]
    for each in report["rounds"]:
        rest = {name: count for name, count in each.items() if name not in ("round", "asked", "accepted")}
        lines.append(
            f"round {each['round']}: {each.get('accepted', 0)} of {each['asked']} accepted; {_counts(rest)}"
        )
    return [
        *lines,
        f"{folder / 'tasks.jsonl'}: {report['tasks']} tasks; licences: {_counts(report['licences'])}",
    ]


def _counts(counts: dict[str, int]) -> str:
    return (
        ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
        or "none"
    )
