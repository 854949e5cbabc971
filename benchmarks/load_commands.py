"""`rrtf-bench load`, `load-ratio`, `load-peers`, `soak` and `faults`: flags in, a report out."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.faults import NAMES, FaultsConfig, faults
from benchmarks.load import LoadConfig, load
from benchmarks.load_asks import MIXES
from benchmarks.load_peers import Peer, PeersConfig, load_peers
from benchmarks.load_ratio import RatioConfig, ratio
from benchmarks.soak import SoakConfig, soak
from rrtf_serve.config import DEFAULT_MODEL

EXAMPLES = {
    "load": """\
examples:
  rrtf-bench load --model smollm2-135m-instruct --clients 32 --requests 2000 -o load-135m
  rrtf-bench load --url http://127.0.0.1:8000 --api-key-env RRTF_API_KEY --requests 200
  rrtf-bench load --model ./my-gptq4 --serve-flags "--no-ui --max-queue 16"
""",
    "load-ratio": """\
examples:
  rrtf-bench load-ratio --model qwen2.5-coder-0.5b-instruct --clients 16 --rounds 5
""",
    "load-peers": """\
examples:
  rrtf-bench load-peers --model qwen2.5-coder-0.5b-instruct --serve-flags "--threads 2" \\
      --peer llama-cpp-python http://127.0.0.1:8100 \\
      "./llama-venv/bin/python -m llama_cpp.server --model qwen.gguf --interrupt_requests false --port 8100"
  rrtf-bench load-peers --peer transformers=/models/qwen-hf http://127.0.0.1:8200 \\
      "./peer-venv/bin/transformers serve --port 8200 /models/qwen-hf"
  rrtf-bench load-peers --peer other http://127.0.0.1:9000 ""        a server that runs already
""",
    "soak": """\
examples:
  rrtf-bench soak --model smollm2-135m-instruct --requests 10000
""",
    "faults": """\
examples:
  rrtf-bench faults --model smollm2-135m-instruct
  rrtf-bench faults --only resets half_open --resets 50
  rrtf-bench faults --url http://127.0.0.1:8000 --api-key-env RRTF_API_KEY
""",
}


def add_load(command: Any) -> None:
    """`command(name, text, run, sandbox=False)` makes a parser; see benchmarks.cli."""
    one = _made(command, "load", "many clients at once; exit status 1 on a wrong answer or growth", _load)
    _add_server(one)
    one.add_argument("--clients", type=int, default=32, help="at once (default: 32)")
    one.add_argument("--requests", type=int, default=2000, help="of all of them together (default: 2000)")
    one.add_argument(
        "--mix", default="code", help=f"{' or '.join(MIXES)}: what every OpenAI-compatible server can "
        "(default: code)",
    )  # fmt: skip
    one.add_argument("--seed", type=int, default=0, help="of what is asked, in which order (default: 0)")
    one.add_argument("--output", "-o", type=Path, default=Path("rrtf-load"), help="folder")

    _add_ratio(command)
    _add_peers(command)
    _add_soak(command)
    _add_faults(command)


def _made(command: Any, name: str, text: str, run: Any) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = command(name, text, run, sandbox=False)
    one.epilog, one.formatter_class = EXAMPLES[name], argparse.RawDescriptionHelpFormatter
    return one


def _add_own(one: argparse.ArgumentParser) -> None:
    one.add_argument("--model", default=DEFAULT_MODEL, help=f"of a server started here ({DEFAULT_MODEL})")
    one.add_argument("--serve-flags", default="", metavar='"FLAGS"', help="of that server, in quotes")


def _add_server(one: argparse.ArgumentParser) -> None:
    _add_own(one)
    one.add_argument("--url", help="a server that runs already, instead")
    one.add_argument("--api-key-env", metavar="NAME", help="the environment variable with its key")


def _add_numbers(one: argparse.ArgumentParser, kind: Any, texts: dict[str, str]) -> None:
    """A flag for each of these fields of an options class, with its default and its type."""
    default = {field.name: field.default for field in fields(kind)}
    for name, text in texts.items():
        shown = f"{text} (default: {default[name]})"
        one.add_argument(
            f"--{name.replace('_', '-')}", type=type(default[name]), default=default[name], help=shown
        )
    one.add_argument("--output", "-o", type=Path, default=default["output"], help="folder")


def _add_ratio(command: Any) -> None:
    text = "tokens/s of many clients with equal options against one client's"
    one = _made(command, "load-ratio", text, _ratio)
    _add_own(one)
    texts = {
        "clients": "at once", "each": "requests of each client in a round", "rounds": "in turns",
        "prompt_tokens": "of a prompt", "new_tokens": "of an answer, at most",
        "target": "exit status 1 below this ratio; 0: none",
    }  # fmt: skip
    _add_numbers(one, RatioConfig, texts)


def _add_peers(command: Any) -> None:
    one = _made(command, "load-peers", "the same load on other servers, in turns with ours", _peers)
    _add_own(one)
    one.add_argument(
        "--peer", dest="peers", action="append", nargs=3, default=[],
        metavar=("NAME[=MODEL]", "URL", "COMMAND"),
        help="how it is called (and the model that requests name, if not the first that it lists), where it "
        'answers, what starts it ("": it runs already); repeatable',
    )  # fmt: skip
    texts = {"clients": "at once", "requests": "in a round", "rounds": "in turns", "seed": "of what is asked"}
    _add_numbers(one, PeersConfig, texts)


def _add_soak(command: Any) -> None:
    one = _made(command, "soak", "thousands of requests; exit status 1 where it comes to hold more", _soak)
    _add_own(one)
    texts = {
        "requests": "of all clients together", "warm": "requests before the first look at the memory",
        "clients": "at once", "max_tokens": "of an answer",
        "most_growth": "of memory from the first look to any other", "seed": "of what is asked",
    }  # fmt: skip
    _add_numbers(one, SoakConfig, texts)


def _add_faults(command: Any) -> None:
    text = "clients that vanish, stall or send nonsense; signals; full disks: is the server well afterwards?"
    one = _made(command, "faults", text, _faults)
    _add_server(one)
    one.add_argument("--only", nargs="+", default=(), metavar="FAULT", help=f"of {', '.join(NAMES)}")
    texts = {
        "resets": "streams that are reset", "slow_readers": "streams that nobody reads",
        "half_open": "connections that don't finish a request", "idle_seconds": "for which these say nothing",
        "patience": "seconds for the server to be at rest again",
    }  # fmt: skip
    _add_numbers(one, FaultsConfig, texts)


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
    if "only" in given:
        given["only"] = tuple(given["only"])
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
        "grown": report["grown"],
        "wrong": report["wrong"],
        "wrong_answers": report["wrong_answers"],
        "report": str(config.output / "load.md"),
        "ok": report["ok"],
    }


def _ratio(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _config(RatioConfig, arguments)
    report = ratio(config)
    if arguments.json:
        return report
    return {**report["lengths"], "report": str(config.output / "load-ratio.md"), "ok": report["ok"]}


def _peers(arguments: argparse.Namespace) -> dict[str, Any]:
    arguments.peers = tuple(_peer(*given) for given in arguments.peers)
    config = _config(PeersConfig, arguments)
    report = load_peers(config)
    if arguments.json:
        return report
    return {**report["sides"], "report": str(config.output / "load-peers.md"), "ok": report["ok"]}


def _peer(name: str, url: str, command: str) -> Peer:
    called, _, model = name.partition("=")
    return Peer(called, url.rstrip("/"), command, model)


def _soak(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _config(SoakConfig, arguments)
    report = soak(config)
    if arguments.json:
        return report
    shown = ("first_look", "last_look", "memory_growth", "grown", "wrong", "wrong_answers", "ok")
    return {**{name: report[name] for name in shown}, "report": str(config.output / "soak.json")}


def _faults(arguments: argparse.Namespace) -> dict[str, Any]:
    config = _config(FaultsConfig, arguments)
    report = faults(config, lambda text: print(f"rrtf-bench: {text}", file=sys.stderr))
    if arguments.json:
        return report
    short: dict[str, Any] = {
        each["name"]: "; ".join(each["problems"]) or f"well, {each['seconds']:.1f} s"
        for each in report["faults"]
    }
    return {**short, "report": str(config.output / "faults.md"), "ok": report["ok"]}
