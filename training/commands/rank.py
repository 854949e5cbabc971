"""`rrtf-train rank`."""

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
from training.rank import LEVELS, REJECTED_PICKS, TEACHER_PICKS, RankOptions, rank

_EXAMPLES = """\
examples:
  rrtf-train rank RUN                                               the paper's reading, to RUN/tuples.jsonl
  rrtf-train rank RUN -o RUN/alone.jsonl --chosen-from student      without teachers
  rrtf-train rank RUN -o RUN/all.jsonl --rejected-from all --pairs-per-prompt 4
  rrtf-train rank RUN -o RUN/round2.jsonl --sources student-2 big   a second round's own answers
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "rank",
        summary="rank judged answers into tuples to train on",
        description="Rank what RUN/judged holds into tuples, with their statistics beside them "
        "(TUPLES.stats.json).",
        examples=_EXAMPLES,
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="TUPLES", help="file to write (default: RUN/tuples.jsonl)"
    )
    add_ranking(parser)
    add_data_dir(parser)
    parser.set_defaults(run=_run)


def add_ranking(parser: argparse.ArgumentParser) -> None:
    """The flags of RankOptions."""

    def option(name: str, text: str, **settings: Any) -> None:
        field = name.strip("-").replace("-", "_")
        parser.add_argument(name, help=f"{text} (default: {default_of(RankOptions, field)})", **settings)

    option(
        "--level-scores",
        "of the four levels, from low to high",
        type=float,
        nargs=4,
        metavar=("C", "R", "P", "A"),
    )
    option(
        "--partial-share",
        "a partial pass scores by its share of tests, up towards a full one",
        action=argparse.BooleanOptionalAction,
    )
    option("--tie-gap", "weight of a pair at one level; 0: no such pairs", type=float, metavar="GAP")
    option("--pairs-per-prompt", "the paper: one", type=int, metavar="N")
    option("--teacher-answers", "different chosen answers in those pairs", type=int, metavar="N")
    option("--teacher-pick", "which of the best answers is chosen", choices=TEACHER_PICKS)
    option("--rejected-pick", "which of the answers below", choices=REJECTED_PICKS)
    option("--chosen-from", "whose answers may be chosen", choices=("teacher", "student", "all"))
    option("--rejected-from", "whose answers may be rejected", choices=("student", "all"))
    option("--chosen-status", "least that is chosen", choices=[level.name for level in LEVELS])
    option(
        "--drop-below-student",
        "drop problems whose best teacher is below the student",
        action=argparse.BooleanOptionalAction,
    )
    parser.add_argument("--sources", nargs="+", metavar="NAME", help="only these sources (default: all)")
    option("--seed", "of what is picked at random", type=int)


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    options = RankOptions(**given(arguments, RankOptions))
    out = getattr(arguments, "output", None)
    report = rank(arguments.folder, options, out, getattr(arguments, "data_dir", None))
    print_report(report, lines_of(report), as_json=arguments.json)
    return 0


def lines_of(report: dict[str, Any]) -> list[str]:
    """The statistics as a table, and what became of the problems."""
    levels = [level.name for level in LEVELS]
    head = [
        "source",
        "role",
        "answers",
        *(name.lower().replace("_", " ") for name in levels),
        "pass@1",
        "solved",
    ]
    rows = [head]
    for name, each in report["sources"].items():
        rate = "-" if each["pass@1"] is None else f"{100 * each['pass@1']:.1f} %"
        counts = [str(each["levels"][level]) for level in levels]
        solved = f"{each['solved']}/{each['problems']}"
        rows.append([name, each["role"], str(each["samples"]), *counts, rate, solved])
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    lines = ["  ".join(row).rstrip() for row in cells]
    for name, each in report["sources"].items():
        out = ", ".join(f"{count} {why}" for why, count in each["left_out"].items())
        if out:
            lines.append(f"{name}: left out {out}")
    lines += [f"dropped {each['problems']}: {why}" for why, each in report["dropped"].items()]
    lines.append(
        f"{report['tuples_file']}: {report['tuples']} tuples, {report['pairs']} pairs "
        f"({report['ties']} ties), {report['without_rejected']} tuples without a rejected answer"
    )
    return lines
