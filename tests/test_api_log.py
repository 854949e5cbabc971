"""The log of requests: what a line holds, what it never holds, and files that fail."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from live import Running, serving

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.keys import Keyring, read_variable
from rrtf_serve.api.log import RequestLog, format_named, json_line, text_line
from rrtf_serve.api.visit import Visit

PATH = "/v1/completions"
SECRET = "a prompt that nobody else may read"


def nothing() -> None:
    pass


@contextmanager
def logging_to(file: Path, **settings: Any) -> Iterator[Running]:
    keys = Keyring(read_variable("alice:sesame"))
    with (
        closing(RequestLog("json", file, lost=nothing)) as log,
        serving(FakeEngine(), keys=keys, settings=ApiSettings(**settings), log=log) as server,
    ):
        yield server


def ask(server: Running, **fields: Any) -> httpx.Response:
    headers = {"authorization": "Bearer sesame", "x-request-id": "mine-1"}
    return httpx.post(
        server.address + PATH, json={"prompt": SECRET, "max_tokens": 3, **fields}, headers=headers
    )


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_tells_all_but_the_key_and_the_text(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with logging_to(file) as server:
        ask(server)
        ask(server, stream=True, n=2, temperature=1)
        httpx.get(f"{server.address}/v1/models?secret=sesame", headers={"api-key": "wrong-key"})
        httpx.get(f"{server.address}/nowhere?secret=sesame", headers={"api-key": "sesame"})
        ask(server, max_tokens="many")
    whole, streamed, refused, nowhere, wrong = lines(file)
    times = [whole.pop(name) for name in ("queue_ms", "first_token_ms", "total_ms")]
    assert 0 <= times[0] <= times[1] <= times[2]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", whole.pop("time"))
    assert whole == {
        "event": "request", "request_id": "mine-1", "client": "127.0.0.1", "key": "alice", "method": "POST",
        "route": PATH, "status": 200, "model": "tiny-coder", "rows": 1, "prompt_tokens": len(SECRET),
        "completion_tokens": 3, "finish": ["length"],
    }  # fmt: skip
    assert (streamed["rows"], streamed["completion_tokens"], streamed["finish"]) == (2, 6, ["length"] * 2)
    assert (refused["status"], refused["error"], "key" in refused) == (401, "invalid_api_key", False)
    assert (refused["route"], "path" in refused) == ("/v1/models", False)
    assert (nowhere["route"], nowhere["path"], nowhere["error"]) == ("unmatched", "/nowhere", "unknown_url")
    assert (wrong["status"], wrong["error"], "model" in wrong) == (400, "invalid_type", False)
    text = file.read_text()
    for hidden in ("sesame", "wrong-key", SECRET):
        assert hidden not in text
    assert file.stat().st_mode & 0o007 == 0, "not for everybody to read"


def test_prompts_are_there_where_asked(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", log_prompts=True) as server:
        ask(server, prompt=[SECRET, "second\nline"])
    (line,) = lines(tmp_path / "log")
    assert line["prompts"] == [SECRET, "second\nline"]


def test_scored_prompts_are_there_once(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log", log_prompts=True) as server:
        for most in (0, 2):
            ask(server, prompt=[SECRET, "second"], echo=True, logprobs=0, max_tokens=most)
    scored, gone_on = lines(tmp_path / "log")
    for line in (scored, gone_on):
        assert line["prompts"] == [SECRET, "second"]
        assert (line["model"], line["prompt_tokens"]) == ("tiny-coder", len(SECRET) + 6)


def test_a_failure_in_mid_stream_has_its_code(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as server:
        server.engine.fails_after = 2
        assert "internal_error" in ask(server, stream=True, max_tokens=9).text
    (line,) = lines(tmp_path / "log")
    assert (line["status"], line["error"], line["completion_tokens"]) == (200, "internal_error", 2)


def test_a_client_that_left_is_said_to_have_left(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as server:
        server.engine.open.clear()
        body = {"prompt": "a", "max_tokens": 5, "stream": True}
        url, headers = server.address + PATH, {"api-key": "sesame"}
        with httpx.Client() as client, client.stream("POST", url, json=body, headers=headers):
            pass
        until(lambda: bool((tmp_path / "log").read_text()))
        server.engine.open.set()
    (line,) = lines(tmp_path / "log")
    assert line["gone"] is True
    assert "finish" not in line


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_probes_are_quiet_unless_they_fail(tmp_path: Path) -> None:
    with logging_to(tmp_path / "log") as server:
        for path in ("/health", "/ready", "/metrics"):
            httpx.get(server.address + path)
    assert [line["route"] for line in lines(tmp_path / "log")] == ["/metrics"], (
        "the only one that asks for a key"
    )


def visit(**fields: Any) -> Visit:
    return Visit(
        **{"request_id": "r", "method": "GET", "path": "/", "client": "::1", "status": 200, **fields}
    )


@given(st.text(), st.text(), st.text())
def test_no_text_breaks_a_line(method: str, path: str, prompt: str) -> None:
    made = visit(method=method.replace("\n", ""), path=path, prompts=[prompt])
    line = json_line(made)
    assert len(line.splitlines()) == 1
    assert json.loads(line)["prompts"] == [prompt]
    assert "\n" not in text_line(made)


def test_a_full_disk_fails_no_request_and_is_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[int] = []
    full = Path("/dev/full")
    with closing(RequestLog("json", full, lost=lambda: lost.append(1))) as log, serving(log=log) as server:
        for _ in range(3):
            answer = httpx.post(server.address + PATH, json={"prompt": "a", "max_tokens": 1})
            assert answer.status_code == 200
    assert len(lost) == 3
    (record,) = caplog.records
    assert "--log-file /dev/full: No space left on device" in record.message


def test_a_reader_that_does_not_read_holds_up_nothing(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    lost: list[int] = []
    log = RequestLog("json", pipe, lost=lambda: lost.append(1))
    for _ in range(12_000):  # more than the pipe and the queue hold
        log.tell(visit(ended=1.0, prompts=["x" * 100]))
    assert lost, "lines that find no room are lost, and whoever tells them goes on"
    log.close(0.0)
    os.close(reader)


def test_a_file_that_was_moved_away_is_made_again(tmp_path: Path) -> None:
    file, moved = tmp_path / "log", tmp_path / "log.1"
    with closing(RequestLog("json", file, lost=nothing)) as log:
        log.tell(visit(request_id="first"))
        until(lambda: file.stat().st_size > 0)
        file.rename(moved)
        log.tell(visit(request_id="second"))
        until(lambda: moved.read_text().count("\n") == 2)
        log.reopen()
        log.tell(visit(request_id="third"))
    assert [line["request_id"] for line in lines(moved)] == ["first", "second"]
    assert [line["request_id"] for line in lines(file)] == ["third"]


def test_where_the_new_file_cannot_be_opened_the_old_one_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with closing(RequestLog("json", folder / "log", lost=nothing)) as log:
        log.tell(visit(request_id="first"))
        until(lambda: (folder / "log").stat().st_size > 0)
        folder.rename(tmp_path / "moved")
        log.reopen()
        log.tell(visit(request_id="second"))
    assert [line["request_id"] for line in lines(tmp_path / "moved" / "log")] == ["first", "second"]


def test_half_a_line_does_not_spoil_the_next(tmp_path: Path) -> None:
    file = tmp_path / "log"
    with closing(RequestLog("json", file, lost=nothing)) as log:
        log._broken = True  # as after a disk that took half of one
        log.tell(visit())
    assert file.read_bytes().startswith(b"\n{")


def test_text_is_for_people() -> None:
    made = visit(
        method="POST", route=PATH, key="alice", model="m", prompt_tokens=7, completion_tokens=3, started=1.0,
        finishes=["stop", "stop"], first_token_seconds=0.25, ended=2.0,
    )  # fmt: skip
    line = text_line(made).split(" ", 2)[2]
    assert (
        line
        == "POST /v1/completions 200 · 7 + 3 tokens (stop) · first after 250 ms · 1000 ms · key alice · r"
    )


def test_none_is_none(tmp_path: Path) -> None:
    with closing(RequestLog("none", tmp_path / "log", lost=nothing)) as log:
        log.tell(visit())
    assert (tmp_path / "log").read_bytes() == b""


@pytest.mark.parametrize("name", ["", "JSON", "yaml"])
def test_an_unknown_format_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"--log-format .*text, json, none"):
        format_named(name)


@pytest.mark.parametrize("name", ["absent/log", "folder"])
def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="--log-file"):
        RequestLog("json", tmp_path / name, lost=nothing)
