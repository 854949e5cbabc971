"""`rrtf-convert`: turn models into folders that the server can run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from convert.ct2 import convert
from convert.writer import QUANTIZATIONS
from rrtf_serve import __version__
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.store import WHAT_A_SPEC_IS, Store

INTERRUPTED = 130  # what a shell reports for Ctrl-C

_EXAMPLES = """\
examples:
  rrtf-convert ct2 qwen2.5-coder-0.5b-instruct -o qwen-int8
  rrtf-convert ct2 ./my-model.gguf -o my-model --quantization float32
  rrtf-convert ct2 ./my-adapter -o merged        a PEFT LoRA adapter, merged into its base on the way
  rrtf-serve --model ./qwen-int8                 serves what came out
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0: done, 1: failed, 2: wrong use (argparse), 130: Ctrl-C."""
    arguments = _parser().parse_args(argv)
    try:
        return _ct2(arguments)
    except ModelError as error:
        print(f"rrtf-convert: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("rrtf-convert: stopped; nothing was left behind", file=sys.stderr)
        return INTERRUPTED


def _ct2(arguments: argparse.Namespace) -> int:
    started = time.monotonic()
    progress = not arguments.quiet
    source = Store(arguments.home).fetch(arguments.source, revision=arguments.revision, progress=progress)
    folder = convert(
        source,
        arguments.output,
        quantization=arguments.quantization,
        progress=progress,
        force=arguments.force,
    )
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rrtf-convert",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rrtf-convert {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ct2 = commands.add_parser(
        "ct2",
        help="to CTranslate2, tensor by tensor: memory is bounded by a block, not by the model",
        description="Convert a model to CTranslate2. The folder appears only once it is complete.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = ct2.add_argument
    option("source", metavar="SRC", help=WHAT_A_SPEC_IS)
    option("-o", "--output", metavar="DST", type=Path, required=True, help="folder to write")
    option(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="type of the weights (default: int8, one scale per row; on CPU it runs as int8_float32)",
    )
    option("--revision", help="branch, tag or commit of a hub repository")
    option("--force", action="store_true", help="replace DST where it is a converted model already")
    option("--json", action="store_true", help="print the result as one JSON object")
    option("--quiet", action="store_true", help="no progress bar")
    option("--home", type=Path, help="cache folder (default: RRTF_HOME, else the user's cache)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
