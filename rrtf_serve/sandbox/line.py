"""The host's end of a child's channel: never blocks, never takes more than it allows."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

from rrtf_serve.sandbox.inside.frames import HEADER, Frame

CHUNK = 1 << 18


class BrokenProtocol(ValueError):  # noqa: N818  # reads as what happened where it is caught
    """The child sent what no honest child sends."""


class Line:
    """`guest` is the descriptor for the child; release it once the child has its copy."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._socket, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.setblocking(False)
        self.guest = guest.detach()
        self._in = bytearray()
        self._out = bytearray()
        self.open = True

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._out) and self.open

    def release_guest(self) -> None:
        self.guest = _closed(self.guest)

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        self._out += HEADER.pack(kind, len(payload))
        self._out += payload
        self.write()

    def write(self) -> None:
        """Send what the child takes now; a child that is gone takes everything."""
        try:
            while self._out:
                del self._out[: self._socket.send(self._out[:CHUNK])]
        except BlockingIOError:
            return
        except (BrokenPipeError, ConnectionResetError):
            self._out.clear()

    def receive(self) -> Iterator[tuple[Frame, bytes]]:
        """Whole messages that have come; `open` is False after the last.

        Raises BrokenProtocol, or OverflowError on a message that is too long.
        """
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:  # it died with something unread
            data = b""
        if not data:
            self.open = False
            return
        self._in += data
        while len(self._in) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._in)
            if length > self._most:
                raise OverflowError(f"a value of {length} bytes; Limits.value_bytes is {self._most}")
            if len(self._in) < HEADER.size + length:
                return
            payload = bytes(self._in[HEADER.size : HEADER.size + length])
            del self._in[: HEADER.size + length]
            try:
                yield Frame(kind), payload
            except ValueError:
                raise BrokenProtocol(f"no message of type {kind}") from None

    def close(self) -> None:
        self.release_guest()
        self._socket.close()


class Printed:
    """What a child prints: all of it counted, the head kept.

    kept_bytes  how much is kept; None: everything up to the limit
    """

    def __init__(self, most_bytes: int, kept_bytes: int | None = 4096) -> None:
        self._most = most_bytes
        self._kept = kept_bytes
        self._read, self.guest = os.pipe()
        os.set_blocking(self._read, False)
        self._head = bytearray()
        self._count = 0
        self.open = True

    def fileno(self) -> int:
        return self._read

    def release_guest(self) -> None:
        self.guest = _closed(self.guest)

    def receive(self) -> bool:
        """Take what is there; False once more was printed than is allowed."""
        try:
            data = os.read(self._read, CHUNK)
        except BlockingIOError:
            return True
        if not data:
            self.open = False
        self._count += len(data)
        room = len(data) if self._kept is None else max(0, self._kept - len(self._head))
        self._head += data[:room]
        return self._count <= self._most

    def drain(self) -> bool:
        """After the child's end: what is left in the pipe."""
        within = True
        before = -1
        while self.open and within and before != self._count:
            before = self._count
            within = self.receive()
        return within

    @property
    def text(self) -> str:
        return self._head.decode("utf-8", "replace")

    def close(self) -> None:
        self.release_guest()
        os.close(self._read)


def _closed(fd: int) -> int:
    """Close it unless that was done before; what to remember it by."""
    if fd >= 0:
        os.close(fd)
    return -1
