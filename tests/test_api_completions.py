"""POST /v1/completions over an engine whose answers are known beforehand."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import httpx
import pytest
from fake_engine import CAPABILITIES, SPECIALS, FakeEngine
from live import Running, serving

from rrtf_serve.engine.protocol import TokenLogprob

PATH = "/v1/completions"
FIM = {name: 256 + index for index, name in enumerate(SPECIALS)}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture
def said() -> Iterator[Any]:
    """A server whose model says what it is told to, whatever the prompt."""
    engine = FakeEngine()
    with serving(engine) as running:

        def say(text: str | bytes, *, then_end: bool = False, **fields: Any) -> dict[str, Any]:
            script = list(text.encode() if isinstance(text, str) else text)
            script += [FIM["<|endoftext|>"]] if then_end else []
            engine.script = lambda prompt: script
            body = {"prompt": "p", "max_tokens": len(script) or 1, **fields}
            if fields.get("stream"):
                return {"events": events(running, body)}
            return post(running, body)

        yield say


def post(server: Running, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    response = httpx.post(server.address + PATH, json=body, headers=headers)
    assert response.status_code == 200, response.text
    record: dict[str, Any] = response.json()
    return record


def events(server: Running, body: dict[str, Any]) -> list[Any]:
    response = httpx.post(server.address + PATH, json={**body, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def test_a_text_goes_on(server: Running) -> None:
    record = post(server, {"prompt": "abc", "max_tokens": 5})
    assert record["object"] == "text_completion"
    assert record["model"] == "tiny-coder"
    assert record["id"].startswith("cmpl-")
    assert record["choices"] == [{"index": 0, "text": "abcab", "logprobs": None, "finish_reason": "length"}]
    assert record["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_sixteen_tokens_are_the_default(server: Running) -> None:
    assert post(server, {"prompt": "abc"})["usage"]["completion_tokens"] == 16


def test_the_default_shrinks_to_the_context(server: Running) -> None:
    assert post(server, {"prompt": "a" * 505})["usage"]["completion_tokens"] == 7


def test_an_end_token_stops_and_is_not_shown(said: Any) -> None:
    record = said("hi", then_end=True)
    assert record["choices"][0] == {"index": 0, "text": "hi", "logprobs": None, "finish_reason": "stop"}
    assert record["usage"]["completion_tokens"] == 2


def test_prompts_come_as_text_texts_ids_and_lists_of_ids(server: Running) -> None:
    def texts(prompt: Any) -> list[str]:
        return [choice["text"] for choice in post(server, {"prompt": prompt, "max_tokens": 3})["choices"]]

    assert texts("ab") == ["aba"]
    assert texts(["ab", "x"]) == ["aba", "xxx"]
    assert texts([97, 98]) == ["aba"]
    assert texts([[97, 98], [120]]) == ["aba", "xxx"]


def test_choices_are_numbered_prompt_by_prompt(server: Running) -> None:
    record = post(server, {"prompt": ["a", "b"], "n": 3, "max_tokens": 1})
    assert [(choice["index"], choice["text"]) for choice in record["choices"]] == [
        (0, "a"), (1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, "b"),
    ]  # fmt: skip
    assert record["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}


@pytest.mark.parametrize(
    ("stop", "text"),
    [("\n", "one"), (["three", "two"], "one\n"), ([], "one\ntwo"), ("", "one\ntwo"), (["", "wo"], "one\nt")],
)
def test_stop_strings_end_the_text_and_are_not_shown(said: Any, stop: Any, text: str) -> None:
    choice = said("one\ntwo", then_end=True, stop=stop)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (text, "stop")


def test_any_number_of_stops(said: Any) -> None:
    stops = [f"never{index}" for index in range(200)] + ["two"]
    assert said("one two", stop=stops)["choices"][0]["text"] == "one "


def test_what_looks_like_the_beginning_of_a_stop_is_not_lost(said: Any) -> None:
    choice = said("abcab", stop="abx")["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abcab", "length")


def test_a_row_that_stopped_lets_the_others_go_on() -> None:
    engine = FakeEngine(script=lambda prompt: list(b"x#") if prompt == (97,) else list(b"yz"))
    with serving(engine) as server:
        choices = post(server, {"prompt": ["a", "b"], "max_tokens": 6, "stop": "#"})["choices"]
    assert [choice["text"] for choice in choices] == ["x", "yzyzyz"]


class TestInfilling:
    """Whole answers; an editor's are in test_api_infill."""

    WHOLE: ClassVar = {"x-rrtf-interactive": "false"}

    def test_a_suffix_fills_the_middle(self, server: Running) -> None:
        post(server, {"prompt": "ab", "suffix": "yz", "max_tokens": 2})
        request = server.engine.started[-1]
        markers = [FIM[f"<|fim_{name}|>"] for name in ("prefix", "suffix", "middle")]
        assert request.prompt == (markers[0], *b"ab", markers[1], *b"yz", markers[2])
        assert FIM["<|file_sep|>"] in request.end_ids

    def test_markers_in_the_users_code_stay_text(self, server: Running) -> None:
        post(server, {"prompt": "<|fim_middle|>", "suffix": "x", "max_tokens": 2})
        assert server.engine.started[-1].prompt.count(FIM["<|fim_middle|>"]) == 1

    @pytest.mark.parametrize(
        ("suffix", "text"),
        [
            ("\n\nprint(fib(10))\n", "n\n"),  # the one line there is
            ("\n\nprint(fib(10))\n\nprint(x)", None),  # the second line differs: no repetition
            ("  # end\nprint(fib(10))\n", None),  # the cursor's own line did not come again
            ("10))\nand so", "n\n\nprint(fib("),  # it did, with the next one
            ("\n\nif x:\n", None),
            ("\n)\n", None),  # too short to tell
            ("print(fib(10))", None),
        ],
    )
    def test_a_repeated_suffix_ends_the_middle(self, suffix: str, text: str | None) -> None:
        made = "n\n\nprint(fib(10))\nand so on"
        with serving(FakeEngine(script=lambda _: made.encode())) as server:
            body = {"prompt": "return ", "suffix": suffix, "max_tokens": len(made)}
            choice = post(server, body, **self.WHOLE)["choices"][0]
        expected = (text, "stop") if text is not None else (made, "length")
        assert (choice["text"], choice["finish_reason"]) == expected

    def test_backticks_end_the_middle_unless_the_code_has_some(self) -> None:
        made = "n\n```\nprose"
        with serving(FakeEngine(script=lambda _: made.encode())) as server:
            for prefix, expected in (("return ", "n"), ("```py\nreturn ", made)):
                body = {"prompt": prefix, "suffix": "\n", "max_tokens": len(made)}
                assert post(server, body, **self.WHOLE)["choices"][0]["text"] == expected

    def test_an_empty_or_null_suffix_is_none(self, server: Running) -> None:
        for suffix in ("", None):
            post(server, {"prompt": "ab", "suffix": suffix, "max_tokens": 2})
            assert server.engine.started[-1].prompt == (97, 98)

    def test_an_empty_prefix_is_the_top_of_a_file(self, server: Running) -> None:
        assert post(server, {"prompt": "", "suffix": "x", "max_tokens": 2})["choices"][0]["text"]

    def test_what_does_not_fit_is_cut_far_from_the_cursor(self, server: Running) -> None:
        prefix, suffix = "A" * 600 + "near", "near" + "B" * 600
        body = {"prompt": prefix, "suffix": suffix, "max_tokens": 100}
        record = post(server, body, **self.WHOLE)
        prompt = bytes(token for token in server.engine.started[-1].prompt if token < 256)
        assert record["usage"]["prompt_tokens"] + 100 <= CAPABILITIES.max_context
        assert b"nearnear" in prompt


class TestEcho:
    def test_the_prompt_comes_first(self, server: Running) -> None:
        record = post(server, {"prompt": ["ab", "x"], "max_tokens": 2, "echo": True})
        assert [choice["text"] for choice in record["choices"]] == ["abab", "xxx"]

    def test_ids_are_echoed_as_text(self, server: Running) -> None:
        assert post(server, {"prompt": [97], "max_tokens": 1, "echo": True})["choices"][0]["text"] == "aa"

    def test_a_prompt_is_scored_without_generating(self, server: Running) -> None:
        before = len(server.engine.started)
        record = post(server, {"prompt": "abc", "max_tokens": 0, "echo": True, "logprobs": 1})
        [choice] = record["choices"]
        assert len(server.engine.started) == before
        assert (choice["text"], choice["finish_reason"]) == ("abc", "length")
        assert choice["logprobs"] == {
            "tokens": ["a", "b", "c"],
            "token_logprobs": [None, -0.25, -0.5],
            "top_logprobs": [None, {"b": -0.25}, {"c": -0.25}],
            "text_offset": [0, 1, 2],
        }
        assert record["usage"] == {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3}

    def test_prompt_and_completion_have_their_logprobs_in_a_row(self, server: Running) -> None:
        body = {"prompt": "ab", "max_tokens": 2, "echo": True, "logprobs": 0}
        logprobs = post(server, body)["choices"][0]["logprobs"]
        assert logprobs["tokens"] == ["a", "b", "a", "b"]
        assert logprobs["text_offset"] == [0, 1, 2, 3]
        streamed = [event["choices"][0] for event in events(server, body)]
        for part in ("tokens", "text_offset", "token_logprobs"):
            assert [item for choice in streamed for item in choice["logprobs"][part]] == logprobs[part]
        assert "".join(choice["text"] for choice in streamed) == "abab"

    def test_too_long_a_prompt_to_score_is_refused(self, server: Running) -> None:
        body = {"prompt": "a" * 300, "max_tokens": 0, "echo": True, "logprobs": 1}
        response = httpx.post(server.address + PATH, json=body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
        assert "256" in response.json()["error"]["message"]

    def test_nothing_asked_for_is_an_empty_answer(self, server: Running) -> None:
        choice = post(server, {"prompt": "abc", "max_tokens": 0})["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == ("", "length")


class TestLogprobs:
    def test_tokens_and_alternatives(self, said: Any) -> None:
        logprobs = said("hi", logprobs=2)["choices"][0]["logprobs"]
        assert logprobs == {
            "tokens": ["h", "i"],
            "token_logprobs": [-0.25, -0.5],
            "top_logprobs": [{"h": -0.25, "i": -0.5}, {"i": -0.25, "j": -0.5}],
            "text_offset": [0, 1],
        }

    def test_parts_of_a_character_are_shown_as_bytes(self, said: Any) -> None:
        choice = said("é!", logprobs=0)["choices"][0]
        assert choice["text"] == "é!"
        assert choice["logprobs"]["tokens"] == ["bytes:\\xc3", "bytes:\\xa9", "!"]
        assert choice["logprobs"]["text_offset"] == [0, 0, 1]

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_stop_cuts_them_with_the_text(self, said: Any, stream: bool) -> None:
        answer = said("one##two", logprobs=1, stop="##", stream=stream)
        choices = [event["choices"][0] for event in answer["events"]] if stream else answer["choices"]
        tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        assert tokens == ["o", "n", "e"]
        assert "".join(choice["text"] for choice in choices) == "one"
        assert choices[-1]["finish_reason"] == "stop"

    def test_an_unfinished_character_at_the_end_keeps_its_record(self, said: Any) -> None:
        choice = said(b"a\xc3", logprobs=0)["choices"][0]
        assert choice["text"] == "a\ufffd"
        assert choice["logprobs"]["tokens"] == ["a", "bytes:\\xc3"]

    def test_minus_infinity_has_a_json_form(self) -> None:
        with serving(FakeEngine(scored=lambda token, top, at: TokenLogprob(token, -math.inf))) as server:
            logprobs = post(server, {"prompt": "a", "max_tokens": 1, "logprobs": 0})["choices"][0]["logprobs"]
        assert logprobs["token_logprobs"] == [-9999.0]


class TestBestOf:
    def test_the_best_by_mean_logprob_stay(self) -> None:
        # Rows of odd length score worse on average: see fake_engine.scored.
        lengths = iter([4, 1, 3, 2])

        def script(prompt: tuple[int, ...]) -> list[int]:
            length = next(lengths)
            return [*(str(length) * length).encode(), FIM["<|endoftext|>"]]

        with serving(FakeEngine(script=script)) as server:
            record = post(server, {"prompt": "p", "n": 2, "best_of": 4, "max_tokens": 9})
        # -0.25 alone; -0.25 -0.5 -0.25; then the even ones.
        assert [choice["text"] for choice in record["choices"]] == ["1", "333"]
        assert [choice["index"] for choice in record["choices"]] == [0, 1]
        assert all(choice["logprobs"] is None for choice in record["choices"])
        assert record["usage"]["completion_tokens"] == 10

    def test_as_many_as_are_asked_for_needs_no_ranking(self, server: Running) -> None:
        post(server, {"prompt": "p", "n": 2, "best_of": 2, "max_tokens": 1, "stream": False})
        assert server.engine.started[-1].sampling.logprobs is None

    def test_an_engine_without_logprobs_refuses(self) -> None:
        with serving(FakeEngine(capabilities=replace(CAPABILITIES, max_logprobs=0))) as server:
            for fields in ({"best_of": 2}, {"logprobs": 0}, {"logprobs": 1}):
                response = httpx.post(server.address + PATH, json={"prompt": "p", **fields})
                assert response.json()["error"]["code"] == "unsupported_parameter"


class TestStreaming:
    def test_chunks_join_to_the_whole(self, server: Running) -> None:
        body = {"prompt": ["añb", "x"], "n": 2, "max_tokens": 9, "stop": "#"}
        whole = {choice["index"]: choice["text"] for choice in post(server, body)["choices"]}
        parts: dict[int, str] = {}
        finishes = {}
        for event in events(server, body):
            assert event["object"] == "text_completion"
            assert "usage" not in event
            for choice in event["choices"]:
                assert choice["index"] not in finishes, "something came after the end"
                parts[choice["index"]] = parts.get(choice["index"], "") + choice["text"]
                if choice["finish_reason"]:
                    finishes[choice["index"]] = choice["finish_reason"]
        assert parts == whole
        assert finishes == dict.fromkeys(range(4), "length")

    def test_one_id_for_the_whole_stream(self, server: Running) -> None:
        assert len({event["id"] for event in events(server, {"prompt": "abc"})}) == 1

    def test_usage_comes_last_when_asked_for(self, server: Running) -> None:
        body = {"prompt": "abc", "max_tokens": 4, "stream_options": {"include_usage": True}}
        *chunks, last = events(server, body)
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert all(chunk["usage"] is None for chunk in chunks)

    def test_characters_come_whole(self, said: Any) -> None:
        texts = [event["choices"][0]["text"] for event in said("é✓🎉", stream=True)["events"]]
        assert [text for text in texts if text] == ["é", "✓", "🎉"]

    def test_a_failure_in_mid_stream_is_an_event(self) -> None:
        with serving(FakeEngine(fails_after=2)) as server:
            response = httpx.post(server.address + PATH, json={"prompt": "abc", "stream": True})
        assert response.status_code == 200
        last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
        assert last["error"]["code"] == "internal_error"
        assert "[DONE]" not in response.text


def until_idle(server: Running, seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while server.scheduler.rows_running or server.scheduler.queue_depth:
        assert time.monotonic() < deadline, "the engine still works for a client that has gone"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_the_engine(stream: bool) -> None:
    with serving(FakeEngine(seconds_per_step=0.01)) as server:
        host, port = server.address.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "a", "n": 3, "max_tokens": 500, "stream": stream}).encode()
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            deadline = time.monotonic() + 5
            while not server.scheduler.rows_running:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        until_idle(server, 2.0)
        assert len(server.engine.started) == 3


def test_a_client_that_leaves_the_queue_is_never_started() -> None:
    engine = FakeEngine()
    engine.open.clear()
    with serving(engine) as server, httpx.Client(base_url=server.address, timeout=5) as client:
        with client.stream("POST", PATH, json={"prompt": "a", "stream": True}):
            while not engine.started:
                time.sleep(0.005)
            with pytest.raises(httpx.ReadTimeout):
                client.post(PATH, json={"prompt": "b"}, timeout=0.3)
            deadline = time.monotonic() + 2
            while server.scheduler.queue_depth:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        engine.open.set()
        until_idle(server)
    assert [request.prompt for request in engine.started] == [(97,)]


def test_a_lone_surrogate_is_read_as_a_replacement(server: Running) -> None:
    headers = {"content-type": "application/json"}
    raw = b'{"prompt": "a\\ud83d", "echo": true, "max_tokens": 1}'
    response = httpx.post(server.address + PATH, content=raw, headers=headers)
    assert response.json()["choices"][0]["text"].startswith("a\ufffd")
