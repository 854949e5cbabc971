"""`rrtf-bench gold`: run every reference solution of a suite; those that fail here are named."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.problems import gold
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.options import SandboxOptions

log = logging.getLogger(__name__)


def gold_gate(
    name: str, data_dir: Path | None, options: SandboxOptions, *, fresh: bool = True, limit: int | None = None
) -> dict[str, Any]:
    """`limit`: only the first problems. Raises ValueError for a suite without references or tests."""
    if limit is not None and limit < 1:
        raise ValueError(f"--limit must be at least 1, not {limit}")
    suite = load_suite(name, data_dir)
    problems = list(suite.problems.values())[:limit]
    total = sum(p.reference is not None and p.tests is not None for p in problems)
    if not total:
        lacking = "tests" if all(p.tests is None for p in problems) else "reference solutions"
        raise ValueError(f"{name}: this data set comes without {lacking}")
    started = time.monotonic()
    with options.open() as sandbox:
        golds = gold.measure(suite, sandbox, [p.task_id for p in problems], fresh=fresh)
        level = sandbox.level.value
    failed = {
        task: f"{found.result}: {found.message}"[:300] for task, found in golds.items() if not found.passed
    }
    unknown = [p.task_id for p in problems if p.reference is not None and p.task_id not in golds]
    if any("ModuleNotFoundError" in text or "No module named" in text for text in failed.values()):
        log.warning("references miss a package: name a folder that has it with --site-packages")
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
