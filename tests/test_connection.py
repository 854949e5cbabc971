"""Connections that never finish a request, or hold one open: who is closed, answered, let be."""

from __future__ import annotations

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fake_engine import FakeEngine
from live import Running, rrtf_serve, serving
from tiny_ct2 import write_servable

from rrtf_serve import connection
from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.body import PROGRESS_BYTES

SHORT = ApiSettings(receive_seconds=0.4)
PATH = "/v1/completions"
BODY = json.dumps({"prompt": "abc", "max_tokens": 4}).encode()


def head(path: str = PATH, length: int = len(BODY), *lines: str) -> bytes:
    fixed = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    return "\r\n".join([*fixed, f"content-length: {length}", *lines, "", ""]).encode()


@contextmanager
def connected(address: str, *, small_buffer: bool = False) -> Iterator[socket.socket]:
    parts = urlsplit(address)
    with socket.socket() as made:
        if small_buffer:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        made.settimeout(60)
        made.connect((parts.hostname, parts.port))
        yield made


def rest(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    data = b""
    try:
        while chunk := sock.recv(65536):
            data += chunk
    except ConnectionResetError:  # it closed while something of ours was still unread
        pass
    return data


def wait_for_a_deadline(server: Running) -> None:
    with connected(server.address) as silent:
        assert rest(silent) == b""


@pytest.mark.parametrize("sent", [b"", b"PO", head()[:60]])
def test_a_head_that_does_not_come_closes_the_connection(sent: bytes) -> None:
    with serving(settings=SHORT) as server, connected(server.address) as sock:
        sock.sendall(sent)
        assert rest(sock) == b""
        assert httpx.get(f"{server.address}/health").status_code == 200


def test_a_head_that_comes_letter_by_letter_has_no_more_time() -> None:
    with serving(settings=SHORT) as server, connected(server.address) as sock:
        closed = threading.Event()

        def drip() -> None:
            try:
                while not closed.wait(0.05):
                    sock.sendall(b"x")
            except OSError:
                pass

        sock.sendall(b"GET /health HTTP/1.1\r\nx: ")
        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert rest(sock) == b""
        finally:
            closed.set()
            dripping.join()


@pytest.mark.parametrize(
    ("path", "place"),
    [
        (PATH, ("error", "message")),
        ("/v1/fim/completions", ("error", "message")),
        ("/infill", ("error", "message")),
        ("/api/generate", ("error",)),
        ("/generate", ("error",)),
    ],
)
def test_a_late_body_is_answered_with_408_in_the_dialects_shape(path: str, place: tuple[str, ...]) -> None:
    with serving(settings=SHORT) as server, connected(server.address) as sock:
        sock.sendall(head(path) + BODY[:-4])
        answer, _, body = rest(sock).partition(b"\r\n\r\n")
    first, *lines = answer.decode().lower().split("\r\n")
    assert first.startswith("http/1.1 408 ")
    assert "connection: close" in lines
    assert any(line.startswith("x-request-id: ") for line in lines)
    message = json.loads(body)
    for name in place:
        message = message[name]
    assert "did not arrive" in message


def test_a_body_that_comes_byte_by_byte_is_late_and_one_that_goes_on_is_not() -> None:
    with serving(settings=SHORT) as server, connected(server.address) as sock:
        sock.sendall(head(length=1000))
        answers = []
        reading = threading.Thread(target=lambda: answers.append(rest(sock)))
        reading.start()
        try:
            while reading.is_alive():
                sock.sendall(b" ")
                reading.join(0.05)
        except OSError:
            reading.join()
        assert b" 408 " in answers[0]
    # Space before the JSON, for longer than the deadline.
    with serving(settings=ApiSettings(receive_seconds=2.0)) as server, connected(server.address) as sock:
        pieces = [b" " * PROGRESS_BYTES] * 24
        sock.sendall(head(PATH, sum(map(len, pieces)) + len(BODY), "connection: close"))
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(0.1)
        sock.sendall(BODY)
        assert rest(sock).startswith(b"HTTP/1.1 200 ")


def test_a_body_that_nobody_reads_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "GRACE_SECONDS", 0.0)
    settings = ApiSettings(receive_seconds=0.4, max_body_bytes=1024)
    with serving(settings=settings) as server, connected(server.address) as sock:
        sock.sendall(head(length=1_000_000))
        closed = threading.Event()

        def drip() -> None:
            try:
                while not closed.wait(0.05):
                    sock.sendall(b" ")
            except OSError:
                pass

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert rest(sock).startswith(b"HTTP/1.1 413 ")
        finally:
            closed.set()
            dripping.join()


def test_an_answer_has_all_the_time_that_it_and_its_reader_need() -> None:
    engine = FakeEngine()
    engine.open.clear()
    body = json.dumps({"prompt": "abc", "max_tokens": 4, "stream": True}).encode()
    with serving(engine, settings=SHORT) as server, connected(server.address, small_buffer=True) as sock:
        sock.sendall(head(PATH, len(body)) + body)
        assert sock.recv(5) == b"HTTP/"
        wait_for_a_deadline(server)
        engine.open.set()
        wait_for_a_deadline(server)
        data = b""
        while b"[DONE]" not in data:
            data += sock.recv(64)


def test_a_kept_connection_is_served_again() -> None:
    with serving(settings=SHORT) as server, connected(server.address) as sock:
        for _ in range(2):
            sock.sendall(head() + BODY)
            data = b""
            while not data.endswith(b"}"):
                data += sock.recv(65536)
            assert data.startswith(b"HTTP/1.1 200 ")
            wait_for_a_deadline(server)  # what uvicorn allows a kept connection is longer
        sock.sendall(b"GET /hea")
        assert rest(sock) == b""


def test_the_one_that_waits_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 4)
    engine = FakeEngine()
    engine.open.clear()
    body = json.dumps({"prompt": "abc", "max_tokens": 4, "stream": True}).encode()
    with serving(engine) as server, connected(server.address) as busy:
        busy.sendall(head(PATH, len(body)) + body)
        assert busy.recv(5) == b"HTTP/"
        with (
            connected(server.address) as first,
            connected(server.address) as second,
            connected(server.address) as third,
        ):
            first.sendall(b"POST")
            second.sendall(head() + BODY[:-1])
            assert httpx.get(f"{server.address}/health", timeout=60).status_code == 200
            assert rest(first) == b""
            third.sendall(head() + BODY)
            engine.open.set()
            assert third.recv(5) == b"HTTP/"
        data = b""
        while b"[DONE]" not in data:
            data += busy.recv(64)


def test_where_all_are_at_work_the_newcomer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 1)
    engine = FakeEngine()
    engine.open.clear()
    body = json.dumps({"prompt": "abc", "max_tokens": 4, "stream": True}).encode()
    with serving(engine) as server, connected(server.address) as busy:
        busy.sendall(head(PATH, len(body)) + body)
        assert busy.recv(5) == b"HTTP/"
        with connected(server.address) as late:
            assert rest(late) == b""
        engine.open.set()
        data = b""
        while b"[DONE]" not in data:
            data += busy.recv(64)
        busy.close()


def test_with_few_files_and_many_idle_connections_health_still_answers(tmp_path: Path) -> None:
    folder = write_servable(tmp_path / "tiny")
    with rrtf_serve(str(folder), "--threads", "1", "--no-ui") as live:
        resource.prlimit(live.process.pid, resource.RLIMIT_NOFILE, (64, 64))
        parts = urlsplit(live.address)
        held = [socket.create_connection((parts.hostname, parts.port), 60) for _ in range(150)]
        try:  # where more are accepted than there are files for, asyncio waits a second and goes on
            for _ in range(3):
                assert httpx.get(f"{live.address}/health", timeout=60).status_code == 200
            body = {"prompt": "abc", "max_tokens": 4}
            assert httpx.post(f"{live.address}{PATH}", json=body, timeout=60).status_code == 200
        finally:
            for sock in held:
                sock.close()
