"""`rrtf-bench load-peers`: the same load on other servers, in turns with ours.

All servers are started at first and stay up; in each round each gets the same requests (the mix `plain`), and
who comes first changes from round to round. Answers are not compared with each other: other servers have
other templates and other arithmetic. What is counted is errors, waiting and tokens.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load import answer_all
from benchmarks.load_asks import asks
from benchmarks.load_client import Reply
from benchmarks.load_figures import figures
from benchmarks.load_report import machine_line, table
from benchmarks.load_target import Target, described, own_target, peer_target
from benchmarks.machine import machine_record
from benchmarks.server import resident_mb
from benchmarks.spread import summary
from rrtf_serve.config import DEFAULT_MODEL

OURS = "rrtf-serve"
SHOWN_ERRORS = 5


@dataclass(frozen=True)
class Peer:
    name: str
    address: str
    command: str  # empty: it runs already
    model: str = ""  # the name that requests carry; empty: the first that it lists


@dataclass(frozen=True)
class PeersConfig:
    """Raises ValueError naming the flag."""

    model: str = DEFAULT_MODEL
    peers: tuple[Peer, ...] = ()
    clients: int = 8
    requests: int = 100  # in each round
    rounds: int = 3
    seed: int = 0
    serve_flags: tuple[str, ...] = ()
    output: Path = Path("rrtf-load-peers")

    def __post_init__(self) -> None:
        for name in ("clients", "requests", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        names = [OURS, *(peer.name for peer in self.peers)]
        if len(set(names)) < len(names):
            raise ValueError(f"--peer: two servers have one name; there are {', '.join(names)}")


def load_peers(config: PeersConfig) -> dict[str, Any]:
    """Raises RuntimeError where a server doesn't start, OSError."""
    with ExitStack() as stack:
        targets = {OURS: stack.enter_context(own_target(config.model, config.serve_flags))}
        for peer in config.peers:
            if peer.command:
                target = stack.enter_context(peer_target(peer.address, peer.command))
            else:
                target = described(peer.address, ours=False)
            targets[peer.name] = replace(target, model=peer.model or target.model)
        rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in targets}
        errors: dict[str, list[str]] = {name: [] for name in targets}
        for number in range(config.rounds):
            for name in _turned(list(targets), number):
                replies, seconds = _round(targets[name], config, number, name)
                errors[name] += [fault for reply in replies for fault in reply.faults]
                # A peer that answers wrongly must not look fast for it.
                good = [reply for reply in replies if not reply.faults]
                rounds[name].append({**figures(good, seconds), "seconds": seconds})
        memory = {name: _peak(target) for name, target in targets.items()}
    sides = {name: _side(rounds[name], rounds[OURS], errors[name], memory[name]) for name in targets}
    report = {
        "model": targets[OURS].model,
        "clients": config.clients,
        "requests": config.requests,
        "rounds": config.rounds,
        "flags": list(config.serve_flags),
        "commands": {peer.name: peer.command for peer in config.peers},
        "sides": sides,
        "ok": not errors[OURS],
        "machine": machine_record(),
    }
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "load-peers.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (config.output / "load-peers.md").write_text(_page(report), "utf-8")
    return report


def _turned(names: list[str], by: int) -> list[str]:
    return names[by % len(names) :] + names[: by % len(names)]


def _round(target: Target, config: PeersConfig, number: int, name: str) -> tuple[list[Reply], float]:
    todo = asks(config.requests, mix="plain", seed=config.seed + number, infill=False, model=target.model)
    return asyncio.run(answer_all(target, todo, config.clients, name))


def _peak(target: Target) -> float | None:
    return None if target.pid is None else resident_mb(target.pid)[1]


def _side(
    rounds: Sequence[Mapping[str, Any]],
    ours: Sequence[Mapping[str, Any]],
    errors: list[str],
    peak_mb: float | None,
) -> dict[str, Any]:
    def waits(name: str, quantile: str) -> dict[str, float] | None:
        found = [each[name][quantile] for each in rounds if each[name]]
        return summary(found) if found else None

    pairs = list(zip(ours, rounds, strict=True))
    return {
        "tokens_per_s": summary([each["tokens_per_s"] for each in rounds]),
        "requests_per_s": summary([each["requests"] / each["seconds"] for each in rounds]),
        # How many times as many tokens per second ours makes.
        "ours_over_this": summary(
            [mine["tokens_per_s"] / its["tokens_per_s"] for mine, its in pairs if its["tokens_per_s"]]
            or [0.0]
        ),
        "first_token_p50_ms": waits("first_token_ms", "p50"),
        "first_token_p95_ms": waits("first_token_ms", "p95"),
        "between_p50_ms": waits("between_ms", "p50"),
        "between_p95_ms": waits("between_ms", "p95"),
        "whole_p95_ms": waits("whole_ms", "p95"),
        "refused": sum(each["refused"] for each in rounds),
        "errors": len(errors),
        "first_errors": errors[:SHOWN_ERRORS],
        "peak_mb": peak_mb,
    }


COLUMNS = {
    "tokens/s": "tokens_per_s", "requests/s": "requests_per_s", "ours over this": "ours_over_this",
    "first token p50, ms": "first_token_p50_ms", "p95": "first_token_p95_ms",
    "between tokens p50, ms": "between_p50_ms", "p95 ": "between_p95_ms",
}  # fmt: skip


def _page(report: Mapping[str, Any]) -> str:
    rows = [
        [name, *(_cell(side[key]) for key in COLUMNS.values()), str(side["errors"]),
         f"{side['peak_mb']:.0f}" if side["peak_mb"] else ""]
        for name, side in report["sides"].items()
    ]  # fmt: skip
    errors = [
        f"- {name}: {error}" for name, side in report["sides"].items() for error in side["first_errors"]
    ]
    return "\n".join(
        [
            f"# {report['clients']} clients, {report['requests']} requests a round, on {report['model']}",
            "",
            f"Medians of {report['rounds']} rounds in turns (smallest to largest). Requests that ended in an "
            "error are left out of the figures.",
            "",
            *table(["server", *COLUMNS, "errors", "peak MB"], rows),
            "",
            *([*errors, ""] if errors else []),
            *(f"{name}: `{command}`" for name, command in report["commands"].items() if command),
            "",
            machine_line(report["machine"]),
            "",
        ]
    )


def _cell(one: Mapping[str, float] | None) -> str:
    return "{median:.2f} ({min:.2f} to {max:.2f})".format(**one) if one else ""
