"""`rrtf-bench teacher-check`, `loss-check`, `training-speed` and `cost`: flags in, a report out."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.cost import SIDES, CostConfig, GrpoOptions, cost
from benchmarks.cost_report import markdown
from benchmarks.loss_check import LossCheckConfig, loss_check
from benchmarks.teacher_check import TeacherCheckConfig, teacher_check
from benchmarks.training_speed import PARTS, TrainingSpeedConfig, training_speed
from rrtf_serve.problems.prompts import FORMATS
from rrtf_serve.sandbox.options import SandboxOptions
from training.fit_options import PRECISIONS

EXAMPLES = {
    "teacher-check": """\
examples:
  rrtf-bench teacher-check --student qwen2.5-coder-0.5b-instruct --teacher qwen2.5-coder-1.5b-instruct
  rrtf-bench teacher-check --student ./fit/last --engine torch --teacher http://127.0.0.1:8000 -o check
  rrtf-bench teacher-check --student smollm2-135m-instruct --teacher qwen2.5-coder-0.5b-instruct \\
      --suite leetcode-dev --limit 40 --n 8 --temperature 0.8
""",
    "loss-check": """\
examples:
  rrtf-bench loss-check                                         a tiny random model, minutes on one core
  rrtf-bench loss-check --noise 0 0.25 0.5 0.75 1 --seeds 5
  rrtf-bench loss-check --model smollm2-135m-instruct --lr 1e-5 --seeds 1 -o loss-135m
""",
    "training-speed": """\
examples:
  rrtf-bench training-speed --repeats 5 --threads 2
  rrtf-bench training-speed --parts steps --tuples run/tuples.jsonl --model qwen2.5-coder-0.5b-instruct
  rrtf-bench training-speed --parts sampling judge --max-tokens 256 --rows 32
""",
    "cost": """\
examples:
  rrtf-bench cost training/demo/run.toml -o cost-demo               GRPO gets the time that RRTF took
  rrtf-bench cost run.toml -o cost-135m --minutes 30 --set source.student.k=8 --set fit.threads=2
  rrtf-bench cost run.toml -o cost-135m --steps 100 --grpo-lr 5e-6 --grpo-generations 16
""",
}


def add_training(command: Any) -> None:
    """`command(name, text, run, sandbox=...)` makes a parser; see benchmarks.cli."""
    _add_teacher_check(command)
    _add_loss_check(command)
    _add_training_speed(command)
    _add_cost(command)


def _made(command: Any, name: str, text: str, run: Any, *, sandbox: bool) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = command(name, text, run, sandbox=sandbox)
    one.epilog, one.formatter_class = EXAMPLES[name], argparse.RawDescriptionHelpFormatter
    return one


def _values(kind: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of an options class that the command has flags for; lists as tuples."""
    given = {field.name: getattr(arguments, field.name) for field in fields(kind) if field.name in arguments}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _options(arguments: argparse.Namespace) -> SandboxOptions:
    return SandboxOptions(arguments.sandbox, arguments.workers, tuple(arguments.site_packages))


def _say(text: str) -> None:
    print(f"rrtf-bench: {text}", file=sys.stderr)


def _add_teacher_check(command: Any) -> None:
    one = _made(
        command, "teacher-check", "is a teacher better than the student? paired, problem by problem",
        _teacher_check, sandbox=True,
    )  # fmt: skip
    one.add_argument("--student", required=True, metavar="SPEC|URL", help="the model that is to be trained")
    one.add_argument(
        "--teacher", dest="teachers", action="append", required=True, metavar="SPEC|URL",
        help="repeatable; an address is an OpenAI-compatible server (key: RRTF_API_KEY or OPENAI_API_KEY)",
    )  # fmt: skip
    one.add_argument("--suite", default="mbpp-stubs-validation", metavar="NAME|FILE", help="never a test set")
    one.add_argument("--engine", default="ct2", help="of models that are no address: ct2 (default) or torch")
    one.add_argument(
        "--prompt", dest="format", default="chat", help=f"format: {', '.join(FORMATS)} (default: chat)"
    )
    one.add_argument("--n", type=int, default=1, help="answers to each problem (default: 1)")
    one.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    one.add_argument("--top-p", type=float, default=0.95, help="of sampling (default: 0.95)")
    one.add_argument("--max-tokens", type=int, default=512)
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--limit", type=int, help="only the first N problems")
    one.add_argument("--batch", type=int, default=16, help="rows decoded, or requests sent, at a time")
    one.add_argument("--threads", type=int, default=0, help="CPU threads; 0: one per core")
    one.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    one.add_argument("--output", "-o", type=Path, default=Path("rrtf-teacher-check"), help="folder")


def _teacher_check(arguments: argparse.Namespace) -> dict[str, Any]:
    key = os.environ.get("RRTF_API_KEY") or os.environ.get("OPENAI_API_KEY")
    config = TeacherCheckConfig(**_values(TeacherCheckConfig, arguments), api_key=key)
    report = teacher_check(config, _options(arguments), _say)
    if arguments.json:
        return report
    short = {
        name: {key: verdict[key] for key in ("is", "mean_a", "mean_b", "difference", "p_value")}
        for name, verdict in report["teachers"].items()
    }
    return {
        **short,
        "solved_by": report["solved_by"],
        "share_below_student": report["below_student"]["share"],
        "report": str(config.output / "teacher-check.md"),
        "ok": report["ok"],
    }


def _add_loss_check(command: Any) -> None:
    one = _made(
        command, "loss-check", "does the loss learn a known order, and none where there is none?",
        _loss_check, sandbox=False,
    )  # fmt: skip
    default = {field.name: field.default for field in fields(LossCheckConfig)}
    one.add_argument("--model", default=default["model"], help="a spec, or tiny: random weights (default)")
    one.add_argument("--methods", nargs="+", default=default["methods"], help="default: rrtf rank sft")
    one.add_argument(
        "--noise", dest="noises", type=float, nargs="+", default=default["noises"], metavar="SHARE",
        help="of the labels that are random: 0 none, 1 all (default: 0 0.5 1)",
    )  # fmt: skip
    for name, text in (
        ("seeds", "of each run"), ("tuples", "to train on"), ("held_out", "to measure with"), ("epochs", ""),
        ("batch", "tuples at a step"), ("length", "letters of an answer"), ("threads", "0: torch's choice"),
    ):  # fmt: skip
        flag = f"--{name.replace('_', '-')}"
        one.add_argument(flag, type=int, default=default[name], help=f"{text} (default: {default[name]})")
    one.add_argument("--lr", type=float, default=default["lr"], help="a real model wants about 1e-5")
    one.add_argument("--precision", choices=PRECISIONS, default=default["precision"])
    one.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    one.add_argument("--output", "-o", type=Path, default=default["output"], help="folder")


def _loss_check(arguments: argparse.Namespace) -> dict[str, Any]:
    config = LossCheckConfig(**_values(LossCheckConfig, arguments))
    report = loss_check(config, _say)
    if arguments.json:
        return report
    short = {
        method: {f"noise {noise}": cell["mean"] for noise, cell in cells.items()}
        for method, cells in report["table"].items()
    }
    return {
        "untrained": report["untrained"]["accuracy"],
        **short,
        "report": str(config.output / "loss-check.md"),
    }


def _add_training_speed(command: Any) -> None:
    one = _made(
        command, "training-speed", "a training step against SFT, sampling against generate, the judge",
        _training_speed, sandbox=True,
    )  # fmt: skip
    default = {field.name: field.default for field in fields(TrainingSpeedConfig)}
    one.add_argument("--model", default=default["model"], help=f"default: {default['model']}")
    one.add_argument("--parts", nargs="+", default=PARTS, help=f"default: {' '.join(PARTS)}")
    one.add_argument(
        "--problems", default=default["problems"], metavar="NAME|FILE", help="default: the tutorial's"
    )
    one.add_argument("--tuples", type=Path, help="of `rrtf-train rank` (default: made of the references)")
    for name, text in (
        ("repeats", "rounds"), ("limit", "problems"), ("steps", "timed in each process"),
        ("warmup", "steps before those"), ("batch", "tuples at a step"),
        ("micro_tokens", "of one forward pass"), ("k", "answers to each problem"),
        ("max_tokens", "of an answer"), ("rows", "decoded together"),
        ("single", "problems for generate at batch 1"), ("threads", "0: one per core"),
    ):  # fmt: skip
        flag = f"--{name.replace('_', '-')}"
        one.add_argument(flag, type=int, default=default[name], help=f"{text} (default: {default[name]})")
    one.add_argument("--temperature", type=float, default=default["temperature"])
    one.add_argument("--prompt", dest="format", default=default["format"], help="format (default: chat)")
    one.add_argument("--attention", default=default["attention"], help="of training (default: sdpa)")
    one.add_argument("--precision", choices=PRECISIONS, default=default["precision"], help="of training")
    one.add_argument("--quantization", default=default["quantization"], help="of ct2 (default: int8)")
    one.add_argument(
        "--dtype", default=default["dtype"], help="of the torch engine and transformers (default: float32)"
    )
    one.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    one.add_argument("--output", "-o", type=Path, default=default["output"], help="folder")


def _training_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    config = TrainingSpeedConfig(**_values(TrainingSpeedConfig, arguments))
    report = training_speed(config, _options(arguments), _say)
    return report if arguments.json else {**report, "report": str(config.output / "training-speed.md")}


def _add_cost(command: Any) -> None:
    one = _made(
        command, "cost", "RRTF against online RL (TRL's GRPO): time, memory, tests, tokens, gain", _cost,
        sandbox=False,
    )  # fmt: skip
    one.add_argument("file", type=Path, metavar="FILE.toml", help="what `rrtf-train run` would do")
    one.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE",
        help="of the file, as in `rrtf-train run`; repeatable",
    )  # fmt: skip
    one.add_argument("--sides", nargs="+", default=SIDES, help=f"default: {' '.join(SIDES)}")
    one.add_argument("--minutes", type=float, help="wall time of each side (default: RRTF's for both)")
    one.add_argument("--steps", type=int, help="training steps of each side, instead of --minutes")
    one.add_argument("--development", default="mbpp-stubs-validation", metavar="NAME|FILE")
    one.add_argument("--limit", type=int, help="only the first N development problems")
    one.add_argument("--max-tokens", type=int, default=512, help="of a development answer (default: 512)")
    one.add_argument("--batch", type=int, default=16, help="development answers decoded at a time")
    one.add_argument("--output", "-o", type=Path, default=Path("rrtf-cost"), help="folder")
    group = one.add_argument_group("GRPO")
    default = {field.name: field.default for field in fields(GrpoOptions)}
    for name, text in (
        ("prompts", "at a step"), ("generations", "of each prompt"), ("rows", "answers in one forward pass"),
        ("max_tokens", "of an answer"),
    ):  # fmt: skip
        flag = f"--grpo-{name.replace('_', '-')}"
        group.add_argument(flag, type=int, default=default[name], help=f"{text} (default: {default[name]})")
    for name, text in (("temperature", "of sampling"), ("lr", "constant"), ("beta", "of the divergence")):
        shown = f"{text} (default: {default[name]})"
        group.add_argument(f"--grpo-{name}", type=float, default=default[name], help=shown)


def _cost(arguments: argparse.Namespace) -> dict[str, Any]:
    grpo = GrpoOptions(
        **{field.name: getattr(arguments, f"grpo_{field.name}") for field in fields(GrpoOptions)}
    )
    config = CostConfig(**{**_values(CostConfig, arguments), "grpo": grpo})
    report = cost(config, _say)
    if arguments.json:
        return report
    print(markdown(report))
    return {"report": str(config.output / "cost.md"), "ok": report["ok"]}
