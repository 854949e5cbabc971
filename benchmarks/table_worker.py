"""One way of running a model in a process of its own, told what to do line by line, for `rrtf-bench table`.

Run as: python table_worker.py SETTINGS, where SETTINGS is a JSON object that names the way as "engine".

Questions come as JSON lines on stdin, answers go as JSON lines to stdout:

    (start)                                                   -> {"ready": versions, "import_s"}
    {"ask": "load"}                                           -> {"described": {...}, "load_s"}
    {"ask": "generate", "prompts", "max_tokens", "end_ids"}   -> {"rows": [{"tokens", "at"}], "device_mb"}

`at` holds the second, counted from the question, at which each token was there. A failure is answered with
{"error"} and ends the process. At the top this file imports nothing but the standard library, so that it
runs in a peer's environment too, which has nothing of this project.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Rows = list[dict[str, list[Any]]]


class Way(Protocol):
    """Made from the settings, which imports its libraries; everything else waits for `load`."""

    def versions(self) -> dict[str, str]: ...

    def load(self) -> dict[str, Any]:
        """Load the model; what was loaded, as plain data."""

    def generate(self, prompts: list[list[int]], max_tokens: int, end_ids: list[list[int]]) -> Rows:
        """Decode greedily, all rows together. `end_ids`: the tokens that end each row, not reported."""

    def device_mb(self) -> float | None:
        """Peak memory of the accelerator in MB (10^6 bytes); None on a CPU."""


def serve(settings: dict[str, Any]) -> int:
    """Answer until stdin ends; 1 after a failure."""
    # stdout is the parent's; whatever a library prints goes to stderr, at the level of the descriptors.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    try:
        started = time.perf_counter()
        way = way_of(settings)
        answer({"ready": way.versions(), "import_s": time.perf_counter() - started})
        for line in sys.stdin:
            answer(_answered(way, json.loads(line)))
    except Exception as error:  # the parent reports it as this row's reason
        traceback.print_exc()
        # Those two are written for the user; what else comes needs its name.
        plain = isinstance(error, ValueError) or type(error).__name__ == "ModelError"
        answer({"error": str(error) if plain else f"{type(error).__name__}: {error}"})
        return 1
    return 0


def _answered(way: Way, question: dict[str, Any]) -> dict[str, Any]:
    if question["ask"] == "load":
        started = time.perf_counter()
        described = way.load()
        return {"described": described, "load_s": time.perf_counter() - started, "device_mb": way.device_mb()}
    rows = way.generate(question["prompts"], question["max_tokens"], question["end_ids"])
    return {"rows": rows, "device_mb": way.device_mb()}


def way_of(settings: dict[str, Any]) -> Way:
    if settings["engine"] == "llama":
        # By its place: in the peer's environment there is no package to import it from.
        make: Callable[[dict[str, Any]], Way] = runpy.run_path(
            str(Path(__file__).with_name("table_llama.py"))
        )["LlamaWay"]
    else:
        names = {"transformers": "TransformersWay", "ct2": "EngineWay", "torch": "EngineWay"}
        if settings["engine"] == "ct2" and settings["device"] == "cpu":
            # As in the base install, which has none: ctranslate2 would import it, 200 MB that nothing uses.
            sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` fail
        make = getattr(import_module("benchmarks.table_ways"), names[settings["engine"]])
    return make(settings)


def die_with_parent() -> None:
    """A child that waits stopped would outlive a parent that was killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    die_with_parent()
    sys.exit(serve(json.loads(sys.argv[1])))
