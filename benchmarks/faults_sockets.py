"""A client that behaves badly: plain sockets, where each byte and each silence is its own choice."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from benchmarks.load_target import Target

TIMEOUT_S = 600.0
SMALL_BUFFER = 4096  # bytes that a slow reader's system takes for it


def connect(target: Target, *, small_buffer: bool = False) -> socket.socket:
    parts = urlsplit(target.address)
    assert parts.hostname is not None
    found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)[0]
    made = socket.socket(found[0], found[1])
    if small_buffer:  # before the connection: the window is agreed on then
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    made.settimeout(TIMEOUT_S)
    try:
        made.connect(found[4])
    except OSError:
        made.close()
        raise
    return made


@contextmanager
def connected(target: Target) -> Iterator[socket.socket]:
    made = connect(target)
    try:
        yield made
    finally:
        made.close()


def reset(sock: socket.socket) -> None:
    """Close with RST, as a process that is killed with data unread does, instead of the orderly FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def head(target: Target, method: str, path: str, *lines: str) -> bytes:
    """The lines of a request, the empty one included."""
    host = urlsplit(target.address).netloc
    key = [f"authorization: Bearer {target.key}"] if target.key else []
    return "\r\n".join([f"{method} {path} HTTP/1.1", f"host: {host}", *key, *lines, "", ""]).encode()


def post(target: Target, path: str, body: bytes, *, kind: str = "application/json") -> bytes:
    """A whole request."""
    return head(target, "POST", path, f"content-type: {kind}", f"content-length: {len(body)}") + body


def post_json(target: Target, path: str, record: dict[str, Any]) -> bytes:
    return post(target, path, json.dumps(record).encode())


def read_answer(sock: socket.socket) -> tuple[int, bytes]:
    """Status and body of one answer; (0, b"") where the server closed without one. Raises OSError."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            return 0, b""
        data += chunk
    before, _, body = data.partition(b"\r\n\r\n")
    first, *lines = before.split(b"\r\n")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
    }
    length = int(headers[b"content-length"]) if b"content-length" in headers else None
    while length is None or len(body) < length:
        if length is None and body.endswith(b"0\r\n\r\n"):
            break
        chunk = sock.recv(65536)
        if not chunk:
            break
        body += chunk
    return int(first.split()[1]), body


def closed_by_server(sock: socket.socket) -> bool:
    """Whether the other side has closed by now, without waiting."""
    sock.setblocking(False)
    try:
        while sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    finally:
        sock.settimeout(TIMEOUT_S)
    return True
