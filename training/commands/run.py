"""`rrtf-train run`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.commands import judge, rank, sample
from training.commands.options import Commands, make_parser, print_report, show_warnings
from training.config import STAGES, read_config
from training.run import run

_EXAMPLES = """\
examples:
  rrtf-train run run.toml                                  all stages; the same command goes on after a stop
  rrtf-train run run.toml --set rank.tie_gap=0 -o runs/no-ties
  rrtf-train run run.toml --set source.student.k=16 --redo sample

a file:
  folder = "runs/first"
  problems = ["mbpp-stubs-train", "leetcode-fit"]

  [[source]]
  name = "student"
  role = "student"
  model = "smollm2-135m-instruct"

  [[source]]
  name = "experts"
  role = "teacher"
  kind = "reference"

  [rank]
  pairs_per_prompt = 2
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "run",
        summary="all stages of one file",
        description="Do the stages that a file describes, each once. The same command goes on after a stop; "
        "a stage that was begun with other settings is refused.",
        examples=_EXAMPLES,
    )
    parser.add_argument("config", metavar="FILE", type=Path, help="TOML file")
    parser.add_argument(
        "-o", "--output", metavar="RUN", type=Path, help="folder of the run (default: the file's folder)"
    )
    parser.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key: limit=20, rank.tie_gap=0, source.student.k=16",
    )
    parser.add_argument(
        "--redo", choices=STAGES, help="do this stage and what follows again; what is there is kept aside"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    config = read_config(arguments.config, arguments.settings, getattr(arguments, "output", None))
    report = run(config, getattr(arguments, "redo", None), _say)
    lines = [
        *sample.lines_of(report["sample"]),
        *judge.lines_of(report["judge"]),
        *rank.lines_of(report["rank"]),
    ]
    print_report(report, lines, as_json=arguments.json)
    return judge.status_of(report["judge"])


def _say(line: str) -> None:
    print(f"rrtf-train: {line}", file=sys.stderr, flush=True)
