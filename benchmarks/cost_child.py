"""One side of a measurement in a process of its own, so that its peak memory is its own.

    report = in_child("grpo", settings)          # the parent

The child is `python -m benchmarks.cost_child WORK`: settings come as JSON on stdin, the report goes as one
line of JSON to stdout, with the process' time and memory under "process". All else, progress too, is stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import import_module
from typing import Any

from benchmarks.server import resident_mb
from benchmarks.table_worker import die_with_parent
from rrtf_serve.models.errors import ModelError
from rrtf_serve.problems.samplers import SamplerError
from rrtf_serve.sandbox.limits import SandboxUnavailable

# What a child can do: the module is imported there alone.
WORKS = {
    "rrtf": ("benchmarks.cost_rrtf", "align"),
    "grpo": ("benchmarks.cost_grpo", "align"),
    "grpo-check": ("benchmarks.cost_grpo", "check"),
    "steps": ("benchmarks.cost_steps", "time_steps"),
    "sampling": ("benchmarks.cost_sampling", "time_sampling"),
}


def in_child(work: str, settings: dict[str, Any], threads: int = 0) -> dict[str, Any]:
    """Do one of WORKS in a process of its own; its report. threads: CPU threads of its libraries; 0: theirs.

    "process" holds `wall_s` (import and start left out), `base_mb` (libraries loaded, no model), `peak_mb`
    (the kernel's high-water mark of resident memory, MB of 10^6 bytes; the sandbox's own processes are not in
    it) and `cuda_peak_mb` (what torch reserved at most; None without CUDA).
    Raises ValueError or ModelError where the child did, RuntimeError where it ended without a report.
    """
    if work not in WORKS:
        raise ValueError(f"{work}: must be one of {', '.join(WORKS)}")
    environment = {**os.environ, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.cost_child", work],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    try:
        out, _ = process.communicate(json.dumps(settings))
    finally:  # stopped here, the child must not go on
        if process.poll() is None:
            process.kill()
            process.wait()
    if not out.strip():
        ended = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        why = ", most likely for want of memory" if process.returncode == -9 else "; its message is above"
        raise RuntimeError(f"{work}: the measuring process ended with {ended}{why}")
    report: dict[str, Any] = json.loads(out)
    if "error" in report:
        kind = {"ValueError": ValueError, "ModelError": ModelError}.get(report["kind"], RuntimeError)
        raise kind(report["error"])
    return report


def main(work: str) -> int:
    """The child's side."""
    # stdout is the parent's; whatever a library prints goes to stderr, at the level of the descriptors.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    settings = json.load(sys.stdin)
    module, name = WORKS[work]
    try:
        do = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        needed = f"{work} needs {error.name}, which is not installed: pip install 'rrtf-serve[train]'"
        json.dump({"error": needed, "kind": "ModelError"}, out)
        return 1
    base, _ = resident_mb(os.getpid())
    began = time.perf_counter()
    try:
        report = do(settings)
    except (ValueError, ModelError, SamplerError, SandboxUnavailable) as error:  # words for the user
        kind = next((each for each in ("ModelError", "ValueError") if each in _names(error)), "RuntimeError")
        json.dump({"error": str(error), "kind": kind}, out)
        return 1
    wall = time.perf_counter() - began
    _, peak = resident_mb(os.getpid())
    report["process"] = {
        "wall_s": round(wall, 3), "base_mb": round(base, 1), "peak_mb": round(peak, 1),
        "cuda_peak_mb": _cuda_peak_mb(),
    }  # fmt: skip
    json.dump(report, out)
    return 0


def _names(error: Exception) -> list[str]:
    return [kind.__name__ for kind in type(error).__mro__]


def _cuda_peak_mb() -> float | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(float(torch.cuda.max_memory_reserved()) / 1e6, 1)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main(sys.argv[1]))
