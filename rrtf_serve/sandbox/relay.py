"""One candidate, one examiner, and what may pass between them.

The relay trusts neither. It knows whose turn it is from the calls it has passed on itself, so all a candidate
can send that has an effect is the answer to the call it is being asked, or a call of something the tests gave
it. A verdict comes from the examiner's channel alone, and only under the nonce that the examiner was given.
Payloads are passed on unread.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rrtf_serve.sandbox.cell import Cell, CellError, Exit
from rrtf_serve.sandbox.inside.frames import Frame
from rrtf_serve.sandbox.inside.wire import dumps
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.line import BrokenProtocol, Line, Printed
from rrtf_serve.sandbox.verdict import Kind, TestResult

MOST_NESTED = 900  # calls within calls, back and forth
TOO_DEEP = dumps(
    [["RecursionError"], [0], [["tuple", [1], [2]], ["tuple", "calls nested too deeply"], ["dict"]]]
)
GRACE_S = 1.0  # for the examiner to report once the candidate is dead
NONCE_BYTES = 16
SHOWN = 500  # characters of untrusted text in a verdict


@dataclass
class Outcome:
    """What happened, before it is made a verdict."""

    compiled: bool = False
    tests_failed: bool = False  # they are the reason, maybe before the candidate was compiled
    ready: bool = False
    kind: Kind | None = None
    message: str = ""
    tests: list[TestResult] = field(default_factory=list)
    calls: int = 0  # how often the tests ran candidate code
    complete: bool = False  # the examiner reported with the candidate alive to the end
    outputs: str | None = None  # a reference's outputs, encoded
    candidate: Exit | None = None
    examiner: Exit | None = None
    printed: str = ""
    seconds: float = 0.0

    def stop(self, kind: Kind | None, message: str, *, tests: bool = False) -> None:
        """The first reason is the reason; `tests` where it is the tests' own."""
        if not self.message:
            self.kind, self.message, self.tests_failed = kind, message, tests


class Relay:
    def __init__(self, candidate: Cell, examiner: Cell, limits: Limits) -> None:
        self._cells = {"candidate": candidate, "examiner": examiner}
        self._limits = limits
        self._lines: dict[str, Line] = {}
        self._nonce = secrets.token_hex(NONCE_BYTES).encode()
        self._stack: list[str] = []  # who is being called, innermost last
        self._ready: dict[str, bytes] = {}
        self._started = False
        self._ordered: list[str] = []  # whose run was started
        self._exits: dict[str, Exit] = {}
        self._confined: set[str] = set()
        self._poll = select.poll()
        self._wants_outputs = False  # the candidate is a reference
        self._told = False  # the examiner knows that the candidate is dead
        self._reported = False
        self._over = False
        self.outcome = Outcome()

    def run(self, candidate: dict[str, Any], examiner: dict[str, Any]) -> Outcome:
        """Both payloads are plain JSON. Raises CellError where the sandbox failed."""
        began = time.monotonic()
        with ExitStack() as opened:
            for name in self._cells:
                self._lines[name] = Line(self._limits.value_bytes)
                opened.callback(self._lines[name].close)
            self._printed = Printed(self._limits.output_bytes)
            opened.callback(self._printed.close)
            null = os.open(os.devnull, os.O_RDWR)
            opened.callback(os.close, null)
            try:
                self._wants_outputs = examiner.get("expected", "") is None
                self._order("candidate", [null, self._printed.guest, self._printed.guest])
                self._printed.release_guest()
                self._order("examiner", [null, null, null])
                self._lines["candidate"].send(Frame.LOAD, dumps(candidate))
                self._lines["examiner"].send(Frame.LOAD, dumps({**examiner, "nonce": self._nonce.decode()}))
                self._converse(began + self._limits.wall_s)
            finally:
                self.outcome.seconds = time.monotonic() - began
                self._finish()
        return self.outcome

    def _order(self, name: str, standard: list[int]) -> None:
        line = self._lines[name]
        self._cells[name].run(name, self._limits, [line.guest, *standard])
        self._ordered.append(name)
        line.release_guest()

    def _converse(self, until: float) -> None:
        """Until the examiner has reported, or can't any more."""
        heard: dict[int, Callable[[int], None]] = {self._printed.fileno(): self._hear_printed}
        for name, cell in self._cells.items():
            heard[self._lines[name].fileno()] = partial(self._hear, name)
            heard[cell.fileno()] = partial(self._hear_exit, name)
        for fd in heard:
            self._poll.register(fd, select.POLLIN)
        full: set[Line] = set()  # lines that are polled for room to write
        while not self._over:
            left = until - time.monotonic()
            if left <= 0:
                if self.outcome.message:
                    return  # the grace is over
                self._stop("candidate", Kind.TIMEOUT, f"did not finish within {self._limits.wall_s:g} s")
                until = time.monotonic() + GRACE_S
                continue
            for line in self._lines.values():
                if line.open and line.wants_to_write != (line in full):
                    self._poll.modify(line, select.POLLIN | (select.POLLOUT if line.wants_to_write else 0))
                    full ^= {line}
            for fd, event in self._poll.poll(left * 1000 + 1):
                heard[fd](event)
            for name in self._exits:
                if not self._lines[name].open and not self._over:
                    self._bury(name)
                    until = min(until, time.monotonic() + GRACE_S)

    def _bury(self, name: str) -> None:
        """One of the two has ended before the examiner reported, and nothing more of it is to be read."""
        if name not in self._confined and not self.outcome.message:
            raise CellError(f"{name}: {self._printed.text.strip() or 'ended before it was confined'}")
        if name == "examiner":
            self.outcome.stop(*death("the tests' process", self._exits[name], self._limits), tests=True)
            self._over = True
        elif not self._told:
            self._told = True
            self.outcome.stop(*death("the programme", self._exits[name], self._limits))
            self._over = not self._started
            self._lines["examiner"].send(Frame.GONE)

    def _hear_exit(self, name: str, _event: int) -> None:
        self._poll.unregister(self._cells[name])
        self._exits[name] = self._cells[name].wait()

    def _hear_printed(self, _event: int) -> None:
        within = self._printed.receive()
        if not self._printed.open or not within:
            self._poll.unregister(self._printed)
        if not within:
            self._stop("candidate", Kind.OUTPUT, f"printed more than {self._limits.output_bytes} bytes")

    def _hear(self, name: str, event: int) -> None:
        line = self._lines[name]
        if event & select.POLLOUT:
            line.write()
        if not event & ~select.POLLOUT or not line.open:
            return
        try:
            for kind, payload in line.receive():
                if self._over:
                    return
                if kind is Frame.CONFINED and name not in self._confined:
                    self._confined.add(name)
                elif name == "candidate":
                    self._from_candidate(kind, payload)
                else:
                    self._from_examiner(kind, payload)
        except OverflowError as error:
            self._stop(name, Kind.OUTPUT, str(error))
            return
        except BrokenProtocol as error:
            self._stop(name, Kind.KILLED, f"broke the protocol: {error}")
            return
        if not line.open:
            # Dying, or it closed its channel and lives on; the exit status of the former stands.
            self._hang_up(name)

    def _from_candidate(self, kind: Frame, payload: bytes) -> None:
        outcome = self.outcome
        if kind is Frame.COMPILED and not outcome.compiled:
            outcome.compiled = True
        elif kind is Frame.READY and outcome.compiled and not outcome.ready:
            outcome.ready = True
            self._start("candidate", payload)
        elif kind is Frame.FAILED and not outcome.ready:
            name, message = failure(payload)
            memory = Kind.MEMORY if name == "MemoryError" else None
            outcome.stop(memory, f"{name}: {message}")
            self._over = True
        else:
            self._pass_on("candidate", "examiner", kind, payload)

    def _from_examiner(self, kind: Frame, payload: bytes) -> None:
        if kind is Frame.READY and "examiner" not in self._ready:
            self._start("examiner", payload)
        elif kind is Frame.FAILED and not self._started:
            name, message = failure(payload)
            self.outcome.stop(None, f"the tests could not be loaded: {name}: {message}", tests=True)
            self._over = True
        elif kind is Frame.OUTPUTS and self._wants_outputs and payload.startswith(self._nonce):
            self._wants_outputs = False
            self.outcome.outputs = payload[len(self._nonce) :].decode("utf-8", "surrogatepass")
        elif kind is Frame.RESULT and self._started and payload.startswith(self._nonce):
            self._take_result(payload[len(self._nonce) :])
        else:
            self._pass_on("examiner", "candidate", kind, payload)

    def _start(self, name: str, payload: bytes) -> None:
        self._ready[name] = payload
        if len(self._ready) == len(self._cells):
            self._started = True
            self._lines["candidate"].send(Frame.READY, self._ready["examiner"])
            self._lines["examiner"].send(Frame.READY)

    def _pass_on(self, sender: str, receiver: str, kind: Frame, payload: bytes) -> None:
        """Calls go to the other side; answers only from the side that is being called."""
        turn = self._stack[-1] if self._stack else "examiner"
        if not self._started or turn != sender:
            raise BrokenProtocol(f"{kind.name} out of turn")
        if kind is Frame.CALL and len(self._stack) >= MOST_NESTED:
            self._lines[sender].send(Frame.RAISE, TOO_DEEP)
            return
        if kind is Frame.CALL:
            self._stack.append(receiver)
        elif kind in (Frame.RETURN, Frame.RAISE) and self._stack:
            self._stack.pop()
        else:
            raise BrokenProtocol(f"{kind.name} has no place here")
        self._lines[receiver].send(kind, payload)

    def _take_result(self, payload: bytes) -> None:
        try:
            results, calls = json.loads(payload)
            self.outcome.tests = [
                TestResult(plain(name), passed is True, plain(kind), plain(message))
                for name, passed, kind, message in results
            ]
            self.outcome.calls = calls if type(calls) is int else 0
        except (ValueError, TypeError, RecursionError) as error:
            raise BrokenProtocol(f"a result that is none: {error}") from error
        self._reported = self._over = True
        self.outcome.complete = "candidate" not in self._exits and not self.outcome.message

    def _stop(self, name: str, kind: Kind, message: str) -> None:
        tests = name == "examiner"
        self.outcome.stop(kind, f"the tests' process {message}" if tests else message, tests=tests)
        if self._lines[name].open:
            self._lines[name].open = False
            self._hang_up(name)

    def _hang_up(self, name: str) -> None:
        """Once per line: when it is no longer open."""
        self._poll.unregister(self._lines[name])
        if name not in self._exits:
            self._cells[name].kill()

    def _finish(self) -> None:
        """Kill and reap both; read what is left; tell why the candidate died if it did."""
        for name in self._ordered:
            if name not in self._exits:
                self._cells[name].kill()
        for name in self._ordered:
            killed = name not in self._exits
            ended = self._exits[name] if not killed else self._cells[name].wait()
            if (not self._reported and not killed) or ended.broke:
                who = "the programme" if name == "candidate" else "the tests' process"
                self.outcome.stop(*death(who, ended, self._limits), tests=name == "examiner")
            setattr(self.outcome, name, ended)
        if not self._printed.drain():
            self.outcome.stop(Kind.OUTPUT, f"printed more than {self._limits.output_bytes} bytes")
        self.outcome.printed = self._printed.text


def death(who: str, ended: Exit, limits: Limits) -> tuple[Kind | None, str]:
    if ended.broke == "memory":
        return Kind.MEMORY, f"{who} used more than {limits.memory_bytes} bytes of memory"
    # The kernel counts what it kills for more finely than what it reports.
    if ended.broke == "cpu" or (ended.signal == signal.SIGKILL and ended.cpu >= 0.7 * limits.cpu_s):
        return Kind.TIMEOUT, f"{who} used more than {limits.cpu_s:g} s of processor time"
    if ended.broke:
        return Kind.KILLED, f"{who} broke the limit on {ended.broke}"
    if ended.signal:
        names = {number.value: number.name for number in signal.Signals}  # real-time signals have none
        return Kind.KILLED, f"{who} died of {names.get(ended.signal, f'signal {ended.signal}')}"
    return None, f"{who} ended by itself with status {ended.code}"


def failure(payload: bytes) -> tuple[str, str]:
    try:
        _, name, message = json.loads(payload)
    except (ValueError, TypeError, RecursionError):
        return "unknown error", ""
    return plain(name), plain(message)


def plain(text: object) -> str:
    """Untrusted text, fit to be printed and stored: short, and valid Unicode."""
    return str(text)[:SHOWN].encode("utf-8", "replace").decode()
