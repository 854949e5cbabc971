"""The server under load: `rrtf-serve` as a process of its own, one that runs already, or a peer's."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2

from benchmarks.server import START_LIMIT_S, resident_mb, running_server

SAMPLE_S = 1.0  # between two looks at the memory


@dataclass(frozen=True)
class Target:
    address: str  # without a path
    model: str  # the name that requests carry
    infill: bool
    pid: int | None = None  # None: a server that runs elsewhere
    key: str | None = None
    ours: bool = True  # answers with the request's own id, as rrtf-serve does
    flags: tuple[str, ...] = ()
    process: subprocess.Popen[str] | None = None  # of a server that was started here


@contextmanager
def own_target(model: str, flags: tuple[str, ...], *, stderr: Path | None = None) -> Iterator[Target]:
    """Start `rrtf-serve --model MODEL FLAGS`; raises RuntimeError with its output where it doesn't start."""
    with running_server("--model", model, *flags, stderr=stderr) as server:
        found = described(server.address, pid=server.pid)
        yield replace(found, flags=flags, process=server.process)


@contextmanager
def peer_target(address: str, command: str) -> Iterator[Target]:
    """Start a server by its command line and wait until it answers at `address`."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(shlex.split(command), stdout=output, stderr=subprocess.STDOUT)
        try:
            started = time.monotonic()
            while True:
                try:
                    target = described(address, pid=process.pid, ours=False)
                    break
                except ConnectionError as error:
                    if process.poll() is not None or time.monotonic() - started > START_LIMIT_S:
                        output.seek(0)
                        raise RuntimeError(
                            f"{command}: no answer at {address}\n{output.read()[-2000:]}"
                        ) from error
                time.sleep(0.2)
            yield target
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def described(address: str, *, pid: int | None = None, key: str | None = None, ours: bool = True) -> Target:
    """What the server says of itself under /v1/models: its first model, and whether that fills in the middle.

    Raises RuntimeError where ours gives another answer, ConnectionError where nobody answers."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx2.get(f"{address}/v1/models", headers=headers, trust_env=False, timeout=60)
    except httpx2.TransportError as error:
        raise ConnectionError(f"{address}/v1/models: {error}") from error
    if answer.status_code != 200 and ours:
        raise RuntimeError(f"{address}/v1/models: {answer.status_code} {answer.text[:300]}")
    # `transformers serve` lists the hub's cache, where it has one, and not the folder that it was given.
    listed = answer.json()["data"] if answer.status_code == 200 else []
    first: dict[str, Any] = listed[0] if listed else {"id": "any"}
    return Target(address, first["id"], bool(first.get("infill")), pid, key, ours)


@dataclass
class Memory:
    """Resident MB (10^6 bytes) of a process, looked at every second in a thread. Linux."""

    pid: int
    samples: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def now(self) -> float:
        return resident_mb(self.pid)[0]

    def watch(self) -> None:
        while True:
            self.samples.append(self.now())
            if self._stop.wait(SAMPLE_S):
                return

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def watched(pid: int | None) -> Iterator[Memory | None]:
    if pid is None:
        yield None
        return
    memory = Memory(pid)
    thread = threading.Thread(target=memory.watch, name="memory")
    thread.start()
    try:
        yield memory
    finally:
        memory.stop()
        thread.join()
