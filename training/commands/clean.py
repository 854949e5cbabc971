"""`rrtf-train clean`: keep what may be trained on."""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from training.clean import CleanOptions, beside, clean
from training.contamination import BENCHMARKS, Thresholds

_EXAMPLES = """\
examples:
  rrtf-train clean mbpp-stubs-train -o mbpp-stubs-train.jsonl
  rrtf-train clean evolved.jsonl more.jsonl -o tasks.jsonl --deny-licence CC-BY-NC-4.0
  rrtf-train clean mine.jsonl -o clean.jsonl --licence MIT --also mbpp-validation --also leetcode-dev
"""
_HELP = {
    "near_text": "Jaccard of content words and their pairs from which a task is a benchmark's",
    "text_share": "share of the shorter text's runs of ten words",
    "code_share": "share of the shorter solution's runs of ten tokens",
    "content_words": "least content words of a text that is compared",
    "inside_words": "least words of a text that is looked for inside others",
    "same_code_tokens": "least tokens of a solution that must not be the same",
    "code_tokens": "least tokens of a solution whose runs are compared",
}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = commands.add_parser(
        "clean",
        help="keep what may be trained on: licences, duplicates, benchmarks",
        description=(
            "Keep the problems (or tasks) that may be trained on, compared with every benchmark that this\n"
            "project can load. Beside DST go .rejected.jsonl, with a rule and a reason for each record, and\n"
            "the report as .report.json and .report.md."
        ),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "source", nargs="+", metavar="SRC", help="problem file, task file or suite to train on"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="DST", help="file to write (.jsonl)"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of data sets (default: RRTF_DATA_DIR)")
    parser.add_argument(
        "--against",
        action="append",
        metavar="SUITE",
        help=f"only these benchmarks (default: all {len(BENCHMARKS)})",
    )
    parser.add_argument(
        "--also", action="append", default=[], metavar="SUITE", help="compare with this one too"
    )
    parser.add_argument(
        "--allow-missing", action="store_true", help="go on without benchmarks that can't be loaded"
    )
    parser.add_argument("--licence", default="", help="of records that name none")
    parser.add_argument(
        "--allow-licence", action="append", default=[], metavar="NAME", help="keep only these"
    )
    parser.add_argument("--deny-licence", action="append", default=[], metavar="NAME", help="drop these")
    defaults = CleanOptions()
    parser.add_argument(
        "--near-within",
        type=float,
        default=defaults.near_within,
        help=f"Jaccard from which two records of the input are one (default: {defaults.near_within})",
    )
    for name in ("least_words", "most_words"):
        value = getattr(defaults, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=int, default=value, metavar="N", help=f"of a record's task (default: {value})"
        )
    for each in fields(Thresholds):
        value = getattr(defaults.thresholds, each.name)
        parser.add_argument(
            f"--{each.name.replace('_', '-')}",
            type=type(value),
            default=value,
            metavar="X",
            help=f"{_HELP[each.name]} (default: {value})",
        )
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    options = CleanOptions(
        against=(*(arguments.against or BENCHMARKS), *arguments.also),
        allow_missing=arguments.allow_missing,
        licence=arguments.licence,
        allow_licences=tuple(arguments.allow_licence),
        deny_licences=tuple(arguments.deny_licence),
        near_within=arguments.near_within,
        least_words=arguments.least_words,
        most_words=arguments.most_words,
        thresholds=Thresholds(**{each.name: getattr(arguments, each.name) for each in fields(Thresholds)}),
    )
    report = clean(
        arguments.source, arguments.output, options, arguments.data_dir, progress=not arguments.quiet
    )
    if arguments.json:
        matches = report["contamination"].pop("matches")
        print(json.dumps(report | {"output": str(arguments.output), "matches": len(matches)}))
        return 0
    rejected = ", ".join(f"{rule} {count}" for rule, count in report["rejected"].items()) or "none"
    print(f"{arguments.output}: {report['kept']} of {report['records']} records; rejected: {rejected}")
    for name in report["contamination"]["missing"]:
        print(f"not compared with {name}: it could not be loaded")
    print(f"what was rejected and why: {beside(arguments.output, '.rejected.jsonl')} and .report.md")
    return 0
