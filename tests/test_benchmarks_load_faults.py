"""`rrtf-bench faults`: a server that is well passes; one that is not is found out."""

from __future__ import annotations

import contextlib
import os
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CAPABILITIES, FakeBatch, FakeEngine
from live import Running, serving

from benchmarks import cli
from benchmarks.faults import CLIENT_NAMES, FaultsConfig, faults
from benchmarks.faults_clients import (
    BODIES,
    GARBAGE,
    REFUSED,
    Site,
    Sizes,
    bad_bodies,
    garbage,
    half_open,
    large_bodies,
    resets,
)
from benchmarks.faults_sockets import closed_by_server, connect, connected, head, read_answer, reset
from benchmarks.faults_state import Baseline, Fault, check_after, metric
from benchmarks.holdings import held
from benchmarks.load_target import Target
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.engine.protocol import Request

LONG = replace(CAPABILITIES, max_context=8192)
LARGE = ("announced", "chunked", "4 MB")
SMALL = {"resets": 12, "slow_readers": 4, "half_open": 8, "idle_seconds": 0.0, "patience": 20.0}


@contextmanager
def well() -> Iterator[Running]:
    with serving(FakeEngine(capabilities=LONG, seconds_per_step=0.001), metrics=Metrics()) as server:
        yield server


def test_a_server_that_is_well_passes(tmp_path: Path) -> None:
    said: list[str] = []
    with well() as server:
        config = FaultsConfig(url=server.address, output=tmp_path, **SMALL)  # type: ignore[arg-type]
        report = faults(config, said.append)
        assert server.scheduler.rows_running == server.scheduler.queue_depth == 0
    assert [each["problems"] for each in report["faults"]] == [[]] * len(CLIENT_NAMES)
    assert [each["name"] for each in report["faults"]] == list(CLIENT_NAMES)
    assert report["ok"]
    assert "| well |" in (tmp_path / "faults.md").read_text("utf-8")
    assert len(said) == len(CLIENT_NAMES)


def test_flags_that_cannot_be_are_refused(tmp_path: Path) -> None:
    assert cli.main(["faults", "--only", "rain"]) == 2
    assert cli.main(["faults", "--resets", "0"]) == 2
    assert cli.main(["faults", "--url", "http://127.0.0.1:1", "--only", "killed"]) == 2
    assert cli.main(["faults", "--url", "http://127.0.0.1:1", "-o", str(tmp_path)]) == 1


@contextmanager
def saying(answer: Callable[[bytes], bytes]) -> Iterator[Target]:
    """A server that answers the head of each request with what `answer` makes of it, and closes."""

    class Respond(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data = b""
            while b"\r\n\r\n" not in data:
                chunk = self.request.recv(65536)
                if not chunk or len(data) > 200_000:
                    return
                data += chunk
            with contextlib.suppress(ConnectionError):
                self.request.sendall(answer(data))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Respond) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            host, port = server.server_address[:2]
            yield Target(f"http://{host!s}:{port}", "m", False)
        finally:
            server.shutdown()
            thread.join()


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


ROUTES = b"""{"paths": {"/v1/completions": {"post": {"requestBody": {}}}, "/models/{id}": {"post": {}},
"/health": {"get": {}}}}"""


@contextmanager
def silent() -> Iterator[Target]:
    """A server that takes connections and says nothing, ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        host, port = listener.getsockname()[:2]
        yield Target(f"http://{host}:{port}", "m", False)


def site(target: Target) -> Site:
    sizes = Sizes(resets=4, slow_readers=4, half_open=4, idle_s=0, silent_s=0.3)
    return Site(target, Baseline("text", None), sizes)


def test_a_server_that_answers_nonsense_with_500_is_found_out() -> None:
    def answer(request: bytes) -> bytes:
        return http(ROUTES) if b"openapi" in request else http(b"{}", "500 Oh")

    with saying(answer) as target:
        found = bad_bodies(site(target))
        assert len(found.problems) == 2 * len(BODIES)
        assert found.problems[0].startswith("/v1/completions, empty: 500")
        assert any(problem.startswith("/models/m, ") for problem in found.problems)
        told = {problem.partition(":")[0] for problem in garbage(site(target)).problems}
        # The head of some ends nowhere, or is too long for this server.
        assert told == set(GARBAGE) - {"noise", "TLS", "long header", "many headers"}


def test_a_server_that_says_nothing_is_found_out() -> None:
    with silent() as target:
        told = garbage(site(target)).problems
        assert told == [f"{name}: neither answered nor closed in 0.3 s" for name in GARBAGE]
        told = large_bodies(site(target)).problems
    assert told == [f"{name}: no answer could be read (TimeoutError)" for name in LARGE]


def test_a_large_body_that_is_dropped_unanswered_is_found_out() -> None:
    with saying(lambda _: b"") as target:
        told = large_bodies(site(target)).problems
    assert len(told) == 3
    assert told[0].startswith("announced: ")


def test_a_refusal_without_json_is_found_out() -> None:
    def answer(request: bytes) -> bytes:
        return http(ROUTES) if b"openapi" in request else http(b"Bad Request", "400 Bad Request")

    with saying(answer) as target:
        found = bad_bodies(site(target))
    assert "without a JSON body" in found.problems[0]


def test_a_stream_that_breaks_off_is_found_out() -> None:
    with saying(lambda _: http(b"data: {}\n\n")) as target:
        found = resets(site(target))
    assert "the stream broke off" in found.problems[0]


class Deaf(FakeBatch):
    """Its rows go on whoever has left."""

    def cancel(self, row: int) -> None:
        pass


class DeafEngine(FakeEngine):
    def start(self, requests: list[Request]) -> FakeBatch:
        return Deaf(self, requests)


def test_rows_that_go_on_for_nobody_are_found_out() -> None:
    engine = DeafEngine(capabilities=LONG, seconds_per_step=0.001)
    with serving(engine, metrics=Metrics()) as server:
        found = resets(replace(site(Target(server.address, "tiny-coder", True)), sizes=Sizes(resets=8)))
    assert any("tokens were made for clients that read" in each for each in found.problems), found


def test_streams_that_all_get_429_are_not_taken_for_resets() -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        first = len(asked) == 1 or b"/metrics" in request
        return http(b"data: [DONE]\n\n") if first else http(b"{}", "429 Too Many Requests")

    with saying(answer) as target:
        found = resets(site(target))
    assert found.problems == ["4 of 4 streams got 429: too few were reset"]


def test_an_answer_that_changes_is_found_out() -> None:
    with saying(lambda _: http(b'{"choices": [{"text": "other"}]}')) as target:
        assert "another client's answer changed meanwhile" in half_open(site(target)).problems


@pytest.mark.parametrize(
    ("figures", "text", "problem"),
    [
        ("0", "text", ""),
        ("2", "text", "rows and requests are still there"),
        ("0", "tixt", "the probe got 'tixt'"),
    ],
)
def test_what_is_left_behind_is_found_out(figures: str, text: str, problem: str) -> None:
    def answer(request: bytes) -> bytes:
        if b"/metrics" in request:
            return http(f'vllm:num_requests_running{{model_name="m"}} {figures}\n'.encode())
        return http(b'{"choices": [{"text": "%b"}]}' % text.encode())

    fault = Fault("a fault")
    with saying(answer) as target:
        check_after(target, Baseline("text", None), fault, 0.1)
    assert [problem in each for each in fault.problems] == [True] * bool(problem)


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"files": 0}, "open files, 0 before"),
        ({"threads": -100}, "threads, -100 before"),
        ({"resident_mb": -200.0}, "MB are resident, -200 before; -50 may be"),
        ({}, ""),
    ],
)
def test_what_a_server_goes_on_holding_is_found_out(more: dict[str, Any], problem: str) -> None:
    with well() as server:
        target = Target(server.address, "tiny-coder", True, pid=os.getpid())
        fault = Fault("a fault")
        before = Baseline("def fibonacci(n)", replace(held(os.getpid()), **more))
        check_after(target, before, fault, 0.1)
    assert [problem in each for each in fault.problems] == [True] * bool(problem)


def test_a_metric_is_summed_over_its_labels() -> None:
    text = '# HELP a:b words\na:b 1.0\na:b{m="x"} 2\na:bc 40\na:b_total{m="y"} 80\n'
    assert metric(text, "a:b") == 3
    assert metric(text, "no:such") == 0


def test_sockets_see_whether_the_server_closed() -> None:
    with well() as server:
        target = Target(server.address, "tiny-coder", True)
        with connected(target) as sock:
            sock.sendall(head(target, "GET", "/health"))
            assert read_answer(sock)[0] == 200
            assert not closed_by_server(sock)
            sock.sendall(head(target, "GET", "/health", "connection: close"))
            status, body = read_answer(sock)
            assert (status, body[:1]) == (200, b"{")
        reset(connect(target))


def test_a_stream_is_read_to_its_last_chunk(tmp_path: Path) -> None:
    def answer(_: bytes) -> bytes:
        return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"

    with saying(answer) as target, connected(target) as sock:
        sock.sendall(head(target, "GET", "/"))
        assert read_answer(sock) == (200, b"3\r\nabc\r\n0\r\n\r\n")


def test_a_body_that_is_not_read_need_not_be_refused() -> None:
    with saying(lambda request: http(ROUTES if b"openapi" in request else b"{}")) as target:
        found = bad_bodies(site(target))
    assert len(found.problems) == len(REFUSED)
    assert all(problem.startswith("/v1/completions, ") for problem in found.problems)
