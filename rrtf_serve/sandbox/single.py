"""A run of one process tree that talks over its standard streams: a programme in whatever language."""

from __future__ import annotations

import os
import select
import time
from contextlib import ExitStack
from typing import Any

from rrtf_serve.sandbox.cell import Cell, CellError, Exit
from rrtf_serve.sandbox.inside.frames import Frame
from rrtf_serve.sandbox.inside.wire import dumps
from rrtf_serve.sandbox.jobs import StdioCase
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.line import BrokenProtocol, Line, Printed
from rrtf_serve.sandbox.relay import Outcome, death, failure
from rrtf_serve.sandbox.verdict import Kind


class Single:
    """A run of one process tree that talks over its standard streams."""

    role = ""

    def __init__(self, cell: Cell, limits: Limits) -> None:
        self._cell = cell
        self._limits = limits
        self.outcome = Outcome()
        self._confined = False
        self.ended = Exit(0, 0, 0.0, "")

    def _go(self, load: dict[str, Any], stdin: bytes) -> str:
        """What was printed. Raises CellError where the sandbox failed."""
        limits, outcome = self._limits, self.outcome
        began = time.monotonic()
        with ExitStack() as opened:
            self.errors = Printed(limits.output_bytes)
            opened.callback(self.errors.close)
            output = Printed(limits.output_bytes, None)
            opened.callback(output.close)
            line = Line(1 << 16)
            opened.callback(line.close)
            given = os.memfd_create("stdin")
            opened.callback(os.close, given)
            with open(given, "wb", closefd=False) as file:  # a descriptor, not a path
                file.write(stdin)
            os.lseek(given, 0, os.SEEK_SET)
            self._cell.run(self.role, limits, [line.guest, given, output.guest, self.errors.guest])
            for end in (line, output, self.errors):
                end.release_guest()
            line.send(Frame.LOAD, dumps(load))
            self._listen(line, output, began + limits.wall_s)
            for end in (output, self.errors):
                if not end.drain():
                    outcome.stop(Kind.OUTPUT, f"printed more than {limits.output_bytes} bytes")
            outcome.seconds = time.monotonic() - began
            return output.text

    def _listen(self, line: Line, output: Printed, until: float) -> None:
        poll = select.poll()
        for end in (line, output, self.errors, self._cell):
            poll.register(end, select.POLLIN)
        printed = {end.fileno(): end for end in (output, self.errors)}
        while True:
            left = until - time.monotonic()
            if left <= 0:
                self.outcome.stop(Kind.TIMEOUT, f"did not finish within {self._limits.wall_s:g} s")
                self._cell.kill()
                self.ended = self._cell.wait()
                return
            if line.open:
                poll.modify(line, select.POLLIN | (select.POLLOUT if line.wants_to_write else 0))
            for fd, event in poll.poll(left * 1000 + 1):
                if fd in printed:
                    self._hear_printed(printed[fd], poll)
                elif fd == line.fileno():
                    if event & select.POLLOUT:
                        line.write()
                    if event & ~select.POLLOUT:
                        self._hear(line)
                    if not line.open:
                        poll.unregister(line)
                else:
                    self._hear_exit(line)
                    return

    def _hear_exit(self, line: Line) -> None:
        self.ended = self._cell.wait()
        while line.open:  # the other end is closed, so this ends
            self._hear(line)
        self.errors.drain()
        if not self._confined and not self.outcome.message:
            raise CellError(self.errors.text.strip() or "ended before it was confined")
        if self.ended.status or self.ended.broke:
            self.outcome.stop(*death("the programme", self.ended, self._limits))

    def _hear_printed(self, end: Printed, poll: select.poll) -> None:
        within = end.receive()
        if not within or not end.open:
            poll.unregister(end)
        if not within:
            self.outcome.stop(Kind.OUTPUT, f"printed more than {self._limits.output_bytes} bytes")
            self._cell.kill()

    def _hear(self, line: Line) -> None:
        try:
            for kind, payload in line.receive():
                if kind is Frame.CONFINED:
                    self._confined = True
                elif kind is Frame.COMPILED:
                    self.outcome.compiled = True
                elif kind is Frame.FAILED:
                    name, message = failure(payload)
                    self.outcome.stop(Kind.MEMORY if name == "MemoryError" else None, f"{name}: {message}")
        except (OverflowError, BrokenProtocol):
            self.outcome.stop(Kind.KILLED, "broke the protocol")
            line.open = False
            self._cell.kill()


class Script(Single):
    role = "script"

    def go(self, program: str, case: StdioCase) -> str:
        return self._go({"code": program}, case.data)


class Command(Single):
    role = "command"

    def go(self, files: dict[str, str], argv: list[str]) -> str:
        return self._go({"files": files, "argv": argv}, b"")
