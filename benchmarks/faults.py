"""`rrtf-bench faults`: what clients and systems do to a server, and whether it is well afterwards.

After each fault the server must answer a probe as before, decode nothing, and hold no more open files.
A failing engine is not tried here: tests do that (tests/test_benchmarks_load_engine.py).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.faults_clients import CLIENT_FAULTS, Site, Sizes
from benchmarks.faults_process import ERRORS, PROCESS_FAULTS
from benchmarks.faults_state import Fault, baseline, check_after
from benchmarks.load_report import machine_line, table
from benchmarks.load_target import Target, described, own_target
from benchmarks.machine import machine_record
from rrtf_serve.config import DEFAULT_MODEL

CLIENT_NAMES = tuple(each.__name__ for each in CLIENT_FAULTS)
PROCESS_NAMES = tuple(each.__name__ for each in PROCESS_FAULTS)
NAMES = CLIENT_NAMES + PROCESS_NAMES


@dataclass(frozen=True)
class FaultsConfig:
    """Raises ValueError naming the flag."""

    model: str = DEFAULT_MODEL
    url: str | None = None  # of a server that runs: the faults of clients alone
    api_key: str | None = None
    only: tuple[str, ...] = ()  # none: all
    resets: int = 500
    slow_readers: int = 8
    half_open: int = 200
    idle_seconds: float = 10.0
    patience: float = 60.0  # seconds
    serve_flags: tuple[str, ...] = ()
    output: Path = Path("rrtf-faults")

    def __post_init__(self) -> None:
        for name in ("resets", "slow_readers", "half_open"):
            if getattr(self, name) < 4:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; it must be at least 4"
                )
        unknown = [name for name in self.only if name not in NAMES]
        if unknown:
            raise ValueError(f"--only {unknown[0]}: choose from {', '.join(NAMES)}")
        if self.url and set(self.only) & set(PROCESS_NAMES):
            raise ValueError(f"--only {', '.join(PROCESS_NAMES)}: not with --url, whose server goes on")


def faults(config: FaultsConfig, say: Callable[[str], None]) -> dict[str, Any]:
    """The report; its "ok" is false where the server did not take a fault as it must."""
    wanted = [name for name in NAMES if not config.only or name in config.only]
    sizes = Sizes(config.resets, config.slow_readers, config.half_open, config.idle_seconds)
    found: list[dict[str, Any]] = []
    if config.url is not None:
        target = described(config.url.rstrip("/").removesuffix("/v1"), key=config.api_key)
        found += client_faults(target, wanted, sizes, config.patience, say)
    else:
        if set(wanted) & set(CLIENT_NAMES):
            with own_target(config.model, config.serve_flags) as target:
                found += client_faults(target, wanted, sizes, config.patience, say)
        for each in PROCESS_FAULTS:
            if each.__name__ in wanted:
                run = partial(each, config.model, config.serve_flags, config.patience)
                found.append(_tried(each.__name__, run, say))
    report = {
        "model": config.model if config.url is None else target.model,
        "flags": list(config.serve_flags),
        "faults": found,
        "ok": not any(each["problems"] for each in found),
        "machine": machine_record(),
    }
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / "faults.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (config.output / "faults.md").write_text(_page(report), "utf-8")
    return report


def client_faults(
    target: Target, wanted: Sequence[str], sizes: Sizes, patience_s: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Those of `wanted` that clients make, one after another on one server."""
    site = Site(target, baseline(target), sizes)
    return [
        _tried(each.__name__, partial(_then_checked, each, site, patience_s), say)
        for each in CLIENT_FAULTS
        if each.__name__ in wanted
    ]


def _then_checked(fault: Callable[[Site], Fault], site: Site, patience_s: float) -> Fault:
    tried = fault(site)
    check_after(site.target, site.before, tried, patience_s)
    return tried


def _tried(name: str, run: Callable[[], Fault], say: Callable[[str], None]) -> dict[str, Any]:
    say(f"{name} ...")
    started = time.monotonic()
    try:
        fault = run()
    except ERRORS as error:
        fault = Fault(name, problems=[f"{type(error).__name__}: {error}"])
    for problem in fault.problems:
        say(f"  {problem}")
    seconds = time.monotonic() - started
    return {"name": name, "what": fault.name, "seconds": seconds, "facts": fault.facts,
            "problems": fault.problems}  # fmt: skip


def _page(report: dict[str, Any]) -> str:
    rows = [
        [each["what"], "well" if not each["problems"] else f"{len(each['problems'])} problems",
         f"{each['seconds']:.1f}", _facts(each["facts"])]
        for each in report["faults"]
    ]  # fmt: skip
    problems = [f"- {each['what']}: {problem}" for each in report["faults"] for problem in each["problems"]]
    return "\n".join(
        [
            f"# Faults, {report['model']}",
            "",
            *table(["fault", "server", "seconds", "seen"], rows),
            "",
            *([*problems, ""] if problems else []),
            machine_line(report["machine"]),
            "",
        ]
    )


def _facts(facts: dict[str, Any]) -> str:
    shown = {name: f"{fact:.3g}" if isinstance(fact, float) else fact for name, fact in facts.items()}
    return "; ".join(f"{name} {fact}" for name, fact in shown.items())
