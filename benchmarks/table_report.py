"""What `rrtf-bench table` has measured, as one plain record: figures, comparisons, targets."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from benchmarks.machine import machine_record
from benchmarks.spread import summary
from benchmarks.table_rounds import PREFILL, Measured, Rounds
from benchmarks.table_rows import Prepared, Row

# The paper's own ratio at batch 1, 75 ms to 33 ms, and half the memory (32.36 GB to 16.29 GB).
SPEED_TARGET, MEMORY_TARGET = 2.27, 0.5
MARGIN = 0.05  # of pass@1, as in `rrtf-bench variants`: twice what kernel noise moves a greedy score by

ON_DEVICE = (
    "Memory of the device is what torch reserved at its peak; for CTranslate2, which torch can't count, what "
    "the whole device held more than before."
)

Report = dict[str, Any]


@dataclass(frozen=True)
class Facts:
    """What there is to report. By row: why it could not be prepared, its score, its paired test."""

    model: str
    rows: list[Row]
    baseline: str
    prepared: list[Prepared]
    rounds: Rounds
    failed: dict[str, str]
    scores: dict[str, Report]
    tests: dict[str, Report]


def make_report(facts: Facts, settings: Report, suite: str | None) -> Report:
    """Everything measured so far; table_page makes the page of it."""
    rows = [_row(facts, row) for row in facts.rows]
    measured = {row["name"]: row for row in rows if not row.get("failed")}
    base = measured.get(facts.baseline)
    for name, row in measured.items():
        if base is not None and name != facts.baseline:
            row["against"] = _against(facts.rounds.of(facts.baseline), facts.rounds.of(name), base, row)
    for row in rows:
        score = facts.scores.get(row["name"])
        if score is not None:
            row["suite_failed" if "failed" in score else "suite"] = score.get("failed", score)
        if row["name"] in facts.tests:
            row["paired"] = facts.tests[row["name"]]
    done = max((len(facts.rounds.of(name).rounds) for name in measured), default=0)
    return {
        "title": f"Ways to run {facts.model}",
        "model": facts.model,
        "command": " ".join(["rrtf-bench", *sys.argv[1:]]),
        "settings": settings | {"repeats": done, "order": "in which all ways take turns at each task"},
        "baseline": facts.baseline,
        "suite": suite,
        "notes": _notes(facts, settings, rows),
        "rows": rows,
        "targets": targets(rows),
        "machine": machine_record(),
    }


def _row(facts: Facts, row: Row) -> Report:
    each = next((each for each in facts.prepared if each.row == row), None)
    if each is None:
        return {"name": row.name, "spec": row.spec, "engine": row.engine, "failed": facts.failed[row.name]}
    measured = facts.rounds.of(row.name)
    found: Report = {
        "name": row.name, "spec": row.spec, "engine": row.engine, "digest": each.digest,
        "size_bytes": each.size_bytes, "described": measured.described, "versions": measured.versions,
    }  # fmt: skip
    return found | row_figures(measured)


def row_figures(measured: Measured) -> Report:
    """Medians with their spread: seconds, MB, tokens/s of the prefill, ms per token of each batch."""
    if measured.failed or not measured.rounds or not measured.alone:
        return {"failed": measured.failed or "no round is complete yet"}
    every = [measured.alone, *measured.loads]
    names = ("base_mb", "loaded_mb", "load_peak_mb", "used_mb", "peak_mb", "device_mb")
    tasks = list(measured.rounds[0])
    return {
        # The first loading reads from the disk what the later ones find in the page cache.
        "load_s": summary([load["load_s"] for load in measured.loads or every]),
        "first_load_s": measured.alone["load_s"],
        "import_s": summary([load["import_s"] for load in every]),
        "memory": {
            name: summary([load[name] for load in every])
            for name in names
            if measured.alone[name] is not None
        },
        "figures": {task: summary([found[task] for found in measured.rounds]) for task in tasks},
        "tokens_per_s": {
            task: summary([1000 * int(task) / found[task] for found in measured.rounds])
            for task in tasks
            if task != PREFILL
        },
    }


def _against(base: Measured, other: Measured, base_row: Report, row: Report) -> Report:
    """How many times as fast, overall and round by round; above 1 is faster. Peak memory as a share."""
    found: Report = {}
    for task in row["figures"]:
        pairs = [(a[task], b[task]) for a, b in zip(base.rounds, other.rounds, strict=True)]
        ours, theirs = row["figures"][task]["median"], base_row["figures"][task]["median"]
        found[task] = {
            "medians": ours / theirs if task == PREFILL else theirs / ours,
            "paired": summary([b / a if task == PREFILL else a / b for a, b in pairs]),
        }
    share = row["memory"]["peak_mb"]["median"] / base_row["memory"]["peak_mb"]["median"]
    return found | {"peak_memory": share}


def targets(rows: list[Report]) -> list[Report]:
    """The paper's claims for CTranslate2 int8 against transformers float32, as they come out here."""
    base = _find(rows, "transformers", "dtype", "float32")
    ours = _find(rows, "ct2", "compute_type", "int8")
    speed = f"CTranslate2 int8 at batch 1 at least {SPEED_TARGET} times as fast as transformers float32"
    room = f"at no more than {MEMORY_TARGET:g} of its memory (peak, and in use)"
    if base is None or ours is None or "1" not in base["figures"]:
        return [{"target": text, "figure": "-", "met": None} for text in (speed, room)]
    ratio = base["figures"]["1"]["median"] / ours["figures"]["1"]["median"]
    shares = [ours["memory"][n]["median"] / base["memory"][n]["median"] for n in ("peak_mb", "used_mb")]
    shown = " and ".join(f"{share:.2f}" for share in shares)
    found: list[Report] = [
        {"target": speed, "figure": f"{ratio:.2f}", "met": ratio >= SPEED_TARGET},
        {"target": room, "figure": shown, "met": max(shares) <= MEMORY_TARGET},
    ]
    test = ours.get("paired")
    if test and test["a"] == base["name"]:
        low, high = test["interval"]["low"], test["interval"]["high"]
        figure = f"{100 * test['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        text = f"its score not worse by {100 * MARGIN:g} points or more (95 % interval, paired)"
        found.append({"target": text, "figure": figure, "met": low > -MARGIN})
    return found


def _find(rows: list[Report], engine: str, key: str, start: str) -> Report | None:
    """The first row of the engine whose description says so, whatever it is called."""
    measured = [row for row in rows if not row.get("failed") and row["engine"] == engine]
    return next((row for row in measured if str(row["described"].get(key)).startswith(start)), None)


def _notes(facts: Facts, settings: Report, rows: list[Report]) -> list[str]:
    notes = []
    if not facts.rounds.together:
        notes.append("The rows do not fit into memory together: each was loaded anew in each round.")
    if settings["device"] == "cuda":
        notes.append(ON_DEVICE)
    return notes + [
        f"{row['name']}: the suite failed ({row['suite_failed']})" for row in rows if "suite_failed" in row
    ]
