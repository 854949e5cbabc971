"""`rrtf-convert gguf`: to one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

import argparse
import json
import time

from convert.commands.options import Commands, add_output, add_report, add_source, make_parser
from rrtf_serve.models.store import Store

TYPES = ("f32", "f16", "bf16", "q8_0")

_EXAMPLES = """\
examples:
  rrtf-convert gguf ./my-model -o my-model.gguf
  rrtf-convert gguf ./my-adapter -o merged.gguf --type f16      a LoRA adapter, merged on the way
  rrtf-convert gguf qwen2.5-coder-0.5b-instruct -o q8.gguf --type q8_0
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "gguf",
        summary="to one GGUF file, for llama.cpp and what is built on it",
        description="Write a model as one GGUF file, its tokenizer included. It appears only once complete.",
        examples=_EXAMPLES,
    )
    add_source(parser)
    add_output(parser, "file")
    parser.add_argument(
        "--type",
        choices=TYPES,
        default="q8_0",
        help="of the matrices (default: q8_0, 8.5 bits per weight); vectors are always f32",
    )
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from convert.gguf_writer import write_gguf  # noqa: PLC0415  # slow to import, and --help doesn't need it

    started = time.monotonic()
    progress = not arguments.quiet
    source = Store(arguments.home).fetch(arguments.source, revision=arguments.revision, progress=progress)
    size = write_gguf(source, arguments.output, arguments.type, progress=progress, force=arguments.force)
    seconds = time.monotonic() - started
    if arguments.json:
        facts = {"file": str(arguments.output), "type": arguments.type, "size_bytes": size}
        print(json.dumps(facts | {"seconds": round(seconds, 1)}))
    else:
        print(f"{arguments.output}: {source.name} as {arguments.type}, {size / 1e6:,.0f} MB, {seconds:.0f} s")
    return 0
