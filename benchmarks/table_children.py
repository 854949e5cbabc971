"""The parent's side of a `table_worker`: asks it, reads its memory, keeps it stopped while others are asked.

Stopped by signal: a worker's threads may spin while they wait for work, and would take a core from the one
that is being measured.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.server import resident_mb

_WORKER = Path(__file__).with_name("table_worker.py")
_TAIL = 2000  # bytes of stderr that are looked at for a reason


class ChildFailedError(Exception):
    """The worker reported an error or ended; the text says why."""


@dataclass
class Load:
    """One loading of a model in a fresh process. Seconds; MB are 10^6 bytes, resident, from /proc.

    `base_mb` is the process with its libraries imported, before the model; `used_mb` is after the last
    answer: weights in a mapped file are resident only once they are read. The peaks are the kernel's own
    high-water mark of the process. `device_mb` is the accelerator's peak, None on a CPU.
    """

    import_s: float
    load_s: float
    base_mb: float
    loaded_mb: float
    load_peak_mb: float
    used_mb: float
    peak_mb: float
    device_mb: float | None

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Child:
    """A worker with its model loaded; to be closed. Raises ChildFailedError, from any method."""

    def __init__(self, settings: dict[str, Any], python: str = sys.executable) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        # llama.cpp's environment has no `benchmarks`, and must not take this folder's modules for others.
        own = settings["engine"] != "llama"
        place = ["-m", "benchmarks.table_worker"] if own else ["-I", str(_WORKER)]
        threads = {"OMP_NUM_THREADS": str(settings["threads"])} if settings["threads"] else {}
        try:
            self._process = subprocess.Popen(
                [python, *place, json.dumps(settings)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
                env={**os.environ, **threads}, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise ChildFailedError(f"{python}: {error.strerror}") from error
        try:
            ready = self._read()
            base, _ = resident_mb(self._process.pid)
            loaded = self.ask({"ask": "load"})
            resident, peak = resident_mb(self._process.pid)
        except BaseException:
            self.close()
            raise
        self.versions: dict[str, str] = ready["ready"]
        self.described: dict[str, Any] = loaded["described"]
        device = loaded["device_mb"]
        self.load = Load(ready["import_s"], loaded["load_s"], base, resident, peak, resident, peak, device)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer; it runs from here to there and no longer."""
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise ChildFailedError(self._reason()) from None
        answer = self._read()
        self._signal(signal.SIGSTOP)
        return answer

    def generate(
        self, prompts: list[list[int]], max_tokens: int, end_ids: list[list[int]] | None = None
    ) -> list[dict[str, list[Any]]]:
        """Rows of `tokens` and `at` (seconds), see table_worker; keeps `load`'s peaks up to date."""
        ends = end_ids if end_ids is not None else [[] for _ in prompts]
        answer = self.ask({"ask": "generate", "prompts": prompts, "max_tokens": max_tokens, "end_ids": ends})
        self.load.used_mb, self.load.peak_mb = resident_mb(self._process.pid)
        if answer["device_mb"] is not None:
            self.load.device_mb = answer["device_mb"]
        rows: list[dict[str, list[Any]]] = answer["rows"]
        return rows

    @property
    def pid(self) -> int:
        return self._process.pid

    def close(self) -> None:
        """End the worker and whatever it started. Idempotent."""
        self._signal(signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream is not None
            try:
                stream.close()
            except BrokenPipeError:
                continue  # a question that was never read

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ChildFailedError(self._reason())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ChildFailedError(answer["error"])
        return answer

    def _signal(self, number: signal.Signals) -> None:
        # The worker leads a group of its own, which is there as long as the worker has not been waited for.
        if self._process.returncode is None:
            os.killpg(self._process.pid, number)

    def _reason(self) -> str:
        status = self._process.wait()
        if status == -signal.SIGKILL:
            return "the process was killed, most likely for want of memory"
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _TAIL))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        ended = f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
        return f"the process ended with {ended}" + (f"; the last it said: {lines[-1]}" if lines else "")
