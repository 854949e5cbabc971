"""`rrtf-convert verify`: what a conversion costs."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from convert.commands.options import Commands, add_lookup, add_report, make_parser
from rrtf_serve.models.folder import QUANTIZATIONS, read_card
from rrtf_serve.models.parity import parity_facts
from rrtf_serve.models.source import detect_kind
from rrtf_serve.models.store import WHAT_A_SPEC_IS, Store

if TYPE_CHECKING:
    from convert.verify import Options

WRONG_USE = 2  # as argparse exits
_FEW_DOCUMENTS = 16  # half of what the defaults compare

_DESCRIPTION = """\
Compare a converted model with its source on code that it was not calibrated on: top-1 agreement, mean KL per
token, perplexity, and where greedy answers first differ, each with a 95 % interval. The result goes into
DST's card, which the server, the page and `rrtf-models show` display."""
_EXAMPLES = """\
examples:
  rrtf-convert verify qwen2.5-coder-0.5b-instruct ./qwen-int8
  rrtf-convert verify ./qwen-int8                        SRC is found by DST's card
  rrtf-convert verify ./my-model ./my-model-gptq --strict --json
  rrtf-convert verify ./15b ./15b-int8 --device cuda --reference-quantization bfloat16
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "verify",
        summary="what a conversion costs: agreement, KL, perplexity, greedy divergence",
        description=_DESCRIPTION,
        examples=_EXAMPLES,
    )
    option = parser.add_argument
    option("models", metavar="[SRC] DST", nargs="+", help=f"DST: a converted model's path. {WHAT_A_SPEC_IS}")
    add_lookup(parser)
    option("--tokens", type=int, default=4096, metavar="N", help="positions to compare (default: 4096)")
    option("--length", type=int, default=128, metavar="L", help="tokens per stretch of code (default: 128)")
    option("--prompts", type=int, default=32, metavar="N", help="greedy answers to compare (default: 32)")
    option("--continuation", type=int, default=64, metavar="N", help="tokens of each (default: 64)")
    option("--seed", type=int, default=0, help="chooses the stretches and the resamples (default: 0)")
    option("--device", default="cpu", help="cpu, cuda or auto (default: cpu)")
    option(
        "--reference-quantization",
        choices=QUANTIZATIONS,
        default="float32",
        help="for models too large for float32; the reference's own rounding is then in the figures",
    )
    option(
        "--compute-type", default="default", help="DST's, as of rrtf-serve; float32 leaves int8 weights alone"
    )
    option("--threads", type=int, default=0, help="0: one per core (default)")
    option("--scratch", type=Path, metavar="FOLDER", help="for the float32 copy (default: TMPDIR)")
    option("--strict", action="store_true", help="exit with 1 where the variant's thresholds are broken")
    option("--no-card", action="store_true", help="leave DST's card as it is")
    add_report(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    if not arguments.quiet:
        logging.getLogger("convert").setLevel(logging.INFO)
    if len(arguments.models) > 2:
        print(f"rrtf-convert verify: SRC and DST, not {len(arguments.models)} models", file=sys.stderr)
        return WRONG_USE
    try:
        return _verify(arguments)
    except ValueError as error:  # a flag's value, which the message names
        print(f"rrtf-convert verify: {error}", file=sys.stderr)
        return WRONG_USE


def _verify(arguments: argparse.Namespace) -> int:
    from convert.provenance import source_of  # noqa: PLC0415  # slow to import, and --help doesn't need it
    from convert.verify import Options, verify, write_parity  # noqa: PLC0415

    options = Options(
        tokens=arguments.tokens,
        length=arguments.length,
        prompts=arguments.prompts,
        continuation=arguments.continuation,
        seed=arguments.seed,
        device=arguments.device,
        reference_quantization=arguments.reference_quantization,
        compute_type=arguments.compute_type,
        threads=arguments.threads,
        scratch=arguments.scratch,
    )
    started = time.monotonic()
    progress = not arguments.quiet
    store = Store(arguments.home)
    path = Path(arguments.models[-1]).expanduser()
    detect_kind(path)  # a path that holds no model is refused before anything is fetched
    destination = store.fetch(str(path), progress=progress)
    card = read_card(path) if path.is_dir() else None
    if len(arguments.models) == 2:
        source = store.fetch(arguments.models[0], revision=arguments.revision, progress=progress)
    else:
        source = source_of(path, card, store, progress=progress)
    found = verify(source, destination, options, progress=progress)
    written = not arguments.no_card and write_parity(path, found.record)
    if progress and (note := _note(options, Options(), found.parity.documents)):
        print(f"rrtf-convert: note: {note}", file=sys.stderr)
    for warning in found.warnings:
        print(f"rrtf-convert: warning: {warning}", file=sys.stderr)
    if not written and not arguments.no_card:
        print(f"rrtf-convert: {path} has no card (rrtf.json); the result is only shown", file=sys.stderr)
    seconds = time.monotonic() - started
    if arguments.json:
        report = {"folder": str(path), "seconds": round(seconds, 1), "written": written}
        print(json.dumps(report | {"parity": found.record}))
    else:
        print(f"{path} against {source.name} ({options.reference_quantization}), {seconds:.0f} s")
        facts = parity_facts(found.record)
        width = max(len(label) for label, _ in facts)
        for label, text in facts:
            print(f"  {label:{width}}  {text}")
    return _strict(arguments, found.variant, found.failures)


def _note(options: Options, default: Options, documents: int) -> str:
    """What to keep in mind of a run that is smaller than the default, or another; empty: nothing."""
    same = (options.tokens, options.length) == (default.tokens, default.length)
    if same and documents >= _FEW_DOCUMENTS:
        return ""
    return (
        f"the intervals rest on {documents} documents; thresholds belong to the defaults "
        f"(--tokens {default.tokens} --length {default.length})"
    )


def _strict(arguments: argparse.Namespace, row: str, broken: list[str]) -> int:
    """Thresholds fail loudly: always on stderr, and with --strict in the exit status too."""
    for failure in broken:
        print(f"rrtf-convert: threshold of {row} broken: {failure}", file=sys.stderr)
    if arguments.strict and not row:
        print(
            "rrtf-convert: --strict: there are no thresholds for this kind of model; they exist for "
            "converted folders whose card names their quantisation",
            file=sys.stderr,
        )
    return 1 if arguments.strict and (broken or not row) else 0
