"""`rrtf-train judge`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from training.commands.options import (
    Commands,
    add_data_dir,
    default_of,
    given,
    make_parser,
    print_report,
    show_warnings,
)
from training.judge import JudgeOptions, judge

_EXAMPLES = """\
examples:
  rrtf-train judge RUN
  rrtf-train judge RUN --workers 8 --site-packages ./packages    what the problems' solutions import
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "judge",
        summary="run the tests of drawn answers in the sandbox",
        description="Judge all that RUN/samples holds into RUN/judged; what was judged before is not judged "
        "again. Exit status 1: the sandbox itself failed on some answers; they are named and not ranked.",
        examples=_EXAMPLES,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of the run")
    add_judging(parser)
    add_data_dir(parser)
    parser.set_defaults(run=_run)


def add_judging(parser: argparse.ArgumentParser) -> None:
    """The flags of JudgeOptions."""
    option = parser.add_argument
    option("--sandbox", metavar="LEVEL", help="default: RRTF_SANDBOX, else the strongest that works here")
    option("--workers", type=int, metavar="N", help="programmes at a time (default: one per core)")
    option(
        "--site-packages",
        type=Path,
        action="append",
        metavar="DIR",
        help="what answers may import besides the standard library",
    )
    option(
        "--retries",
        type=int,
        metavar="N",
        help=f"of answers that the sandbox failed (default: {default_of(JudgeOptions, 'retries')})",
    )


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    options = JudgeOptions(**given(arguments, JudgeOptions))
    report = judge(arguments.folder, options, getattr(arguments, "data_dir", None))
    print_report(report, lines_of(report), as_json=arguments.json)
    return status_of(report)


def status_of(report: dict[str, Any]) -> int:
    """1 where answers are without a verdict."""
    return 1 if any(each["failed_by_the_sandbox"] for each in report["files"].values()) else 0


def lines_of(report: dict[str, Any]) -> list[str]:
    """A line for each file, and one for the problems that were dropped."""
    lines = [
        f"{stem}: {each['passed']} of {each['samples']} answers pass, {each['solved']} of "
        f"{each['problems']} problems solved, {len(each['failed_by_the_sandbox'])} failed by the "
        f"sandbox, {each['seconds']:.0f} s"
        for stem, each in report["files"].items()
    ]
    if report["dropped"]:
        lines.append(f"dropped, their references fail here: {', '.join(report['dropped'])}")
    return lines
