"""`rrtf-train fit`."""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from training.commands.options import show_warnings
from training.fit import fit
from training.fit_options import (
    ATTENTIONS,
    CHOOSING,
    FT_REDUCTIONS,
    LAYOUTS,
    METHODS,
    PRECISIONS,
    TUNINGS,
    FitOptions,
)

Commands = argparse._SubParsersAction  # argparse has no public name for what add_subparsers returns

_EXAMPLES = """\
examples:
  rrtf-train fit tuples.jsonl --model smollm2-135m-instruct -o fit135 --lr 1e-5
  rrtf-train fit tuples.jsonl --model ./my-model -o sft --method sft          the control: L_ft alone
  rrtf-train fit tuples.jsonl --model qwen2.5-coder-0.5b-instruct -o lora --tune lora
  accelerate launch --config_file training/configs/fsdp.yaml -m training.cli fit ...
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = commands.add_parser(
        "fit",
        help="train a model on tuples: RRTF, or a control (SFT, rank loss alone, RRHF, DPO)",
        description="Train a model on the tuples that `rank` wrote. The same command goes on after a stop.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("tuples", metavar="TUPLES", type=Path, help="tuples.jsonl of `rrtf-train rank`")
    parser.add_argument(
        "--model",
        required=True,
        metavar="SPEC",
        help="a catalogue name, a hub repository, a file or a folder",
    )
    parser.add_argument("-o", "--output", required=True, metavar="DIR", type=Path, help="folder of the run")
    _add_training(parser)
    _add_running(parser)
    parser.add_argument("--json", action="store_true", default=False, help="print the report as JSON")
    parser.set_defaults(run=_run)


def _add_training(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is trained")
    group.add_argument("--method", choices=METHODS, help=_help("method", "what is minimised"))
    group.add_argument(
        "--ft-reduction", choices=FT_REDUCTIONS, help=_help("ft_reduction", "of L_ft over tokens")
    )
    group.add_argument("--rank-weight", type=float, help=_help("rank_weight", "of L_rank; the paper: 1"))
    group.add_argument("--margin", type=float, help=_help("margin", "by which p_tea must exceed p_stu"))
    group.add_argument("--beta", type=float, help=_help("beta", "DPO's"))
    group.add_argument("--lr", type=float, help="peak learning rate (default 2e-6, of adapters 1e-4)")
    group.add_argument("--epochs", type=int, help=_help("epochs", "the paper: 6"))
    group.add_argument("--batch", type=int, help=_help("batch", "tuples at a step; the paper: 512"))
    group.add_argument("--seed", type=int, help=_help("seed", "of the order and of adapters"))
    group.add_argument("--warmup", type=float, help=_help("warmup", "share of the steps"))
    group.add_argument("--weight-decay", type=float, help=_help("weight_decay", "AdamW's"))
    group.add_argument("--clip", type=float, help=_help("clip", "norm that gradients are cut to"))
    group.add_argument("--max-tokens", type=int, help=_help("max_tokens", "longer tuples are left out"))
    group.add_argument("--tune", choices=TUNINGS, help=_help("tune", "all weights, or an adapter"))
    group.add_argument("--lora-rank", type=int, help=_help("lora_rank", "of adapters"))
    group.add_argument("--lora-alpha", type=int, help=_help("lora_alpha", "of adapters"))


def _add_running(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it runs")
    group.add_argument("--micro-tokens", type=int, help=_help("micro_tokens", "of one forward pass"))
    group.add_argument("--layout", choices=LAYOUTS, help="prompts once per tuple, or once per answer")
    group.add_argument("--attention", choices=ATTENTIONS, help=_help("attention", "implementation"))
    group.add_argument("--precision", choices=PRECISIONS, help=_help("precision", "of the arithmetic"))
    group.add_argument("--gradient-checkpointing", action="store_true", help="less memory, a third more time")
    group.add_argument(
        "--compile", action="store_true", help="fuse what each layer does with torch.compile: faster steps"
    )
    group.add_argument("--device", choices=("auto", "cpu", "cuda"), help=_help("device", "where"))
    group.add_argument("--threads", type=int, help=_help("threads", "of a CPU; 0: torch's choice"))
    group.add_argument("--checkpoint-every", type=int, help=_help("checkpoint_every", "steps"))
    group.add_argument("--keep", type=int, help=_help("keep", "checkpoints"))
    group.add_argument(
        "--validate",
        metavar="SUITE",
        help=f"keep the step with the best pass@1 in DIR/best: {', '.join(CHOOSING)}, or a file of problems",
    )
    group.add_argument("--validate-every", type=int, help="steps (default: at the end of each epoch)")
    group.add_argument("--validate-tokens", type=int, help=_help("validate_tokens", "of an answer"))


_DEFAULTS = {item.name: item.default for item in fields(FitOptions)}


def _help(name: str, text: str) -> str:
    return f"{text} (default {_DEFAULTS[name]})"


def _run(arguments: argparse.Namespace) -> int:
    given: dict[str, Any] = {name: value for name, value in vars(arguments).items() if name in _DEFAULTS}
    assert all(name in given for name, default in _DEFAULTS.items() if default is MISSING)
    show_warnings()
    started = time.monotonic()
    report = fit(FitOptions(**given))
    report["seconds"] = round(time.monotonic() - started, 1)
    if int(os.environ.get("RANK", "0")):  # of several processes one reports
        return 0
    if arguments.json:
        print(json.dumps(report))
    else:
        left = f", {report['too_long']} left out as too long" if report["too_long"] else ""
        best = (
            f"; best by {report['validated_by']} at step {report['best_step']}"
            if "best_step" in report
            else ""
        )
        print(
            f"{report['folder']}: {report['model']} after {report['steps']} steps of {report['method']} on "
            f"{report['tuples']} tuples{left}, {report['seconds']:.0f} s{best}"
        )
    return 0
