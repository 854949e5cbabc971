"""`rrtf-convert merge`: an adapter into its base."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from convert.commands.options import (
    Commands,
    add_dtype,
    add_lookup,
    add_output,
    add_report,
    make_parser,
    report_folder,
)
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Source, name_of
from rrtf_serve.models.store import WHAT_A_SPEC_IS, Store

_EXAMPLES = """\
examples:
  rrtf-convert merge qwen2.5-coder-0.5b-instruct ./my-adapter -o merged
  rrtf-convert merge ./base ./my-adapter -o merged --dtype bfloat16
  rrtf-convert ct2 ./merged -o merged-int8       serve it (`ct2 ./my-adapter` does both at once)
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "merge",
        summary="a PEFT LoRA adapter into its base: a plain Hugging Face folder",
        description="Merge a PEFT LoRA adapter into BASE and write a Hugging Face folder, tensor by tensor. "
        "The folder appears only once it is complete.",
        examples=_EXAMPLES,
    )
    parser.add_argument("base", metavar="BASE", help=f"the model that the adapter changes. {WHAT_A_SPEC_IS}")
    parser.add_argument("adapter", metavar="ADAPTER", help="an adapter's folder, or its Hugging Face id")
    add_lookup(parser)
    add_output(parser)
    add_dtype(parser)
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from convert.hf import convert  # noqa: PLC0415  # slow to import, and --help doesn't need it

    progress = not arguments.quiet
    store = Store(arguments.home)
    base = store.fetch(arguments.base, revision=arguments.revision, progress=progress)
    source = store.fetch_adapter(arguments.adapter, base, progress=progress)
    _mention_other_base(source)
    return report_folder(
        arguments,
        lambda: convert(
            source, arguments.output, dtype=arguments.dtype, progress=progress, force=arguments.force
        ),
    )


def _mention_other_base(source: Source) -> None:
    """Two bases of one shape can't be told apart by the weights; their names at least can."""
    base = source.base
    named = Record.read(source.path / "adapter_config.json").text("base_model_name_or_path")
    if base is None or not named or name_of(Path(named)) in (base.name, base.path.name):
        return
    print(f"rrtf-convert: the adapter names {named} as its base; merging into {base.name}", file=sys.stderr)
