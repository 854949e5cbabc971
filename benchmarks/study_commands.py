"""`rrtf-bench study` and `study-report`: flags in, a report out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.study import KEEPS, read_plan, study
from benchmarks.study_report import markdown, report

EXAMPLES = """\
examples:
  rrtf-bench study docs/studies/135m/plan.toml -o study-135m --jobs 2
  rrtf-bench study docs/studies/135m/plan.toml -o study-135m --only sft rrtf-s1
  rrtf-bench study-report study-135m/results --against base sft --pooled humaneval mbpp-test
"""


def add_study(command: Any) -> None:
    """`command(name, text, run, sandbox=False)` makes a parser; see benchmarks.cli."""
    one = command("study", "train a plan of runs and score each; goes on where it was", _study, sandbox=False)
    _with_examples(one)
    one.add_argument("plan", type=Path, metavar="PLAN.toml", help="what to train and to score")
    one.add_argument("--output", "-o", type=Path, required=True, help="folder")
    one.add_argument("--only", nargs="+", default=[], metavar="RUN", help="runs by name, or with -sSEED")
    one.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    one.add_argument(
        "--keep", choices=KEEPS, default="nothing", help="of what was trained (default: nothing)"
    )

    one = command("study-report", "tables of a study's results", _report, sandbox=False)
    _with_examples(one)
    one.add_argument("results", type=Path, metavar="FOLDER", help="OUTPUT/results of a study")
    one.add_argument("--against", nargs="+", default=["base"], metavar="RUN", help="default: base")
    one.add_argument("--pooled", nargs="+", default=[], metavar="SUITE", help="default: all suites")
    one.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there as well")


def _with_examples(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = EXAMPLES, argparse.RawDescriptionHelpFormatter


def _study(arguments: argparse.Namespace) -> dict[str, Any]:
    return study(
        read_plan(arguments.plan),
        arguments.output,
        only=arguments.only,
        jobs=arguments.jobs,
        keep=arguments.keep,
    )


def _report(arguments: argparse.Namespace) -> dict[str, Any]:
    found = report(arguments.results, arguments.pooled, arguments.against)
    text = markdown(found)
    if arguments.markdown:
        arguments.markdown.write_text(text, "utf-8")
    if arguments.json:
        return found
    print(text)
    return {}
