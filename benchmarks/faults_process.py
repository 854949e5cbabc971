"""Faults of the process: it is told to stop while it works, is killed, can't write its log."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.faults_sockets import connected, head, post_json, read_answer
from benchmarks.faults_state import (
    Fault,
    FaultFound,
    baseline,
    busy,
    check_after,
    metric,
    metrics_text,
    wait_until,
)
from benchmarks.load import answer_all
from benchmarks.load_asks import CHAT, COMPLETIONS, Ask, asks, stubs
from benchmarks.load_client import Reply, client, send
from benchmarks.load_target import Target, own_target

FULL = Path("/dev/full")  # every write to it fails as on a full disk; Linux
DRAIN_S = 600
STOPPED_S = 60  # for the process to end once its last answer is out
ACCEPTED = 12  # requests under way when it is told to stop


def stop_under_load(model: str, flags: tuple[str, ...], patience_s: float, accepted: int = ACCEPTED) -> Fault:
    """SIGTERM: every accepted request gets its whole answer, nobody new is let in, the end is 0."""
    fault = Fault("SIGTERM under load")
    with own_target(model, (*flags, "--drain-seconds", str(DRAIN_S))) as target:
        assert target.process is not None
        todo = _long_asks(target, accepted)
        done: list[Reply] = []
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(asyncio.run, _answer_counted(target, todo, done))
            # Each makes one row: all have been accepted once so many run, wait or have ended.
            wait_until(lambda: busy(target) + len(done) >= len(todo), patience_s, "every request accepted")
            fault.facts["under_way"] = len(todo) - len(done)
            target.process.send_signal(signal.SIGTERM)
            fault.facts["new_request"] = late = _knock(target)
            replies = running.result()
        fault.expect(fault.facts["under_way"] > 0, "all had ended before the signal: nothing was tried")
        fault.expect(late in ("refused", "503"), f"a new request after SIGTERM got {late}")
        for reply in replies:
            fault.problems += reply.faults
        fault.expect(len(replies) == len(todo), f"{len(replies)} of {len(todo)} answers came")
        code = target.process.wait(STOPPED_S)
        fault.expect(code == 0, f"the process ended with {code}")
        fault.facts |= {"answers": len(replies), "exit_status": code}
    return fault


async def _answer_counted(target: Target, todo: Sequence[Ask], done: list[Reply]) -> list[Reply]:
    """All at once; each reply goes into `done` as it comes."""

    async def one(number: int, ask: Ask) -> None:
        done.append(await send(http, ask, f"drain-{number}"))

    async with client(target.address, target.key, len(todo)) as http:
        await asyncio.gather(*(one(number, ask) for number, ask in enumerate(todo)))
    return done


def _long_asks(target: Target, count: int) -> list[Ask]:
    """Half streamed, half whole; long enough that none has ended when the last one is accepted."""
    options = {"model": target.model, "max_tokens": 96, "temperature": 0.8}
    found = []
    for number, stub in enumerate(stubs()[:count]):
        body = {"prompt": stub.head, **options, "stream": number % 2 == 0}
        found.append(Ask("drain", COMPLETIONS, body))
    return found


def _knock(target: Target) -> str:
    """What somebody new gets once the server is stopping: "refused", or a status."""
    while True:
        try:
            with connected(target) as sock:
                sock.sendall(post_json(target, COMPLETIONS, {"prompt": "a", "max_tokens": 1}))
                status, _ = read_answer(sock)
        except OSError:
            return "refused"
        if status == 0:
            return "refused"
        if status != 200:  # the signal may not have arrived yet
            return str(status)


def killed(model: str, flags: tuple[str, ...], patience_s: float) -> Fault:
    """SIGKILL: clients see a cut stream and not a whole answer; the next start on the same port serves."""
    fault = Fault("kill -9")
    with own_target(model, (*flags, "--port", "0")) as target:
        assert target.process is not None
        assert target.pid is not None
        before = baseline(target)
        fault.facts["child_processes"] = len(_children(target.pid))
        port = target.address.rsplit(":", 1)[1]
        body = {"model": target.model, "messages": [{"role": "user", "content": "Count to one thousand."}],
                "max_tokens": 400, "temperature": 1, "stream": True}  # fmt: skip
        with connected(target) as sock:
            sock.sendall(post_json(target, CHAT, body))
            data = b""
            while data.count(b"data: ") < 2:
                chunk = sock.recv(4096)
                if not chunk:
                    raise FaultFound(f"the stream ended early: {data[-200:]!r}")
                data += chunk
            target.process.kill()
            data += _rest(sock)
        target.process.wait(STOPPED_S)
        fault.expect(b"[DONE]" not in data, "a stream of a killed server looked whole")
    with own_target(model, (*flags, "--port", port)) as again:
        check_after(again, before, fault, patience_s)
    # Another process: other numbers of files and threads are no fault.
    return fault


def _children(pid: int) -> list[str]:
    found: list[str] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += (thread / "children").read_text("utf-8").split()
    return found


def _rest(sock: socket.socket) -> bytes:
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionError:
        pass  # a reset says it, too
    return data


def full_disk(model: str, flags: tuple[str, ...], patience_s: float) -> Fault:
    """Neither a full disk under --log-file nor a full stderr may fail a request."""
    fault = Fault("full disk for logs")
    if not FULL.exists():
        fault.facts["skipped"] = f"{FULL}: no such device here"
        return fault
    ways: Sequence[tuple[str, tuple[str, ...], Path | None]] = (
        ("--log-file", ("--log-format", "json", "--log-file", os.fspath(FULL)), None),
        ("stderr", ("--log-format", "text"), FULL),
    )
    for name, more, stderr in ways:
        with own_target(model, (*flags, *more), stderr=stderr) as target:
            before = baseline(target)
            todo = asks(20, mix="plain", seed=0, infill=False, model=target.model)
            todo = [Ask(each.kind, each.path, {**each.body, "max_tokens": 4}) for each in todo]
            replies, _ = asyncio.run(answer_all(target, todo, 4, f"full {name}"))
            fault.problems += [f"{name}: {each}" for reply in replies for each in reply.faults]
            lost = metric(metrics_text(target), "rrtf:log_lines_lost_total")
            fault.facts[f"{name}: lines lost"] = lost
            fault.expect(lost >= len(todo), f"{name}: {lost:g} lost lines counted, not {len(todo)} or more")
            with connected(target) as sock:  # an error is logged as well
                sock.sendall(head(target, "GET", "/no/such/path"))
                fault.expect(read_answer(sock)[0] == 404, f"{name}: an unknown path is not answered with 404")
            check_after(target, before, fault, patience_s)
    return fault


PROCESS_FAULTS = (stop_under_load, killed, full_disk)
ERRORS = (FaultFound, OSError, RuntimeError)
