"""`rrtf-bench load`: flags in, a report out."""

from __future__ import annotations

import argparse
import os
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.load import LoadConfig, load
from benchmarks.load_asks import MIXES
from rrtf_serve.config import DEFAULT_MODEL

EXAMPLES = {
    "load": """\
examples:
  rrtf-bench load --model smollm2-135m-instruct --clients 32 --requests 2000 -o load-135m
  rrtf-bench load --url http://127.0.0.1:8000 --api-key-env RRTF_API_KEY --requests 200
  rrtf-bench load --model ./my-gptq4 --serve-flags "--no-ui --max-queue 16"
""",
}


def add_load(command: Any) -> None:
    """`command(name, text, run, sandbox=False)` makes a parser; see benchmarks.cli."""
    one = _made(command, "load", "many clients at once; exit status 1 on a wrong answer", _load)
    _add_server(one)
    one.add_argument("--clients", type=int, default=32, help="at once (default: 32)")
    one.add_argument("--requests", type=int, default=2000, help="of all of them together (default: 2000)")
    one.add_argument(
        "--mix", default="code", help=f"{' or '.join(MIXES)}: what every OpenAI-compatible server can "
        "(default: code)",
    )  # fmt: skip
    one.add_argument("--seed", type=int, default=0, help="of what is asked, in which order (default: 0)")
    one.add_argument("--output", "-o", type=Path, default=Path("rrtf-load"), help="folder")


def _made(command: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = command(name, text, run, sandbox=False)
    one.epilog, one.formatter_class = EXAMPLES[name], argparse.RawDescriptionHelpFormatter
    return one


def _add_server(one: argparse.ArgumentParser) -> None:
    one.add_argument("--model", default=DEFAULT_MODEL, help=f"of a server started here ({DEFAULT_MODEL})")
    one.add_argument("--serve-flags", default="", metavar='"FLAGS"', help="of that server, in quotes")
    one.add_argument("--url", help="a server that runs already, instead")
    one.add_argument("--api-key-env", metavar="NAME", help="the environment variable with its key")


def _key(arguments: argparse.Namespace) -> str | None:
    name = arguments.api_key_env
    if name is None:
        return None
    if not os.environ.get(name):
        raise ValueError(f"--api-key-env {name}: there is no such environment variable")
    return os.environ[name]


def _config(kind: Any, arguments: argparse.Namespace) -> Any:
    given = {field.name: getattr(arguments, field.name) for field in fields(kind) if field.name in arguments}
    if "serve_flags" in given:
        given["serve_flags"] = tuple(shlex.split(given["serve_flags"]))
    if "api_key_env" in arguments:
        given["api_key"] = _key(arguments)
    return kind(**given)


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _config(LoadConfig, arguments)
    report = load(config)
    if arguments.json:
        return report
    return {
        "all": report["all"],
        "memory_mb": {
            name: value for name, value in (report["memory_mb"] or {}).items() if name != "every_second"
        },
        "wrong": report["wrong"],
        "wrong_answers": report["wrong_answers"],
        "report": str(config.output / "load.md"),
        "ok": report["ok"],
    }
