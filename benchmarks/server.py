"""A server under measurement: the real `rrtf-serve` in a process of its own, and a client that adds little.

The client reads Server-Sent Events from a plain socket, so that what is measured is the server's cost and not
an SDK's.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

START_LIMIT_S = 600
PAUSE_S = 0.5  # before each timed run, so that all find the engine's threads asleep


@dataclass(frozen=True)
class Server:
    address: str
    pid: int
    seconds_to_ready: float  # from the process's start to the printed address
    process: subprocess.Popen[str]


@contextmanager
def running_server(*flags: str, stderr: Path | None = None) -> Iterator[Server]:
    """Start `rrtf-serve FLAGS` on a free port and stop it at the end. Raises RuntimeError with its output.

    stderr: where that goes, None: into a file of its own until the end."""
    with tempfile.TemporaryFile("w+") if stderr is None else stderr.open("w") as errors:
        started = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "rrtf_serve.main", "--port", "0", *flags],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = re.match(r"\s+API\s+(\S+)/v1$", line)
                if found:
                    address = found.group(1)
                    _wait_for_health(address, started)
                    yield Server(address, process.pid, time.monotonic() - started, process)
                    break
            else:
                errors.seek(0)
                said = errors.read()[-2000:] if stderr is None else f"see {stderr}"
                raise RuntimeError(f"the server did not start:\n{said}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)
            if process.stdout is not None:
                process.stdout.close()


def _wait_for_health(address: str, started: float) -> None:
    while time.monotonic() - started < START_LIMIT_S:
        try:
            if get_json(f"{address}/health"):
                return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError(f"{address}/health does not answer")


def get_json(url: str) -> Any:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request("GET", parts.path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def post_json(url: str, body: dict[str, Any], timeout_s: float = 600) -> dict[str, Any]:
    """POST and read a JSON answer. Raises RuntimeError with the server's message on any status but 200."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=timeout_s)
    try:
        connection.request("POST", parts.path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        payload = response.read()
        if response.status != 200:
            raise RuntimeError(f"{url}: {response.status} {payload[:500].decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(payload)
        return answer
    finally:
        connection.close()


@dataclass(frozen=True)
class StreamTiming:
    ttft_s: float  # request sent to first token event
    decode_tokens_per_s: float  # tokens after the first, over the time from the first to the last


def time_stream(url: str, body: dict[str, Any]) -> StreamTiming:
    """Stream one completion and time its token events; raises RuntimeError on fewer than two tokens."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=600)
    arrivals: list[float] = []
    tokens = 0
    try:
        payload = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}})
        started = time.perf_counter()
        connection.request("POST", parts.path, payload, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{url}: {response.status} {response.read()[:500]!r}")
        for line in response:
            if line.startswith(b"data: {"):
                arrivals.append(time.perf_counter())
                if b'"completion_tokens"' in line:
                    tokens = json.loads(line[6:])["usage"]["completion_tokens"]
    finally:
        connection.close()
    if tokens < 2:
        raise RuntimeError(f"{url}: only {tokens} tokens came; the prompt ends too early to time")
    # The last two events carry the finish reason and the usage: the last token came no later than those.
    return StreamTiming(arrivals[0] - started, (tokens - 1) / (arrivals[-1] - arrivals[0]))


def time_stream_apart(url: str, body: dict[str, Any]) -> StreamTiming:
    """`time_stream` in a process of its own, so that it takes no turn from a server in this one."""
    command = [sys.executable, "-m", "benchmarks.server"]
    done = subprocess.run(
        command, input=json.dumps([url, body]), stdout=subprocess.PIPE, text=True, check=True
    )
    return StreamTiming(*json.loads(done.stdout))


def resident_mb(pid: int) -> tuple[float, float]:
    """Resident memory now and at its peak, in MB (10^6 bytes), from /proc (Linux)."""
    fields = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines()
        if ":" in line
    )
    now, peak = (int(fields[name].split()[0]) * 1024 / 1e6 for name in ("VmRSS", "VmHWM"))
    return now, peak


if __name__ == "__main__":
    time.sleep(PAUSE_S)
    json.dump(astuple(time_stream(*json.load(sys.stdin))), sys.stdout)
