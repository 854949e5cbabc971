"""Time and peak memory of converting a model, each run in a fresh process."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.models.store import Store

# ru_maxrss is in KiB on Linux and in bytes on macOS.
CHILD = """
import json, resource, sys, time
from pathlib import Path
from convert.ct2 import convert
from rrtf_serve.models.store import Store
spec, quantization, folder = sys.argv[1:]
source = Store().fetch(spec)
started = time.monotonic()
convert(source, Path(folder), quantization=quantization, progress=False)
seconds = time.monotonic() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
size = sum(path.stat().st_size for path in Path(folder).iterdir())
print(json.dumps({"seconds": seconds, "peak_mb": peak / 1e6, "size_mb": size / 1e6}))
"""


def measure_conversion(model: str, *, quantization: str, repeats: int) -> dict[str, Any]:
    """Seconds, peak resident MB and folder MB (10^6 bytes) of `repeats` conversions to CTranslate2."""
    Store().fetch(model)  # the download is not what is timed
    runs = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as parent:
            command = [sys.executable, "-c", CHILD, model, quantization, str(Path(parent) / "model")]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.append(json.loads(done.stdout))
    return {
        "model": model,
        "quantization": quantization,
        **{key: summary([run[key] for run in runs]) for key in ("seconds", "peak_mb", "size_mb")},
        "machine": machine_record(),
    }
