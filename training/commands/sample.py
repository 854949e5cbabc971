"""`rrtf-train sample`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rrtf_serve.problems.prompts import FORMATS
from training.commands.options import (
    Commands,
    add_data_dir,
    default_of,
    given,
    make_parser,
    print_report,
    show_warnings,
)
from training.problem_sets import TRAINABLE
from training.records import ROLES
from training.sample import SampleOptions, sample
from training.sources import ENGINES, KINDS, Source

_EXAMPLES = """\
examples:
  rrtf-train sample RUN --problems mbpp-stubs-train --name small --role student --model smollm2-135m-instruct
  rrtf-train sample RUN --problems mbpp-stubs-train --name big --role teacher \\
      --model qwen2.5-coder-1.5b-instruct --k 4 --temperatures 0.2 0.8
  rrtf-train sample RUN --problems mbpp-stubs-train --name experts --role teacher --kind reference
  MY_KEY=... rrtf-train sample RUN --problems mine.jsonl --name far --role teacher --kind url \\
      --url https://host/v1 --model big-coder --api-key-env MY_KEY --batch 32

one source a call; several, and all other stages, go into one file: rrtf-train run --help
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "sample",
        summary="draw answers from a student or a teacher",
        description="Draw answers to problems from one source into RUN/samples. The same command goes on "
        "after a stop.",
        examples=_EXAMPLES,
    )
    option = parser.add_argument
    option("folder", metavar="RUN", type=Path, help="folder of the run")
    option(
        "--problems",
        nargs="+",
        required=True,
        metavar="SET",
        help=f"{', '.join(TRAINABLE)}, or files of problems",
    )
    option("--name", required=True, help="of the source; its files are named after it")
    option("--role", required=True, choices=ROLES, help="of the source")
    option("--kind", choices=KINDS, help=f"of the source (default: {default_of(Source, 'kind')})")
    option("--model", metavar="SPEC", help="a model; with --url a name that it serves")
    option("--engine", choices=ENGINES, help=f"(default: {default_of(Source, 'engine')})")
    option("--url", help="server with OpenAI's API")
    option("--api-key-env", metavar="NAME", help="environment variable that holds the URL's key")
    option("--k", type=int, help=f"answers at each temperature (default: {default_of(Source, 'k')})")
    option(
        "--temperatures",
        nargs="+",
        type=float,
        metavar="T",
        help=f"0 is greedy, one answer (default: {default_of(Source, 'temperatures')})",
    )
    option("--top-p", type=float, metavar="P", help=f"(default: {default_of(Source, 'top_p')})")
    option(
        "--max-tokens",
        type=int,
        metavar="N",
        help=f"of an answer (default: {default_of(Source, 'max_tokens')})",
    )
    option("--seed", type=int, help=f"of the first answer (default: {default_of(Source, 'seed')})")
    option(
        "--format",
        choices=tuple(FORMATS),
        help=f"prompt that the student is trained on (default: {default_of(SampleOptions, 'format')})",
    )
    option("--limit", type=int, metavar="N", help="only the first problems of each set")
    option(
        "--batch",
        type=int,
        metavar="N",
        help=f"answers made together, or requests at a time (default: {default_of(Source, 'batch')})",
    )
    option("--threads", type=int, metavar="N", help="of the engine (default: one per core)")
    option("--device", choices=("auto", "cpu", "cuda"), help=f"(default: {default_of(Source, 'device')})")
    option("--dtype", help="of the torch engine")
    option("--quantization", metavar="TYPE", help=f"of ct2 (default: {default_of(Source, 'quantization')})")
    add_data_dir(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    values = given(arguments, Source)
    values.pop("format", None)  # the run's: a source of one call has no other
    if "url" in values:
        values.setdefault("kind", "url")
    options = SampleOptions(**given(arguments, SampleOptions), sources=(Source(**values),))
    report = sample(options, arguments.folder)
    print_report(report, lines_of(report), as_json=arguments.json)
    return 0


def lines_of(report: dict[str, Any]) -> list[str]:
    """A line for each file."""
    lines = []
    for stem, each in report.items():
        speed = ""
        if each.get("samples"):
            speed = (
                f"; {each['samples']} new in {each['seconds']:.0f} s: "
                f"{each['samples_per_second']:.2f} answers/s, {each['tokens_per_second']:.0f} tokens/s"
            )
        lines.append(f"{stem} ({each['role']}): {each['total']} answers of {each['model']}{speed}")
    return lines
