"""What decontamination found, as plain data and as a page: per benchmark, per rule, and the matches
themselves with both texts, so that a reader can judge the rules."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from rrtf_serve.problems.origins import Record
from training.contamination import RULES, Benchmarks, Match, deciding
from training.passages import Passage

Found = Sequence[tuple[Record, Passage, list[Match]]]

_SHOWN = 20  # matches with both texts on the page; the JSON has all
_EXCERPT = 600  # characters of each text


def summary(benchmarks: Benchmarks, found: Found) -> dict[str, Any]:
    """Counts of records by benchmark and rule and rule, each record once; and for each record the match
    that rejects it."""
    by_benchmark: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, matches in found:
        hits = {(suite, match.rule) for match in matches for suite, _ in match.entry.names}
        for suite, rule in hits:
            by_benchmark[suite][rule] += 1
        for suite in {suite for suite, _ in hits}:
            by_benchmark[suite]["any"] += 1
    return {
        "benchmarks": benchmarks.sizes,
        "missing": benchmarks.missing,
        "texts": len(benchmarks.entries),
        "records": len(found),
        "by_rule": _by_rule(found),
        "by_benchmark": {
            name: {rule: by_benchmark[name][rule] for rule in (*RULES, "any")} for name in benchmarks.sizes
        },
        "matches": sorted(
            (_record(record, passage, matches) for record, passage, matches in found),
            key=lambda each: (-each["likeness"], each["task_id"], each["rule"]),
        ),
    }


def _by_rule(found: Found) -> dict[str, dict[str, int]]:
    """How many records each rule rejects, and how many no other rule does."""
    rules = [{match.rule for match in matches} for _, _, matches in found]
    return {
        rule: {
            "records": sum(rule in each for each in rules),
            "alone": sum(each == {rule} for each in rules),
        }
        for rule in RULES
    }


def _record(record: Record, passage: Passage, matches: Sequence[Match]) -> dict[str, Any]:
    match = deciding(matches)
    in_code = "code" in match.rule
    theirs = match.entry.passage
    return {
        "task_id": record["task_id"],
        "rule": match.rule,
        "rules": [rule for rule in RULES if any(each.rule == rule for each in matches)],
        "likeness": round(match.likeness, 3),
        "benchmark": match.entry.names[0][0],
        "benchmark_task_id": match.entry.names[0][1],
        "benchmarks": sorted({suite for suite, _ in match.entry.names}),
        "text": passage.text,
        "benchmark_text": theirs.text,
        **({"code": passage.source, "benchmark_code": theirs.source} if in_code else {}),
    }


def markdown(report: dict[str, Any]) -> str:
    """The whole report of `clean` as a page."""
    found = report["contamination"]
    lines = [
        f"# Cleaning of {', '.join(report['sources'])}",
        "",
        f"{report['records']} records, {report['kept']} kept. "
        + (_counts("Rejected", report["rejected"]) if report["rejected"] else "None rejected.")
        + " "
        + _counts("Licences of what was kept", report["licences"]),
        "",
        "## Benchmarks",
        "",
        f"{sum(found['benchmarks'].values())} problems ({found['texts']} different) of "
        f"{len(found['benchmarks'])} benchmarks; {found['records']} records are like one or more of them.",
        "",
    ]
    for name, reason in found["missing"].items():
        lines += [f"**Not compared with {name}**: {reason}", ""]
    lines += ["| benchmark | problems | " + " | ".join(RULES) + " | records |", "|---|---|" + "---|" * 7]
    for name, counts in found["by_benchmark"].items():
        cells = " | ".join(str(counts[rule]) for rule in (*RULES, "any"))
        lines.append(f"| {name} | {found['benchmarks'][name]} | {cells} |")
    lines += ["", "| rule | records | by no other rule |", "|---|---|---|"]
    lines += [
        f"| {rule} | {counts['records']} | {counts['alone']} |" for rule, counts in found["by_rule"].items()
    ]
    lines += ["", "## The nearest matches", ""]
    for match in found["matches"][:_SHOWN]:
        lines += _match_lines(match)
    left = len(found["matches"]) - _SHOWN
    if left > 0:
        lines += [f"{left} more are in the JSON report.", ""]
    return "\n".join(lines)


def _counts(title: str, counts: dict[str, int]) -> str:
    return f"{title}: {', '.join(f'{name} {count}' for name, count in counts.items())}."


def _match_lines(match: dict[str, Any]) -> list[str]:
    head = f"### {match['task_id']} and {match['benchmark_task_id']} ({match['benchmark']})"
    lines = [head, "", f"{match['likeness']:.2f} by {match['rule']}; rules: {', '.join(match['rules'])}", ""]
    for field in ("text", "benchmark_text", "code", "benchmark_code"):
        if match.get(field):
            excerpt = match[field][:_EXCERPT]
            fence = "`" * (4 if "```" in excerpt else 3)
            lines += [f"{fence}\n{excerpt}\n{fence}", ""]
    return lines
