"""`rrtf-bench load-ratio`: how much more 16 clients get out of a server together than one does alone.

All requests have equal options (greedy, the same limit) and different prompts, so that no answer can be taken
from another's. Two sides in turns, in each round: one client, and all clients. And this for two kinds of
prompts: all of one length in tokens, which every engine decodes together; and of mixed lengths, as they come
from people, which int8 on CTranslate2 decodes one after another so that no answer depends on the load.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load import answer_all
from benchmarks.load_asks import COMPLETIONS, Ask, Stub, stubs
from benchmarks.load_report import machine_line, table
from benchmarks.load_target import Target, own_target
from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.config import DEFAULT_MODEL, ServeConfig
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.preparation import prepare

LENGTHS = ("equal", "mixed")


@dataclass(frozen=True)
class RatioConfig:
    """Raises ValueError naming the flag."""

    model: str = DEFAULT_MODEL
    clients: int = 16
    each: int = 2  # requests of each client in a round; the one client sends four times as many
    rounds: int = 5
    prompt_tokens: int = 128  # of equal prompts; mixed ones have half of it to one and a half times it
    new_tokens: int = 64
    target: float = 4.0  # what the ratio of equal prompts must reach; 0: nothing
    serve_flags: tuple[str, ...] = ()
    output: Path = Path("rrtf-load-ratio")

    def __post_init__(self) -> None:
        for name in ("clients", "each", "rounds", "prompt_tokens", "new_tokens"):
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} is {getattr(self, name)}; it must be at least 1")


def ratio(config: RatioConfig) -> dict[str, Any]:
    """The report; its "ok" is false where the ratio stays below the target. Raises RuntimeError, OSError."""
    tokenizer = Tokenizer.load(prepare(ServeConfig(model=config.model)))
    rates: dict[str, dict[str, list[float]]] = {length: {"one": [], "all": []} for length in LENGTHS}
    tokens: dict[str, list[int]] = {length: [] for length in LENGTHS}
    with own_target(config.model, config.serve_flags) as target:
        prompts = {length: _prompts(tokenizer, length, config.prompt_tokens) for length in LENGTHS}
        _rate(target, _asks(target, prompts["equal"], 2, config.new_tokens), 1)  # warm
        for number in range(config.rounds):
            for length in LENGTHS:
                sides = {"one": (4 * config.each, 1), "all": (config.clients * config.each, config.clients)}
                # In turns which comes first: a machine that slows down or speeds up favours neither.
                for side in sorted(sides, reverse=bool(number % 2)):
                    count, clients = sides[side]
                    todo = _asks(target, prompts[length], count, config.new_tokens)
                    made, rate = _rate(target, todo, clients)
                    rates[length][side].append(rate)
                    tokens[length].append(made)
    report = _report(config, target, rates, tokens)
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "load-ratio.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (config.output / "load-ratio.md").write_text(_page(report), "utf-8")
    return report


def _report(
    config: RatioConfig,
    target: Target,
    rates: dict[str, dict[str, list[float]]],
    tokens: dict[str, list[int]],
) -> dict[str, Any]:
    lengths: dict[str, dict[str, Any]] = {}
    for length, sides in rates.items():
        pairs = zip(sides["all"], sides["one"], strict=True)
        lengths[length] = {
            "one_tokens_per_s": summary(sides["one"]),
            "all_tokens_per_s": summary(sides["all"]),
            "ratio": summary([together / alone for together, alone in pairs]),
            "completion_tokens": sum(tokens[length]),
        }
    return {
        "model": target.model,
        "flags": list(target.flags),
        "clients": config.clients,
        "prompt_tokens": config.prompt_tokens,
        "new_tokens": config.new_tokens,
        "lengths": lengths,
        "target": config.target,
        "ok": lengths["equal"]["ratio"]["median"] >= config.target,
        "machine": machine_record(),
    }


def _prompts(tokenizer: Tokenizer, length: str, tokens: int) -> Iterator[list[int]]:
    """Without end, no two alike: a line of its own, then stubs until it is long enough. Token ids."""
    all_stubs = stubs()
    number = 0
    while True:
        wanted = tokens if length == "equal" else tokens // 2 + (number * 37) % (tokens + 1)
        ids = tokenizer.encode(f"# File {number:06d}\n{_text(all_stubs, number)}", specials=False)
        while len(ids) < wanted:
            ids += ids
        yield ids[: max(16, wanted)]
        number += 1


def _text(all_stubs: list[Stub], number: int) -> str:
    """Beginning with another function each time, and solved ones: what comes after is code as well."""
    turned = all_stubs[number % len(all_stubs) :] + all_stubs[: number % len(all_stubs)]
    return "\n\n".join(stub.head + stub.body for stub in turned[:12])


def _asks(target: Target, prompts: Iterator[list[int]], count: int, new_tokens: int) -> list[Ask]:
    options = {"model": target.model, "max_tokens": new_tokens, "temperature": 0}
    return [Ask("equal options", COMPLETIONS, {"prompt": next(prompts), **options}) for _ in range(count)]


def _rate(target: Target, todo: list[Ask], clients: int) -> tuple[int, float]:
    """Tokens made, and tokens made per second, all clients together; raises RuntimeError on an error."""
    replies, seconds = asyncio.run(answer_all(target, todo, clients, f"{clients} clients"))
    for reply in replies:
        if reply.faults:
            raise RuntimeError("; ".join(reply.faults))
    made = sum(reply.completion_tokens for reply in replies)
    return made, made / seconds


def _page(report: dict[str, Any]) -> str:
    rows = [
        [
            f"{length} length",
            *(_cell(one[name]) for name in ("one_tokens_per_s", "all_tokens_per_s", "ratio")),
        ]
        for length, one in report["lengths"].items()
    ]
    return "\n".join(
        [
            f"# {report['clients']} clients against one on {report['model']}",
            "",
            f"Prompts of about {report['prompt_tokens']} tokens, at most {report['new_tokens']} new ones, "
            "greedy. Medians of rounds in turns (smallest to largest).",
            "",
            *table(["prompts of", "one client, tokens/s", f"{report['clients']} clients", "ratio"], rows),
            "",
            machine_line(report["machine"]),
            "",
        ]
    )


def _cell(one: dict[str, float]) -> str:
    return "{median:.2f} ({min:.2f} to {max:.2f}, n {n})".format(**one)
