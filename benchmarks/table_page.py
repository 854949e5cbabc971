"""The report of `rrtf-bench table` as Markdown."""

from __future__ import annotations

from typing import Any

from benchmarks.table_rounds import PREFILL

Report = dict[str, Any]


def markdown(report: Report) -> str:
    """The page: speed and memory, comparison with the baseline, scores, targets, models, machine."""
    settings = report["settings"]
    rows = [row for row in report["rows"] if not row.get("failed")]
    failed = [row for row in report["rows"] if row.get("failed")]
    lines = [
        f"# {report['title']}",
        "",
        f"`{report['command']}`",
        "",
        *[part for note in report["notes"] for part in (note, "")],
        *(_speed(rows, report["baseline"], settings) if rows else []),
        *_failures(failed),
        *_paper(rows),
        *_scores(rows, report),
        *_targets(report["targets"]),
        *_models(rows),
    ]
    machine = ", ".join(f"{key} {value}" for key, value in report["machine"].items() if value)
    return "\n".join([*lines, f"Machine: {machine}", ""])


def _speed(rows: list[Report], baseline: str, settings: Report) -> list[str]:
    batches = [str(batch) for batch in settings["batches"]]
    head = [
        "way", "load, s", "libraries, MB", "loaded, MB", "in use, MB", "peak, MB", "prefill, tokens/s",
        *(f"batch {batch}, ms per token" for batch in batches),
    ]  # fmt: skip
    lines = [*_head(head)]
    device = any(row["memory"].get("device_mb") for row in rows)
    for row in rows:
        memory = row["memory"]
        peak = _spread(memory["peak_mb"], ",.0f")
        if device and memory.get("device_mb"):
            peak += f"; device {_spread(memory['device_mb'], ',.0f')}"
        cells = [
            row["name"],
            _spread(row["load_s"], ".2f"),
            f"{memory['base_mb']['median']:,.0f}",
            f"{memory['loaded_mb']['median']:,.0f}",
            f"{memory['used_mb']['median']:,.0f}",
            peak,
            _spread(row["figures"][PREFILL], ",.0f"),
            *(_spread(row["figures"][batch], ".1f") for batch in batches),
        ]
        lines.append(_line(cells))
    lines += ["", *_explanation(settings)]
    if len(rows) > 1 and any(row.get("against") for row in rows):
        lines += [
            f"Times as fast as {baseline}: ratio of the medians, then median (smallest to largest) of the "
            "rounds' own ratios. Above 1 is faster.",
            "",
            *_head(["way", "prefill", *(f"batch {batch}" for batch in batches), "peak memory"]),
        ]
        lines += [
            _line(
                [
                    row["name"],
                    *(_ratio(row["against"][task]) for task in (PREFILL, *batches)),
                    f"{row['against']['peak_memory']:.2f}",
                ]
            )
            for row in rows
            if row.get("against")
        ]
        lines.append("")
    return lines


def _explanation(settings: Report) -> list[str]:
    return [
        f"Median (smallest to largest) of {settings['repeats']} rounds, {settings['order']}; greedy. "
        f"Prefill: {settings['prefill']} tokens of code to the first new token. Per token: from one token "
        f"of a row to its next, {settings['new_tokens']} new ones after {settings['prompt']} of code, "
        "prefill not counted; a batch makes as many tokens at a time as it has rows.",
        "",
        "Memory is resident memory of the whole process, MB of 10^6 bytes: libraries imported and no model "
        "yet, model loaded, in use after all tasks, and the peak of all. Pages of a mapped file count once "
        "they are read, which may be after loading.",
        "",
    ]


def _failures(rows: list[Report]) -> list[str]:
    return [part for row in rows for part in (f"**{row['name']}** was not measured: {row['failed']}", "")]


def _paper(rows: list[Report]) -> list[str]:
    known = [row for row in rows if row.get("paper")]
    if not known:
        return []
    lines = [
        "## Beside the paper",
        "",
        "PanGu-Coder2's table 4 (arXiv 2307.14936), trained weights on a device that it does not name; here "
        "random weights, so no score.",
        "",
        *_head(
            ["way", "memory here, GB", "paper, GB", "here, ms per token at batch 1", "paper, ms per token"]
        ),
    ]
    for row in known:
        memory = row["memory"].get("device_mb") or row["memory"]["peak_mb"]
        step = row["figures"].get("1")
        cells = [
            row["name"],
            f"{memory['median'] / 1000:.2f}",
            f"{row['paper']['memory_gb']:.2f}",
            _spread(step, ".1f") if step else "-",
            f"{row['paper']['ms_per_token']}",
        ]
        lines.append(_line(cells))
    return [*lines, ""]


def _scores(rows: list[Report], report: Report) -> list[str]:
    scored = [row for row in rows if row.get("suite")]
    if not scored:
        return []
    baseline = report["baseline"]
    lines = [
        f"## {report['suite']}, greedy",
        "",
        f"Passed, with 95 % Wilson intervals; each against {baseline}, problem by problem (exact McNemar).",
        "",
        *_head(["way", "passed", "pass@1", f"difference to {baseline}", "only it passes", "only this", "p"]),
    ]
    for row in scored:
        score, test = row["suite"], row.get("paired")
        cells = [
            row["name"],
            f"{score['passed']} of {score['problems']}",
            f"{score['value']:.1%} ({score['interval']['low']:.1%} to {score['interval']['high']:.1%})",
        ]
        if test:
            low, high = test["interval"]["low"], test["interval"]["high"]
            cells += [
                f"{100 * test['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})",
                str(test["only_a"]),
                str(test["only_b"]),
                f"{test['p_value']:.3g}",
            ]
        else:
            cells += ["-"] * 4
        lines.append(_line(cells))
    return [*lines, ""]


def _targets(targets: list[Report]) -> list[str]:
    if not targets:
        return []
    lines = ["## Targets", "", *_head(["target", "figure", ""])]
    words = {True: "met", False: "not met", None: "not measured"}
    lines += [_line([each["target"], each["figure"], words[each["met"]]]) for each in targets]
    return [*lines, ""]


def _models(rows: list[Report]) -> list[str]:
    lines = ["## What ran", "", *_head(["way", "files", "SHA-256", "as", "libraries"])]
    for row in rows:
        described = ", ".join(
            f"{key.replace('_', ' ')} {value}"
            for key, value in row["described"].items()
            if key in ("device", "dtype", "compute_type", "threads", "attention", "context", "repacked")
        )
        libraries = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
        digest = f"{row['digest'][:12]}…" if row["digest"] else "-"
        cells = [row["name"], f"{row['size_bytes'] / 1e6:,.0f} MB", digest, described]
        lines.append(_line([*cells, libraries]))
    return [*lines, ""]


def _head(cells: list[str]) -> list[str]:
    return [_line(cells), "|" + "---|" * len(cells)]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _spread(figure: dict[str, float], form: str) -> str:
    median, low, high = (format(figure[key], form) for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})" if figure["n"] > 1 and low != high else median


def _ratio(found: Report) -> str:
    paired = found["paired"]
    return f"{found['medians']:.2f}; {paired['median']:.2f} ({paired['min']:.2f} to {paired['max']:.2f})"
