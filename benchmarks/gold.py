"""`rrtf-bench gold`: run every reference solution of a suite; those that fail here are named."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from benchmarks.judge import SandboxOptions
from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.problems import gold
from rrtf_serve.problems.suites import load_suite


def gold_gate(
    name: str, data_dir: Path | None, options: SandboxOptions, *, fresh: bool = True
) -> dict[str, Any]:
    """Raises ValueError for a suite without reference solutions or tests."""
    suite = load_suite(name, data_dir)
    total = sum(p.reference is not None and p.tests is not None for p in suite.problems.values())
    if not total:
        raise ValueError(f"{name}: this data set comes without reference solutions or without tests")
    started = time.monotonic()
    with options.open() as sandbox:
        golds = gold.measure(suite, sandbox, fresh=fresh)
        level = sandbox.level.value
    failed = {
        task: f"{found.result}: {found.message}"[:300] for task, found in golds.items() if not found.passed
    }
    unknown = [task for task, p in suite.problems.items() if p.reference is not None and task not in golds]
    return {
        "suite": suite.name,
        "suite_digest": suite.digest,
        "sandbox": level,
        "site_packages": [str(folder) for folder in options.site_packages],
        "passed": len(golds) - len(failed),
        "references": total,
        "failed": failed,
        "failed_by_the_sandbox": unknown,
        "seconds": summary([found.seconds for found in golds.values()] or [0.0]),
        "wall_seconds": round(time.monotonic() - started, 2),
        "ok": not failed and not unknown,
        "machine": machine_record(),
    }
