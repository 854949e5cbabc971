"""`rrtf-convert hf`: to a plain Hugging Face folder."""

from __future__ import annotations

import argparse

from convert.commands.options import (
    Commands,
    add_dtype,
    add_output,
    add_report,
    add_source,
    make_parser,
    report_folder,
)
from rrtf_serve.models.store import Store

_EXAMPLES = """\
examples:
  rrtf-convert hf qwen2.5-coder-0.5b-instruct -o qwen-hf         a GGUF file, dequantised to bfloat16
  rrtf-convert hf ./my-model.gguf -o my-model --dtype float32    exactly what the file holds
  rrtf-convert hf ./my-adapter -o merged                         merged into the base that it names
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "hf",
        summary="to a plain Hugging Face folder: dequantised, merged, for transformers and for training",
        description="Write any model as a Hugging Face folder (config.json, safetensors, tokenizer). "
        "The folder appears only once it is complete.",
        examples=_EXAMPLES,
    )
    add_source(parser)
    add_output(parser)
    add_dtype(parser)
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from convert.hf import convert  # noqa: PLC0415  # slow to import, and --help doesn't need it

    progress = not arguments.quiet
    store = Store(arguments.home)
    source = store.fetch(arguments.source, revision=arguments.revision, progress=progress)
    return report_folder(
        arguments,
        lambda: convert(
            source, arguments.output, dtype=arguments.dtype, progress=progress, force=arguments.force
        ),
    )
