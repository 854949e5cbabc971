"""Options that several commands share, so that they are called and explained alike everywhere."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def make_parser(
    commands: Commands[argparse.ArgumentParser], name: str, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A command's parser. Flags that are not given leave nothing behind, so that defaults stand in one place,
    the options' own class."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--json", action="store_true", default=False, help="print the report as JSON")
    return parser


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """Where suites' files lie."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder of the data sets (default: RRTF_DATA_DIR)"
    )


def given(arguments: argparse.Namespace, kind: type[Any]) -> dict[str, Any]:
    """The flags of a dataclass's fields that were given; lists as tuples."""
    names = {field.name for field in fields(kind)}
    found = {name: value for name, value in vars(arguments).items() if name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def api_key(name: str) -> str | None:
    """The key that --api-key-env NAME stands for; None where no variable is named. Raises ValueError."""
    if not name:
        return None
    key = os.environ.get(name)
    if not key:
        raise ValueError(f"--api-key-env {name}: no such environment variable is set")
    return key


def default_of(kind: type[Any], name: str) -> str:
    """For --help."""
    default = next(field.default for field in fields(kind) if field.name == name)
    assert default is not MISSING
    if isinstance(default, tuple):
        return " ".join(f"{each:.3g}" if isinstance(each, float) else str(each) for each in default) or "none"
    return str(default)


def show_warnings() -> None:
    """The library's warnings on stderr, as lines of the command."""
    logging.basicConfig(format="rrtf-train: %(message)s", level=logging.WARNING, stream=sys.stderr)


def print_report(report: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """JSON on stdout, or the lines on stderr, where progress went, too."""
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        print("\n".join(lines), file=sys.stderr)
