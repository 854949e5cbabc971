"""Load reports as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Figures = Mapping[str, Any]

HEAD = ["requests", "refused", "tokens/s", "first token, ms", "between tokens, ms", "whole answer, ms"]


def load_page(report: Figures) -> str:
    """`load.md` of a load report."""
    rows = [[kind, *_cells(one)] for kind, one in report["kinds"].items()]
    rows.append(["all", *_cells(report["all"])])
    lines = [
        f"# {report['requests']} requests by {report['clients']} clients on {report['model']}",
        "",
        f"{report['seconds']:.1f} s; {report['left']} requests were left by their clients half-way; "
        f"{report['all']['refused']} times 429, sent again after Retry-After. "
        f"{report['alone']['questions']} greedy questions were asked alone first "
        f"({report['alone']['seconds']:.1f} s).",
        "",
        f"Wrong answers: {report['wrong']}." + _memory(report.get("memory_mb")),
        "",
        *table(["kind", *HEAD], rows),
        "",
        "Waiting times: p50 / p95. First token: from the request that was let in. Tokens/s: of all clients "
        "together, over the whole time.",
        "",
    ]
    if report["grown"]:
        lines += ["The server holds more:", "", *(f"- {each}" for each in report["grown"]), ""]
    if report["wrong_answers"]:
        lines += ["Wrong:", "", *(f"- {each}" for each in report["wrong_answers"]), ""]
    return "\n".join([*lines, machine_line(report["machine"]), ""])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows]]


def _cells(one: Figures) -> list[str]:
    waits = [_wait(one[name]) for name in ("first_token_ms", "between_ms", "whole_ms")]
    return [str(one["requests"]), str(one["refused"]), f"{one['tokens_per_s']:.1f}", *waits]


def _wait(spread: Figures | None) -> str:
    return f"{spread['p50']:.0f} / {spread['p95']:.0f}" if spread else ""


def _memory(record: Figures | None) -> str:
    if record is None:
        return ""
    text = "{first:.0f} at the start, {most:.0f} at most, {last:.0f} at the end".format(**record)
    return f" Resident memory of the server, MB: {text}."


def machine_line(record: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in record.items() if value)
