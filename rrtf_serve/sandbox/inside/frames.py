"""Messages on a stream socket: one byte of type, four of length (big-endian), then that many bytes."""

from __future__ import annotations

import socket
import struct
from enum import IntEnum

HEADER = struct.Struct("!BI")


class Frame(IntEnum):
    CONFINED = 0  # either -> judge: about to run what is not trusted
    LOAD = 1  # judge -> either: what to run
    COMPILED = 2  # candidate -> judge: the source parsed
    READY = 3  # candidate -> judge: module level ran, the entry point is there
    FAILED = 4  # either -> judge: could not get ready
    CALL = 5  # either -> judge -> the other
    RETURN = 6  # the answer to the latest open CALL
    RAISE = 7  # the same, as an exception
    GONE = 8  # judge -> examiner: the candidate is dead, report what you have
    RESULT = 9  # examiner -> judge: nonce, then the tests' results
    OUTPUTS = 10  # examiner -> judge, before that: nonce, then what a reference returned; kept unread


# What the judge itself reads may be no longer than this; all else is passed on, or kept, unread.
MOST_READ = {
    Frame.CONFINED: 0,
    Frame.COMPILED: 0,
    Frame.READY: 1 << 16,
    Frame.FAILED: 1 << 16,
    Frame.RESULT: 1 << 21,
}


class Channel:
    """The confined end: blocking, in whole messages. EOFError once the judge has hung up."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fd)

    def send(self, kind: Frame, payload: bytes = b"") -> None:
        self._socket.sendall(HEADER.pack(kind, len(payload)) + payload)

    def receive(self) -> tuple[Frame, bytes]:
        kind, length = HEADER.unpack(self._exactly(HEADER.size))
        return Frame(kind), self._exactly(length)

    def _exactly(self, count: int) -> bytes:
        if count == 0:
            return b""
        first = self._socket.recv(count)
        if len(first) == count:
            return first
        parts = bytearray(first)
        while len(parts) < count:
            more = self._socket.recv(min(count - len(parts), 1 << 20))
            if not more:
                raise EOFError("the judge closed the channel")
            parts += more
        return bytes(parts)
