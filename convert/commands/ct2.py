"""`rrtf-convert ct2`: to CTranslate2."""

from __future__ import annotations

import argparse

from convert.commands.options import Commands, add_output, add_report, add_source, make_parser, report_folder
from rrtf_serve.models.folder import QUANTIZATIONS
from rrtf_serve.models.store import Store

_EXAMPLES = """\
examples:
  rrtf-convert ct2 qwen2.5-coder-0.5b-instruct -o qwen-int8
  rrtf-convert ct2 ./my-model.gguf -o my-model --quantization float32
  rrtf-convert ct2 ./my-adapter -o merged        a PEFT LoRA adapter, merged into its base on the way
  rrtf-serve --model ./qwen-int8                 serves what came out
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "ct2",
        summary="to CTranslate2, tensor by tensor: memory is bounded by a block, not by the model",
        description="Convert a model to CTranslate2. The folder appears only once it is complete.",
        examples=_EXAMPLES,
    )
    add_source(parser)
    add_output(parser)
    parser.add_argument(
        "--quantization",
        choices=QUANTIZATIONS,
        default="int8",
        help="type of the weights (default: int8, one scale per row; on CPU it runs as int8_float32)",
    )
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from convert.ct2 import convert  # noqa: PLC0415  # slow to import, and --help doesn't need it

    progress = not arguments.quiet
    source = Store(arguments.home).fetch(arguments.source, revision=arguments.revision, progress=progress)
    return report_folder(
        arguments,
        lambda: convert(
            source,
            arguments.output,
            quantization=arguments.quantization,
            progress=progress,
            force=arguments.force,
        ),
    )
