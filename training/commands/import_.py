"""`rrtf-train import`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from rrtf_serve.sandbox.options import SandboxOptions
from training.commands.options import Commands, make_parser, print_report, show_warnings
from training.problem_files import write_lines
from training.pytest_source import import_pytest

_EXAMPLES = """\
examples:
  rrtf-train import --pytest ./my-project -o problems.jsonl
  rrtf-train import --pytest ./my-project -o problems.jsonl --site-packages ./packages

then: rrtf-train sample RUN --problems problems.jsonl ...
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "import",
        summary="a repository's functions with tests become problems",
        description="Make problems of a repository's documented top-level functions, judged by its own tests "
        "for pytest or unittest. Nothing of it runs outside the sandbox. What can't be a problem is listed "
        "with its reason in DST.left-out.jsonl. Exit status 1: no problem was made.",
        examples=_EXAMPLES,
    )
    option = parser.add_argument
    option("--pytest", metavar="DIR", type=Path, required=True, help="the repository's folder")
    option("-o", "--output", metavar="DST", type=Path, required=True, help="problems file to write")
    option("--name", default=None, help="first part of every task_id (default: the folder's name)")
    option("--licence", default=None, help="of the code (default: what its metadata says)")
    option("--sandbox", metavar="LEVEL", default=None, help="default: the strongest that works here")
    option("--workers", type=int, metavar="N", default=None, help="programmes at a time")
    option(
        "--site-packages",
        type=Path,
        action="append",
        metavar="DIR",
        default=[],
        help="what the functions and tests import besides the standard library",
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    show_warnings()
    options = SandboxOptions(arguments.sandbox, arguments.workers, tuple(arguments.site_packages))
    with options.open() as sandbox:
        found = import_pytest(arguments.pytest, sandbox, name=arguments.name, licence=arguments.licence)
    output: Path = arguments.output
    left_out = output.with_name(output.name.removesuffix(".jsonl") + ".left-out.jsonl")
    write_lines(left_out, [asdict(each) for each in found.left_out])
    checks = sum(record["tests_by"]["checks"] for record in found.records)
    tests = sum(len(record["tests_by"]["tests"]) for record in found.records)
    report = {
        "functions": found.functions,
        "tests": found.tests,
        "problems": len(found.records),
        "tests_used": tests,
        "checks": checks,
        "left_out": found.counts(),
        "output": str(output) if found.records else None,
        "left_out_file": str(left_out),
    }
    lines = [
        f"{len(found.records)} problems of {found.functions} functions, {tests} of {found.tests} tests, "
        f"{checks} checks",
        *(f"  left out, {reason}: {count}" for reason, count in found.counts().items()),
        f"each with its reason in {left_out}",
    ]
    if found.records:  # an empty file would be refused by every command that reads it
        write_lines(output, found.records)
        lines.append(f"problems in {output}")
    print_report(report, lines, as_json=arguments.json)
    return 0 if found.records else 1
