"""`rrtf-bench load`: what it asks, what it finds right, and what it finds wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_engine import CAPABILITIES, FakeEngine
from live import serving

from benchmarks import cli
from benchmarks.load import LoadConfig, load, rising
from benchmarks.load_asks import CHAT, COMPLETIONS, KINDS, Ask, asks
from benchmarks.load_check import Alone, Wrong, alone_of, check
from benchmarks.load_client import Reply, client, send
from benchmarks.load_figures import figures, quantile

LONG = replace(CAPABILITIES, max_context=8192)
GREEDY = Ask("completion", COMPLETIONS, {"prompt": "a", "temperature": 0})


def config(folder: Path, url: str, **options: Any) -> LoadConfig:
    return LoadConfig(**{"url": url, "clients": 6, "requests": 60, "output": folder, **options})


def test_a_right_server_passes(tmp_path: Path) -> None:
    with serving(FakeEngine(capabilities=LONG)) as server:
        report = load(config(tmp_path, server.address))
        assert server.scheduler.rows_running == server.scheduler.queue_depth == 0
    assert report["wrong_answers"] == []
    assert report["ok"]
    assert report["requests"] == report["all"]["requests"] == 60
    assert report["left"] > 0
    assert report["all"]["completion_tokens"] > 0
    assert json.loads((tmp_path / "load.json").read_text("utf-8")) == report
    page = (tmp_path / "load.md").read_text("utf-8")
    assert "Wrong answers: 0." in page
    assert all(kind in page for kind in report["kinds"])


def test_refused_requests_are_sent_again_and_counted(tmp_path: Path) -> None:
    engine = FakeEngine(capabilities=replace(LONG, max_batch=3), seconds_per_step=0.001)
    with serving(engine, max_queue=1) as server:
        report = load(config(tmp_path, server.address, requests=20, clients=10))
    assert report["ok"], report["wrong_answers"]
    assert report["all"]["refused"] > 0


def test_an_answer_that_depends_on_the_load_is_wrong(tmp_path: Path) -> None:
    """The engine's script answers with the batch before in mind, as a server that mixes rows up would; not
    yet when each question is asked alone: these are fewer than 90."""
    last: list[tuple[int, ...]] = []

    def mixed(prompt: tuple[int, ...]) -> list[int]:
        last.append(prompt)
        loaded = len(last) > 90
        return [token for token in (last[-2] if loaded else prompt) if token < 256]

    with serving(FakeEngine(script=mixed, capabilities=LONG)) as server:
        report = load(config(tmp_path, server.address, requests=100, seed=1))
    assert report["alone"]["questions"] < 90
    assert not report["ok"]
    assert report["wrong"] > 0
    assert "alone" in report["wrong_answers"][0]


def test_a_failing_engine_is_reported(tmp_path: Path) -> None:
    with (
        serving(FakeEngine(capabilities=LONG, fails_after=0)) as server,
        pytest.raises(RuntimeError, match=r"alone.*500"),
    ):
        load(config(tmp_path, server.address))


def test_the_command_ends_with_1_on_a_wrong_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def forgetful(prompt: tuple[int, ...]) -> list[int]:
        calls.append(1)
        return [ord("a") + len(calls) % 26]

    with serving(FakeEngine(script=forgetful, capabilities=LONG)) as server:
        arguments = ["load", "--url", f"{server.address}/v1", "--clients", "4", "--requests", "12"]
        assert cli.main([*arguments, "-o", str(tmp_path)]) == 1
        monkeypatch.delenv("NO_SUCH_KEY", raising=False)
        assert cli.main([*arguments, "--api-key-env", "NO_SUCH_KEY"]) == 2
        assert cli.main([*arguments, "--mix", "tea"]) == 2
    assert cli.main(["load", "--clients", "0"]) == 2


def test_asks_are_the_same_for_a_seed_and_hold_every_kind() -> None:
    first = asks(300, mix="code", seed=3, infill=True, model="m")
    assert first == asks(300, mix="code", seed=3, infill=True, model="m")
    assert first != asks(300, mix="code", seed=4, infill=True, model="m")
    assert {ask.kind for ask in first} == set(KINDS)
    without = asks(300, mix="code", seed=3, infill=False, model="m")
    assert not any("suffix" in ask.body for ask in without)
    plain = asks(300, mix="plain", seed=3, infill=True, model="m")
    assert {ask.kind for ask in plain} == {name for name, kind in KINDS.items() if kind.plain}
    assert not any(ask.leave_after or {"n", "echo", "suffix", "top_k"} & set(ask.body) for ask in plain)


def test_a_question_is_the_same_however_it_is_sent() -> None:
    streamed = replace(
        GREEDY, body={**GREEDY.body, "stream": True, "stream_options": {"include_usage": True}}
    )
    assert streamed.question == GREEDY.question == streamed.alone().question
    assert streamed.question != replace(GREEDY, path=CHAT).question


def reply(text: str, ask: Ask = GREEDY, **options: Any) -> Reply:
    made = Reply(ask, {0: text}, {0: "stop"}, prompt_tokens=1, completion_tokens=len(text))
    for name, value in options.items():
        setattr(made, name, value)
    return made


OTHER = replace(GREEDY, body={"prompt": "b", "temperature": 0})
ALONE = {
    GREEDY.question: Alone({0: "abc"}, {0: "stop"}, 1, 3),
    OTHER.question: Alone({0: "xyz"}, {0: "stop"}, 1, 3),
}


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (reply("abd"), "differs from character 2 on"),
        (reply("ab"), "differs from character 2 on"),
        (reply("xyz"), "the answer to another prompt"),
        (reply("abc", completion_tokens=4), "usage is (1, 4), and was (1, 3) alone"),
        (reply("abd", left=True), "differs from character 2 on"),
        (reply("abc", faults=["it broke"]), "it broke"),
        (reply("abc", finishes={0: "length"}), "finish_reason: 'length', alone 'stop'"),
        (reply("ab", left=True, finishes={0: "length"}), "finish_reason"),
        (reply("", left=True, finishes={}), "nothing had come when the client left"),
        (reply("abc", texts={0: "abc", 1: "abc"}), "choices [0, 1] came, alone [0]"),
    ],
)
def test_what_is_wrong_is_found(wrong: Reply, problem: str) -> None:
    found = check([wrong], ALONE)
    assert len(found) == 1
    assert problem in found[0].line()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_answer_to_somebody_else_is_found_in_every_kind_but_the_sampled(kind: str) -> None:
    drawn = asks(900, mix="code", seed=1, infill=True, model="m")
    mine, yours = list({ask.question: ask for ask in drawn if ask.kind == kind}.values())[:2]

    def answer(ask: Ask, text: str) -> Reply:
        texts = {index: f"{text} {index}" for index in range(ask.choices)}
        return Reply(ask, texts, dict.fromkeys(texts, "stop"), "1", 1, 1)

    right = {ask.question: alone_of(answer(ask, ask.question)) for ask in (mine, yours)}
    assert check([answer(mine, mine.question)], right) == []
    swapped = check([answer(mine, yours.question)], right)
    if kind == "chat, sampled, streamed":
        assert swapped == []
    else:
        assert len(swapped) == mine.choices
        assert "the answer to another prompt" in swapped[0].problem


def test_two_prompts_of_one_request_are_told_apart() -> None:
    drawn = asks(900, mix="code", seed=1, infill=True, model="m")
    ask = next(ask for ask in drawn if ask.choices == 4)
    assert len(set(ask.body["prompt"])) == 2
    assert replace(GREEDY, body={"prompt": [1, 2, 3], "temperature": 0}).choices == 1  # token ids


def test_little_of_a_load_is_chance() -> None:
    for infill in (True, False):
        drawn = asks(2000, mix="code", seed=0, infill=infill, model="m")
        assert sum(not ask.repeatable for ask in drawn) < 0.05 * len(drawn)


def test_memory_that_goes_on_growing_is_told() -> None:
    assert rising([300.0] * 60 + [340.0] * 60) == []
    assert rising([300.0] * 30 + [600.0] * 30) == []  # too short to tell
    [problem] = rising([300.0 + second for second in range(1000)])
    assert problem.startswith("1299 MB were resident at most in the second half")


def test_what_is_right_passes() -> None:
    right = [reply("abc", id="1"), reply("ab", left=True, finishes={}, id="2"), reply("xyz", OTHER, id="3")]
    assert check(right, ALONE) == []
    assert check([reply("abc", id="1"), reply("abc", id="1")], ALONE) == [
        Wrong("all", "the id 1 came with several answers")
    ]


@contextmanager
def scripted(answer: bytes, *, strict: bool = True) -> Iterator[Callable[[Ask], Awaitable[Reply]]]:
    """Sends one request to a server that says just this."""

    async def one(ask: Ask) -> Reply:
        async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(respond, "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()[:2]
        async with server, client(f"http://{host}:{port}", None, 1) as http:
            return await send(http, ask, "name", strict=strict)

    yield one


def stream_of(*data: str) -> bytes:
    body = "".join(f"data: {each}\n\n" for each in data)
    return f"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{body}".encode()


def event(text: str, finish: str | None = None, name: str = "1", index: int = 0) -> str:
    return json.dumps({"id": name, "choices": [{"index": index, "text": text, "finish_reason": finish}]})


STREAMED = replace(GREEDY, body={**GREEDY.body, "stream": True, "stream_options": {"include_usage": True}})


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (stream_of(event("a"), event("", "stop")), "without [DONE]"),
        (stream_of(event("a"), "[DONE]"), "no finish reason"),
        (stream_of(event("a", "stop"), "[DONE]"), "told no usage"),
        (stream_of(event("a", "stop", ""), "[DONE]"), "the answer has no id"),
        (stream_of(event("a"), event("b", "stop", "2"), "[DONE]"), "holds an event of 2"),
        (stream_of(event("", "stop"), event("b"), "[DONE]"), "goes on after its end"),
        (stream_of(event("a", "stop", index=1), "[DONE]"), "choices [1] came"),
        (stream_of(event("a", "stop"), "[DONE]", event("b")), "after [DONE]"),
        (stream_of(json.dumps({"error": {"message": "it failed"}}), "[DONE]"), "not the shape of an event"),
        (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", "status 500: no"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nno", "RemoteProtocolError"),
    ],
)
def test_a_bad_answer_is_told(answer: bytes, fault: str) -> None:
    with scripted(answer) as one:
        found = asyncio.run(one(STREAMED))
    assert any(fault in each for each in found.faults), found.faults


def test_a_peer_may_end_a_stream_without_done_and_usage() -> None:
    with scripted(stream_of(event("a"), event("", "stop")), strict=False) as one:
        assert asyncio.run(one(STREAMED)).faults == []


def test_a_line_separator_does_not_end_an_event() -> None:
    record = json.dumps(
        {"id": "1", "choices": [{"index": 0, "text": "\u2028a", "finish_reason": "stop"}]}, ensure_ascii=False
    )
    with scripted(stream_of(record, "[DONE]"), strict=False) as one:
        found = asyncio.run(one(STREAMED))
    assert found.faults == []
    assert found.texts == {0: "\u2028a"}


def test_quantiles_and_figures() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile(list(range(1, 101)), 0.95) == 95
    one = reply("abc", STREAMED, started=1.0, ended=4.0, arrivals=[1.5, 2.0, 4.0], refused=2)
    found = figures([one, reply("abc", started=0.0, ended=2.0)], 2.0)
    assert found["tokens_per_s"] == 3
    assert found["refused"] == 2
    assert found["first_token_ms"] == {"p50": 500, "p95": 500, "max": 500, "n": 1}
    assert found["between_ms"] == {"p50": 500, "p95": 2000, "max": 2000, "n": 2}
    assert found["whole_ms"] == {"p50": 2000, "p95": 2000, "max": 2000, "n": 1}
