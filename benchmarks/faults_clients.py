"""Faults that clients make: they vanish, don't read, don't finish, send what is no request.

Each returns what it saw; `faults` checks the server after each.
"""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks.faults_sockets import (
    closed_by_server,
    connect,
    connected,
    head,
    post,
    post_json,
    read_answer,
    reset,
)
from benchmarks.faults_state import (
    Baseline,
    Fault,
    FaultFound,
    busy,
    holds_within,
    metric,
    metrics_text,
    probe,
)
from benchmarks.load_asks import CHAT, COMPLETIONS, Stub, stubs
from benchmarks.load_target import Target

RESETTING_AT_ONCE = 8
LONG_TOKENS = 400  # of a stream that is reset: far more than anybody reads of it
ENDLESS = 2  # of three streams this one takes no end token
SPARE_TOKENS = 32  # a stream, on average: made until the server sees the reset
PROMPTLY_S = 2.0  # within which rows stop on any machine
LLAMA = "/completion"
TOKENS_MADE = "vllm:generation_tokens_total"
LOGPROBS = 20  # make an event of a stream some kilobytes long
LARGE_BYTES = 10 * 1024 * 1024


@dataclass(frozen=True)
class Sizes:
    resets: int = 500
    slow_readers: int = 8
    half_open: int = 200
    idle_s: float = 10.0  # for which nobody of the half-open ones says anything
    silent_s: float = 60.0  # after which an answer, or the connection's end, is taken not to come


@dataclass(frozen=True)
class Site:
    """What a fault is tried on; before: the server at rest."""

    target: Target
    before: Baseline
    sizes: Sizes


def resets(site: Site) -> Fault:
    """Clients vanish in mid-stream (RST): their rows must stop, not decode on for nobody."""
    fault, target = Fault("resets in mid-stream"), site.target
    all_stubs = stubs()
    whole_s = _whole_stream_s(target, all_stubs[0])
    before = metric(metrics_text(target), TOKENS_MADE)

    def one(number: int) -> Reset:
        path, body = _streamed(target, all_stubs[number % len(all_stubs)], number)
        wanted = 1 + number % 5  # events; some go with the first one, some later
        sock = connect(target)
        try:
            sock.sendall(post_json(target, path, body))
            data = b""
            while data.count(b"data: ") < wanted and b"data: [DONE]" not in data:
                chunk = sock.recv(4096)
                data += chunk
                if b" 429 " in data.split(b"\r\n", 1)[0]:
                    return Reset(refused=True)  # busy with those before
                if not chunk:
                    return Reset(problem=f"the stream broke off: {data[-200:]!r}")
            return Reset(data.count(b"data: "))
        finally:
            reset(sock)

    with ThreadPoolExecutor(RESETTING_AT_ONCE) as pool:
        done = list(pool.map(one, range(site.sizes.resets)))
    started = time.monotonic()
    stopped = holds_within(lambda: not busy(target), whole_s + PROMPTLY_S)
    rest_s = time.monotonic() - started
    fault.problems += [each.problem for each in done if each.problem][:5]
    made = metric(metrics_text(target), TOKENS_MADE) - before
    read, refused = sum(each.events for each in done), sum(each.refused for each in done)
    most = read + SPARE_TOKENS * len(done)
    fault.facts |= {"resets": len(done), "refused": refused, "events_read": read, "tokens_made": made,
                    "rest_s": rest_s, "whole_stream_s": whole_s}  # fmt: skip
    fault.expect(2 * refused < len(done), f"{refused} of {len(done)} streams got 429: too few were reset")
    fault.expect(
        made <= most,
        f"{made:g} tokens were made for clients that read {read} events: rows went on without them",
    )
    fault.expect(
        stopped and rest_s <= max(PROMPTLY_S, whole_s / 2),
        f"rows were decoded for {rest_s:.1f} s more; a stream that stays takes {whole_s:.1f} s",
    )
    return fault


@dataclass(frozen=True)
class Reset:
    """One stream that was reset, after so many events; refused: it got 429 and never began."""

    events: int = 0
    refused: bool = False
    problem: str = ""


def _whole_stream_s(target: Target, stub: Stub) -> float:
    """Seconds of a stream that nobody resets, and that no end token shortens."""
    path, body = _streamed(target, stub, ENDLESS)
    started = time.monotonic()
    with connected(target) as sock:
        sock.sendall(post_json(target, path, body))
        status, answer = read_answer(sock)
    if status != 200:
        raise FaultFound(f"a stream that stays got {status}: {answer[:300]!r}")
    return time.monotonic() - started


def _streamed(target: Target, stub: Stub, number: int) -> tuple[str, dict[str, object]]:
    """Every third one goes on to its last token whatever the model says: else a model that ends early would
    hide rows that nobody stops."""
    options = {"model": target.model, "stream": True, "temperature": number % 2}
    if number % 3 == ENDLESS:
        return LLAMA, {"prompt": stub.head, "n_predict": LONG_TOKENS, "ignore_eos": True, **options}
    options |= {"max_tokens": LONG_TOKENS}
    if number % 3 == 0:
        return CHAT, {"messages": [{"role": "user", "content": stub.head}], **options}
    return COMPLETIONS, {"prompt": stub.head, **options}


def slow_readers(site: Site) -> Fault:
    """Streams that nobody reads must hold up nobody else, and be whole once they are read after all."""
    fault, target = Fault("slow readers"), site.target
    all_stubs = stubs()
    socks: list[socket.socket] = []
    try:
        for number in range(site.sizes.slow_readers):
            body = {
                "model": target.model, "stream": True, "max_tokens": 64, "temperature": 1, "n": 4,
                "logprobs": True, "top_logprobs": LOGPROBS,
                "messages": [{"role": "user", "content": all_stubs[number % len(all_stubs)].head}],
            }  # fmt: skip
            sock = connect(target, small_buffer=True)
            socks.append(sock)
            sock.sendall(post_json(target, CHAT, body))
        started = time.monotonic()
        fault.expect(probe(target) == site.before.answer, "another client's answer changed meanwhile")
        fault.facts["probe_meanwhile_s"] = time.monotonic() - started
        half = len(socks) // 2  # the others never read
        whole = [read_answer(sock) for sock in socks[:half]]
        fault.facts["stream_bytes"] = [len(answer) for _, answer in whole]
        for status, answer in whole:
            done = status == 429 or (status == 200 and b"data: [DONE]" in answer)
            fault.expect(done, f"a slow reader's stream is not whole: {status}, {answer[-100:]!r}")
    finally:
        for sock in socks:
            reset(sock)
    return fault


def half_open(site: Site) -> Fault:
    """Connections that say nothing, or stop in mid-request, must keep nobody else from being served."""
    fault, target = Fault("half-open connections"), site.target
    body = json.dumps({"model": target.model, "prompt": "def f():", "max_tokens": 4}).encode()
    whole = post(target, COMPLETIONS, body)
    cuts = {"silent": 0, "in the request line": 12, "in the headers": 60, "in the body": len(whole) - 8}
    socks: list[socket.socket] = []
    try:
        for number in range(site.sizes.half_open):
            sock = connect(target)
            socks.append(sock)
            sock.sendall(whole[: list(cuts.values())[number % len(cuts)]])
        started = time.monotonic()
        fault.expect(probe(target) == site.before.answer, "another client's answer changed meanwhile")
        fault.facts["probe_meanwhile_s"] = time.monotonic() - started
        time.sleep(site.sizes.idle_s)
        # Not a fault: the server closes them once --receive-seconds are over, or where it needs the room.
        fault.facts |= {
            "connections": len(socks),
            f"closed_by_server_after_{site.sizes.idle_s:g}_s": sum(map(closed_by_server, socks)),
        }
        last = socks[len(cuts) - 1]
        last.sendall(whole[-8:])
        status, _ = read_answer(last)
        fault.expect(status == 200, f"the late rest of a body was answered with {status}")
    finally:
        for sock in socks:
            sock.close()
    return fault


# Bodies that are no JSON object, or a strange one; none may be answered with 5xx.
BODIES: dict[str, bytes] = {
    "empty": b"",
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "cut": b'{"prompt": "a',
    "an array": b"[]",
    "null": b"null",
    "text": b'"prompt"',
    "NaN": b'{"temperature": NaN}',
    "infinity": b'{"temperature": 1e999}',
    "deep": b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "long number": b'{"max_tokens": ' + b"9" * 10_000 + b"}",
    "lone surrogate": b'{"prompt": "\\ud800", "max_tokens": 1}',
    "nothing known": b'{"a": 1}',
    "wrong types": b'{"prompt": {}, "messages": 3, "input_prefix": [], "inputs": false, "segments": "x"}',
    "null fields": b'{"prompt": null, "messages": null, "inputs": null, "model": null}',
}
REFUSED = frozenset(BODIES) - {"lone surrogate", "nothing known", "wrong types", "null fields", "infinity"}


def bad_bodies(site: Site) -> Fault:
    """Every route that takes JSON gets bodies that are none: a 4xx with a body that is JSON."""
    fault, target = Fault("invalid UTF-8 and JSON"), site.target
    sent = 0
    statuses: dict[str, int] = {}
    for path, read in post_routes(target).items():
        for name, body in BODIES.items():
            with connected(target) as sock:
                sock.sendall(post(target, path, body))
                status, answer = read_answer(sock)
            sent += 1
            statuses[str(status)] = statuses.get(str(status), 0) + 1
            refused = 400 <= status < 500
            good = refused or status == 501 or (200 <= status < 400 and not (read and name in REFUSED))
            fault.expect(good, f"{path}, {name}: {status} {answer[:200]!r}")
            if refused:
                fault.expect(
                    _is_json(answer), f"{path}, {name}: {status} without a JSON body: {answer[:100]!r}"
                )
    fault.facts |= {"requests": sent, "statuses": statuses}
    return fault


def post_routes(target: Target) -> dict[str, bool]:
    """Paths of /openapi.json that take POST, with the model's name for what they leave open; whether the body
    is read."""
    with connected(target) as sock:
        sock.sendall(head(target, "GET", "/openapi.json"))
        _, body = read_answer(sock)
    found = {}
    for path, methods in json.loads(body)["paths"].items():
        if "post" in methods:
            parts = [target.model if part.startswith("{") else part for part in path.split("/")]
            found["/".join(parts)] = "requestBody" in methods["post"]
    return found


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except ValueError:
        return False
    return True


def large_bodies(site: Site) -> Fault:
    """10 MB: announced, in chunks without announcement; and a prompt just under the limit."""
    fault, target = Fault("10 MB bodies"), site.target
    start = json.dumps({"model": target.model, "max_tokens": 1, "prompt": ""})[:-2].encode()
    large = start + b"x = 1\\n" * (LARGE_BYTES // 7) + b'"}'
    chunked = head(
        target, "POST", COMPLETIONS, "content-type: application/json", "transfer-encoding: chunked"
    )
    pieces = (large[at : at + 65536] for at in range(0, len(large), 65536))
    chunked += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    fits = start + b"x = 1\\n" * (4_000_000 // 7) + b'"}'
    for name, request, expected in (
        ("announced", post(target, COMPLETIONS, large), 413),
        ("chunked", chunked, 413),
        ("4 MB", post(target, COMPLETIONS, fits), 400),
    ):
        started = time.monotonic()
        with connected(target) as sock:
            sock.settimeout(site.sizes.silent_s)
            try:
                sock.sendall(request)
            except OSError as error:  # it need not read what it refuses
                fault.facts[f"{name}: while sending"] = type(error).__name__
            try:
                status, answer = read_answer(sock)
            except OSError as error:  # a refusal that its sender can't read is none
                fault.problems.append(f"{name}: no answer could be read ({type(error).__name__})")
                continue
        fault.facts[f"{name}: status"] = status
        fault.facts[f"{name}: seconds"] = time.monotonic() - started
        fault.expect(status == expected, f"{name}: {status} {answer[:200]!r}, not {expected}")
    return fault


# What is no HTTP, or HTTP against its rules.
GARBAGE: dict[str, bytes] = {
    "noise": bytes(range(256)) * 40,
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(512),
    "no version": b"GET /health\r\n\r\n",
    "long header": b"GET /health HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 500_000 + b"\r\n\r\n",
    "many headers": b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 50_000 + b"\r\n",
    "negative length": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
    "two lengths": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n"
    b"content-length: 6\r\n\r\nabcdef",
    "length and chunks": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n"
    b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad chunk": b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n",
    "NUL in the path": b"GET /he\x00alth HTTP/1.1\r\nhost: a\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "upgrade": b"GET /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
}


def garbage(site: Site) -> Fault:
    """What is no HTTP is refused with 4xx, or the connection is closed: nothing else."""
    fault, target = Fault("bytes that are no HTTP"), site.target
    for name, data in GARBAGE.items():
        with connected(target) as sock:
            sock.settimeout(site.sizes.silent_s)
            try:
                sock.sendall(data)
                sock.shutdown(socket.SHUT_WR)
                status, answer = read_answer(sock)
            except TimeoutError:
                fault.problems.append(f"{name}: neither answered nor closed in {site.sizes.silent_s:g} s")
                continue
            except OSError:  # closed while it was sent, or read
                status, answer = 0, b""
        fault.facts[name] = status
        fault.expect(status == 0 or 400 <= status < 500, f"{name}: {status} {answer[:200]!r}")
    return fault


CLIENT_FAULTS = (resets, slow_readers, half_open, bad_bodies, large_bodies, garbage)
