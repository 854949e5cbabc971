"""The report of `rrtf-bench variants` as Markdown: one row per variant, the base named in every row."""

from __future__ import annotations

from typing import Any


def markdown(report: dict[str, Any]) -> str:
    """The page: what was run, the table of costs, and, with a suite, the table of paired tests."""
    lines = [
        f"# Variants of {report['model']}",
        "",
        f"`{report['command']}`",
        "",
        f"Base of every figure: {report['base']} (SHA-256 {report['source_sha256'][:12]}…), run in float32. "
        "Where it was quantised already, the cost of a variant includes doing so again.",
        "",
        *_parity(report),
    ]
    if report["suite"]:
        lines += ["", *_suite(report)]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join([*lines, "", f"Machine: {machine}", ""])


def _parity(report: dict[str, Any]) -> list[str]:
    lines = [
        "| variant | base | size | conversion | peak memory | top-1 agreement | mean KL, nats per token | "
        "perplexity ratio | greedy divergence | thresholds |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["variants"]:
        parity = row["parity"]
        broken = "-" if parity["threshold"] is None else "broken" if parity["failures"] else "held"
        cells = [
            row["name"],
            row["base"],
            f"{row['size_bytes'] / 1e6:,.0f} MB",
            "-" if row["seconds"] is None else f"{row['seconds']:.0f} s",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:,.0f} MB",
            _interval(parity["top1_agreement"], "{:.2%}"),
            _interval(parity["mean_kl"], "{:.3g}"),
            _interval(parity["perplexity_ratio"], "{:.4f}"),
            _divergence(parity["greedy_divergence"]),
            broken,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    data = report["variants"][0]["parity"]["data"]
    return [
        *lines,
        "",
        f"Parity on {data['tokens']:,} tokens of the {data['source']} (SHA-256 {data['sha256'][:12]}…); "
        "95 % intervals from a bootstrap over documents.",
    ]


def _interval(figure: dict[str, float], form: str) -> str:
    value, low, high = (form.format(figure[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _divergence(figure: dict[str, float]) -> str:
    least = "≥ " if figure["value"] >= figure["limit"] else ""
    return f"{least}{figure['value']:g} ({figure['low']:g} to {figure['high']:g})"


def _suite(report: dict[str, Any]) -> list[str]:
    margin = report["margin"]
    lines = [
        f"## {report['suite']}, greedy",
        "",
        f"Each variant against {report['against']}, problem by problem. Not worse: the lower end of the "
        f"difference's 95 % interval lies above -{100 * margin:g} points.",
        "",
        "| variant | base | passed | pass@1 | difference | only the other passes | only this passes | "
        "p (McNemar) | not worse |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in report["variants"]:
        suite, comparison = row["suite"], row["comparison"]
        cells = [
            row["name"],
            row["base"],
            f"{suite['passed']} of {suite['problems']}",
            f"{suite['value']:.1%} ({suite['interval']['low']:.1%} to {suite['interval']['high']:.1%})",
        ]
        if comparison is None:
            cells += ["-"] * 5
        else:
            interval = comparison["interval"]
            cells += [
                f"{100 * comparison['difference']:+.1f} points ({100 * interval['low']:+.1f} to "
                f"{100 * interval['high']:+.1f})",
                str(comparison["only_a"]),
                str(comparison["only_b"]),
                f"{comparison['p_value']:.3g}",
                "shown" if comparison["not_worse"] else "not shown",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines
