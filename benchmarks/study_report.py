"""`rrtf-bench study-report`: what a study's runs scored, and what each gained over another, with intervals.

A problem's score is the mean over a run's seeds. A difference is taken problem by problem; its interval is
over problems (estimator.bounded_interval), so it says what other problems of that kind would give, with these
seeds. How much the seeds themselves move it is told by the smallest and largest difference of a single seed
pair, matched in order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study import BASE
from rrtf_serve.problems.estimator import compare, wilson_interval


@dataclass(frozen=True)
class Scored:
    """One run's seeds on one suite."""

    problems: int
    digest: str
    solved: tuple[frozenset[str], ...]  # per seed

    @property
    def counts(self) -> list[int]:
        return [len(each) for each in self.solved]


Runs = dict[str, dict[str, Scored]]  # run -> suite -> scores


def read_results(folder: Path) -> Runs:
    """Every result of a study. Raises ValueError where two results scored different problems under one name,
    or nothing is there."""
    found: dict[str, dict[str, list[tuple[int, dict[str, Any]]]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        settings = record["settings"]
        for suite, scores in record["scores"].items():
            found.setdefault(settings["name"], {}).setdefault(suite, []).append((settings["seed"], scores))
    if not found:
        raise ValueError(f"{folder}: no results of a study in it")
    runs: Runs = {}
    for name, suites in found.items():
        for suite, entries in suites.items():
            entries.sort(key=lambda entry: entry[0])
            kinds = {(scores["problems"], scores["suite_digest"]) for _, scores in entries}
            if len(kinds) > 1:
                raise ValueError(f"{folder}: {name} was scored on different problems of {suite}: {kinds}")
            ((problems, digest),) = kinds
            solved = tuple(frozenset(scores["solved"]) for _, scores in entries)
            runs.setdefault(name, {})[suite] = Scored(problems, digest, solved)
    return runs


def differences(runs: Runs, a: str, b: str, suites: Sequence[str]) -> dict[str, Any] | None:
    """B - A in points, pooled over the suites that both have; None where they share none.

    Raises ValueError where the two were scored on different problems under one name.
    """
    shared = [suite for suite in suites if suite in runs[a] and suite in runs[b]]
    if not shared:
        return None
    pairs_a: list[tuple[int, int]] = []
    pairs_b: list[tuple[int, int]] = []
    for suite in shared:
        first, second = runs[a][suite], runs[b][suite]
        if first.digest != second.digest or first.problems != second.problems:
            raise ValueError(f"{suite}: {a} and {b} were scored on different problems")
        pairs_a += _pairs(first, _names(first, second))
        pairs_b += _pairs(second, _names(first, second))
    found = compare(pairs_a, pairs_b)
    solved_a, solved_b = (
        [sum(counts) for counts in zip(*(runs[name][suite].counts for suite in shared), strict=False)]
        for name in (a, b)
    )
    single = [100 * (solved_b[i] - solved_a[j]) / len(pairs_a) for i, j in _matched(solved_b, solved_a)]
    return {
        "suites": shared,
        "problems": found.problems,
        "score_a": 100 * found.mean_a,
        "score_b": 100 * found.mean_b,
        "difference": 100 * found.difference,
        "low": 100 * found.interval.low,
        "high": 100 * found.interval.high,
        "p_value": found.p_value,
        "test": found.test,
        "seed_pairs": {"n": len(single), "min": min(single), "max": max(single)},
    }


def _names(first: Scored, second: Scored) -> list[str]:
    """All names that any seed solved, and stand-ins for the problems that none did."""
    named = sorted(frozenset().union(*first.solved, *second.solved))
    return named + [f"unsolved {number}" for number in range(first.problems - len(named))]


def _pairs(scored: Scored, names: Sequence[str]) -> list[tuple[int, int]]:
    return [(len(scored.solved), sum(name in solved for solved in scored.solved)) for name in names]


def _matched(b: Sequence[int], a: Sequence[int]) -> list[tuple[int, int]]:
    """Seeds of B and A by position; a run of one seed stands against every seed of the other."""
    if len(a) == 1 or len(b) == 1:
        return [(i, j) for i in range(len(b)) for j in range(len(a))]
    return [(i, i) for i in range(min(len(a), len(b)))]


def report(folder: Path, pooled: Sequence[str], against: Sequence[str]) -> dict[str, Any]:
    """Counts of every run and suite, and the pooled differences of each run against the runs `against`.

    Raises ValueError as `read_results` does, and on a run that is not there.
    """
    runs = read_results(folder)
    for name in against:
        if name not in runs:
            raise ValueError(f"--against {name}: the study has {', '.join(runs)}")
    suites = list(dict.fromkeys(suite for scores in runs.values() for suite in scores))
    chosen = [suite for suite in suites if suite in pooled] or suites
    return {
        "folder": str(folder),
        "suites": suites,
        "pooled": chosen,
        "runs": {
            name: {suite: {**asdict(s), "counts": s.counts, "solved": None} for suite, s in scores.items()}
            for name, scores in runs.items()
        },
        "differences": [
            {"a": a, "b": b, "of": label, **found}
            for a in against
            for b in runs
            if a != b
            for label, of in (("pooled", chosen), *((suite, [suite]) for suite in chosen))
            if (found := differences(runs, a, b, of)) is not None
        ],
    }


def markdown(found: Mapping[str, Any]) -> str:
    """Two tables: counts by run, and pooled differences."""
    suites, lines = found["suites"], []
    header = ["run", "seeds", *suites]
    lines += [_row(header), _row(["---"] * len(header))]
    for name in sorted(found["runs"], key=lambda each: (each != BASE, each)):
        scores = found["runs"][name]
        seeds = max(len(scores[suite]["counts"]) for suite in scores)
        lines.append(_row([name, str(seeds), *(_counts(scores.get(suite)) for suite in suites)]))
    lines += ["", f"Differences in points over {', '.join(found['pooled'])} together, and of each:", ""]
    header = ["B - A", "of", "difference", "95 % interval", "single seeds", "p", "problems"]
    lines += [_row(header), _row(["---"] * len(header))]
    for entry in found["differences"]:
        seeds = entry["seed_pairs"]
        lines.append(
            _row(
                [
                    f"{entry['b']} - {entry['a']}",
                    entry["of"],
                    f"{entry['difference']:+.1f}",
                    f"{entry['low']:+.1f} to {entry['high']:+.1f}",
                    f"{seeds['min']:+.1f} to {seeds['max']:+.1f} (n = {seeds['n']})",
                    f"{entry['p_value']:.2g}",
                    str(entry["problems"]),
                ]
            )
        )
    return "\n".join(lines) + "\n"


def _counts(scores: Mapping[str, Any] | None) -> str:
    if scores is None:
        return "-"
    counts, problems = scores["counts"], scores["problems"]
    listed = " / ".join(map(str, counts))
    if len(counts) > 1:
        return f"{listed} of {problems} ({fmean(counts) / problems:.1%})"
    low, high = wilson_interval(counts[0], problems)
    return f"{listed} of {problems} ({counts[0] / problems:.1%}, {low:.1%} to {high:.1%})"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
