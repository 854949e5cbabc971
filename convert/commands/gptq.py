"""`rrtf-convert gptq`: to a GPTQ checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from convert.commands.options import Commands, add_output, add_report, add_source, make_parser, report_folder
from rrtf_serve.models.store import Store

WRONG_USE = 2  # as argparse exits

_EXAMPLES = """\
examples:
  rrtf-convert gptq qwen2.5-coder-0.5b-instruct -o qwen-gptq4
  rrtf-convert gptq ./my-model -o my-gptq8 --bits 8
  rrtf-convert gptq ./my-model -o my-gptq4 --group-size 32 --calibration ./our-code.jsonl
  rrtf-convert gptq smollm2-135m-instruct -o smol-gptq4 --group-size 64     128 does not divide its 576 inputs
  rrtf-convert gptq ./my-model -o quick --samples 32 --seqlen 512
  rrtf-convert ct2 ./my-gptq4 -o exact --quantization float32     the same weights for CTranslate2
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "gptq",
        summary="to a GPTQ checkpoint of 8, 4 or 3 bits, calibrated on code",
        description="Quantise a model with GPTQ. The folder appears only once it is complete; transformers, "
        "gptqmodel and auto-gptq load it.",
        examples=_EXAMPLES,
    )
    add_source(parser)
    add_output(parser)
    option = parser.add_argument
    option("--bits", type=int, default=4, metavar="{8,4,3}", help="bits per weight (default: 4)")
    option(
        "--group-size",
        type=int,
        default=128,
        metavar="G",
        help="inputs that share a scale; must divide the width of every matrix (SmolLM2-135M: 64); -1: one "
        "scale per row (default: 128)",
    )
    option(
        "--desc-act",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="quantise columns in the order of their activations: better, slower in some kernels (default)",
    )
    option(
        "--calibration",
        default="code",
        metavar="WHAT",
        help="code (the standard library, default), text (the language reference), a training suite "
        "(mbpp-train, leetcode-train), or a .txt or .jsonl file",
    )
    option("--samples", type=int, default=128, metavar="N", help="windows of calibration (default: 128)")
    option("--seqlen", type=int, metavar="L", help="tokens of each (default: 2048, or the model's context)")
    option("--seed", type=int, default=0, help="chooses the windows (default: 0)")
    option("--damp", type=float, default=0.05, help="share of the Hessian's mean diagonal (default: 0.05)")
    option(
        "--backend", default="gptqmodel", help="gptqmodel (default), optimum, or auto-gptq (with CUDA only)"
    )
    option(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: cuda where there is one"
    )
    option(
        "--output-copy",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store an output matrix that is tied to the embedding once more: auto-gptq needs it (default)",
    )
    option("--data-dir", type=Path, help="data of the training suites (default: RRTF_DATA_DIR)")
    option(
        "--auto-gptq-python",
        type=Path,
        metavar="PYTHON",
        help="interpreter that has auto-gptq (default: .venv-auto-gptq, made by `make auto-gptq`)",
    )
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if not arguments.quiet:
        logging.getLogger("convert").setLevel(logging.INFO)
    try:
        return _quantise(arguments)
    except ValueError as error:  # a flag's value, which the message names
        print(f"rrtf-convert gptq: {error}", file=sys.stderr)
        return WRONG_USE


def _start(arguments: argparse.Namespace) -> str:
    """What is about to be done: the first layer is minutes away."""
    groups = "one scale per row" if arguments.group_size == -1 else f"groups of {arguments.group_size}"
    length = f" of {arguments.seqlen} tokens" if arguments.seqlen else ""
    return (
        f"quantising {arguments.source} to {arguments.bits} bits ({groups}) with {arguments.backend}; "
        f"calibration: {arguments.calibration}, {arguments.samples} windows{length}. "
        "Loading and calibrating come before the first layer."
    )


def _quantise(arguments: argparse.Namespace) -> int:
    from convert.gptq import Options, quantise  # noqa: PLC0415  # slow to import, and --help doesn't need it

    options = Options(
        bits=arguments.bits,
        group_size=arguments.group_size,
        desc_act=arguments.desc_act,
        calibration=arguments.calibration,
        samples=arguments.samples,
        seqlen=arguments.seqlen,
        seed=arguments.seed,
        damp=arguments.damp,
        backend=arguments.backend,
        device=arguments.device,
        output_copy=arguments.output_copy,
    )
    progress = not arguments.quiet
    if progress:
        print(f"rrtf-convert: {_start(arguments)}", file=sys.stderr, flush=True)
    store = Store(arguments.home)
    return report_folder(
        arguments,
        lambda: quantise(
            store.fetch(arguments.source, revision=arguments.revision, progress=progress),
            arguments.output,
            options,
            data_dir=arguments.data_dir,
            auto_gptq_python=arguments.auto_gptq_python,
            progress=progress,
            force=arguments.force,
        ),
    )
