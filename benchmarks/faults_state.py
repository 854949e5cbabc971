"""Is the server well after a fault? It answers what it answered before, decodes nothing, holds nothing."""

from __future__ import annotations

import http.client
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from benchmarks.holdings import Bounds, Holdings, grown, held
from benchmarks.load_asks import COMPLETIONS
from benchmarks.load_target import Target

LOOK_S = 0.05
PROBE = {"prompt": "def fibonacci(n):\n    ", "max_tokens": 16, "temperature": 0}
TIMEOUT_S = 600.0
# Of memory: the first fault on a fresh server is the first time that many rows run at once.
BOUNDS = Bounds(growth=0.25, spare_mb=200)


class FaultFound(Exception):  # noqa: N818 - what is found is a fault of the server
    """The server did not take the fault as it must."""


@dataclass
class Fault:
    """One fault as it was tried. facts: what was seen; problems: what was wrong with it."""

    name: str
    facts: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def expect(self, holds: bool, problem: str) -> None:
        if not holds:
            self.problems.append(problem)


@dataclass(frozen=True)
class Baseline:
    """The server at rest: its answer to the probe, what it holds (None: it runs elsewhere)."""

    answer: str
    held: Holdings | None


def baseline(target: Target) -> Baseline:
    answer = probe(target)
    holds_within(lambda: not busy(target), 60)
    return Baseline(answer, None if target.pid is None else held(target.pid))


def probe(target: Target) -> str:
    """A short greedy completion's text; raises FaultFound on anything but an answer."""
    try:
        status, answer = _ask(target, "POST", COMPLETIONS, {"model": target.model, **PROBE})
    except (OSError, http.client.HTTPException) as error:
        raise FaultFound(f"the probe got {type(error).__name__}: {error}") from error
    if status != 200:
        raise FaultFound(f"the probe got {status}: {answer[:300]}")
    return str(json.loads(answer)["choices"][0]["text"])


def busy(target: Target) -> float:
    """Rows that are decoded and requests that wait, by /metrics."""
    text = metrics_text(target)
    return metric(text, "vllm:num_requests_running") + metric(text, "vllm:num_requests_waiting")


def metric(text: str, name: str) -> float:
    """The sum of a metric over its labels, from Prometheus' text format."""
    found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))


def metrics_text(target: Target) -> str:
    """Raises FaultFound where the server doesn't tell."""
    try:
        status, text = _ask(target, "GET", "/metrics")
    except (OSError, http.client.HTTPException) as error:
        raise FaultFound(f"/metrics: {type(error).__name__}: {error}") from error
    if status != 200:
        raise FaultFound(f"/metrics: {status} {text[:200]}")
    return text


def check_after(target: Target, before: Baseline, fault: Fault, patience_s: float) -> None:
    """Add what is wrong with the server now; patience_s: for what it decodes to end, and sockets to go."""
    started = time.monotonic()
    try:
        if not holds_within(lambda: not busy(target), patience_s):
            fault.problems.append(
                f"{busy(target):g} rows and requests are still there {patience_s:g} s later"
            )
        fault.facts["rest_after_s"] = time.monotonic() - started
        answer = probe(target)
    except FaultFound as error:
        fault.problems.append(f"afterwards: {error}")
        return
    fault.expect(answer == before.answer, f"the probe got {answer!r}, before it was {before.answer!r}")
    if target.pid is not None and before.held is not None:
        pid, first = target.pid, before.held
        holds_within(lambda: not grown(first, held(pid), BOUNDS), patience_s)
        now = held(pid)
        fault.facts |= now.record()
        fault.problems += grown(first, now, BOUNDS)


def holds_within(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(LOOK_S)
    return True


def wait_until(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Raises FaultFound where it never does."""
    if not holds_within(holds, seconds):
        raise FaultFound(f"{what}: not within {seconds:g} s")


def _ask(target: Target, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
    """Status and body, over a connection of its own; raises OSError, http.client.HTTPException."""
    headers = {"authorization": f"Bearer {target.key}"} if target.key else {}
    data = None
    if body is not None:
        data, headers["content-type"] = json.dumps(body), "application/json"
    connection = http.client.HTTPConnection(urlsplit(target.address).netloc, timeout=TIMEOUT_S)
    try:
        connection.request(method, path, data, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")
    finally:
        connection.close()
