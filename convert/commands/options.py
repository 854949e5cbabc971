"""Options that several commands share, so that they are called and explained alike everywhere."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.store import WHAT_A_SPEC_IS

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns


def make_parser(
    commands: Commands[argparse.ArgumentParser], name: str, *, summary: str, description: str, examples: str
) -> argparse.ArgumentParser:
    """A command's parser: `summary` in the list of commands, `description` and `examples` in its own help."""
    return commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_source(parser: argparse.ArgumentParser) -> None:
    """SRC, and how to find it."""
    parser.add_argument("source", metavar="SRC", help=WHAT_A_SPEC_IS)
    add_lookup(parser)


def add_lookup(parser: argparse.ArgumentParser) -> None:
    """Where models named on the command line are looked up."""
    parser.add_argument("--revision", help="branch, tag or commit of a hub repository")
    parser.add_argument("--home", type=Path, help="cache folder (default: RRTF_HOME, else the user's cache)")


def add_output(parser: argparse.ArgumentParser, what: str = "folder") -> None:
    """-o DST and --force; `what` DST is to be, "folder" or "file"."""
    parser.add_argument("-o", "--output", metavar="DST", type=Path, required=True, help=f"{what} to write")
    replaced = "where it is a converted model already" if what == "folder" else "where it is there already"
    parser.add_argument("--force", action="store_true", help=f"replace DST {replaced}")


def add_report(parser: argparse.ArgumentParser) -> None:
    """--json and --quiet."""
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """--dtype of a Hugging Face folder."""
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        help="type of the weights (default: the source's own; of a quantised GGUF file bfloat16)",
    )


def report_folder(arguments: argparse.Namespace, convert: Callable[[], Path]) -> int:
    """Run a conversion and say on stdout what came out, as --json asks; the command's exit status.

    Raises ModelError where the folder has no card, and whatever the conversion raises.
    """
    started = time.monotonic()
    folder = convert()
    seconds = time.monotonic() - started
    card = read_card(folder)
    if card is None:
        raise ModelError(f"{folder}: has no card (rrtf.json); something removed it, convert again")
    if arguments.json:
        print(json.dumps({"folder": str(folder), "seconds": round(seconds, 1), "card": asdict(card)}))
    else:
        print(
            f"{folder}: {card.name} ({card.architecture}) as {card.quantization}, "
            f"{card.size_bytes / 1e6:,.0f} MB, {seconds:.0f} s"
        )
    return 0
