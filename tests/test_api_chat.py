"""POST /v1/chat/completions over an engine whose answers are known beforehand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import CAPABILITIES, SPECIALS, FakeEngine
from live import Running, serving

from rrtf_serve.api.app import ApiSettings

PATH = "/v1/chat/completions"
IDS = {name: 256 + index for index, name in enumerate(SPECIALS)}
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=lambda prompt: [*"héy".encode(), IDS["<|im_end|>"]])) as running:
        yield running


def post(server: Running, **body: Any) -> dict[str, Any]:
    response = httpx.post(server.address + PATH, json={"messages": HELLO, **body})
    assert response.status_code == 200, response.text
    record: dict[str, Any] = response.json()
    return record


def events(server: Running, **body: Any) -> list[dict[str, Any]]:
    response = httpx.post(server.address + PATH, json={"messages": HELLO, "stream": True, **body})
    blocks = response.text.split("\n\n")
    assert (blocks.pop(), blocks.pop()) == ("", "data: [DONE]")
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def prompt_text(server: Running) -> str:
    """The last prompt as the engine got it, markers written out."""
    return "".join(
        chr(token) if token < 256 else SPECIALS[token - 256] for token in server.engine.started[-1].prompt
    )


def test_an_answer(server: Running) -> None:
    record = post(server)
    assert record["object"] == "chat.completion"
    assert record["id"].startswith("chatcmpl-")
    assert record["model"] == "tiny-coder"
    assert record["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "héy", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert record["usage"]["completion_tokens"] == 4
    assert record["usage"]["prompt_tokens"] == len(server.engine.started[-1].prompt)


def test_messages_become_the_familys_format(server: Running) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hello", "name": "ada"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    ]
    post(server, messages=messages)
    assert prompt_text(server) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhello<|im_end|>\n"
        "<|im_start|>assistant\nhi<|im_end|>\n<|im_start|>user\none\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_developer_messages_are_system_messages(server: Running) -> None:
    post(server, messages=[{"role": "developer", "content": "Be brief."}, *HELLO])
    assert prompt_text(server).startswith("<|im_start|>system\nBe brief.")


def test_an_assistant_that_only_called_tools_has_no_text(server: Running) -> None:
    post(server, messages=[*HELLO, {"role": "assistant", "content": None, "tool_calls": [{}]}, *HELLO])
    assert "<|im_start|>assistant\n<|im_end|>" in prompt_text(server)


def test_a_role_the_format_has_no_place_for_is_refused(server: Running) -> None:
    response = httpx.post(server.address + PATH, json={"messages": [{"role": "tool", "content": "4"}]})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "messages")


def test_markers_in_the_users_text_stay_text(server: Running) -> None:
    post(server, messages=[{"role": "user", "content": "<|im_end|>"}])
    assert server.engine.started[-1].prompt.count(IDS["<|im_end|>"]) == 1


def test_choices_and_stops(server: Running) -> None:
    record = post(server, n=3, stop=["y"])
    assert [choice["index"] for choice in record["choices"]] == [0, 1, 2]
    assert [choice["message"]["content"] for choice in record["choices"]] == ["hé"] * 3
    assert record["usage"]["completion_tokens"] == 12


def test_either_name_limits_the_answer(server: Running) -> None:
    for limit in (
        {"max_tokens": 1},
        {"max_completion_tokens": 1},
        {"max_completion_tokens": 1, "max_tokens": 9},
    ):
        choice = post(server, **limit)["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("h", "length")


def test_without_a_limit_the_server_sets_one() -> None:
    with serving(settings=ApiSettings(chat_max_tokens=20)) as server:
        assert post(server)["usage"]["completion_tokens"] == 20
    with serving() as server:
        usage = post(server)["usage"]
    assert usage["total_tokens"] == CAPABILITIES.max_context


def test_logprobs(server: Running) -> None:
    record = post(server, logprobs=True, top_logprobs=2, max_tokens=3)
    content = record["choices"][0]["logprobs"]["content"]
    assert content[0] == {
        "token": "h",
        "logprob": -0.25,
        "bytes": [104],
        "top_logprobs": [
            {"token": "h", "logprob": -0.25, "bytes": [104]},
            {"token": "i", "logprob": -0.5, "bytes": [105]},
        ],
    }
    assert [token["token"] for token in content] == ["h", "\ufffd", "\ufffd"]
    assert bytes(byte for token in content for byte in token["bytes"]).decode() == "hé"


def test_logprobs_alone_name_no_alternatives(server: Running) -> None:
    content = post(server, logprobs=True, max_tokens=1)["choices"][0]["logprobs"]["content"]
    assert content[0]["top_logprobs"] == []


class TestStreaming:
    def test_role_then_content_then_finish(self, server: Running) -> None:
        chunks = events(server)
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert len({chunk["id"] for chunk in chunks}) == 1
        choices = [chunk["choices"][0] for chunk in chunks]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["delta"]["content"] for choice in choices[1:-1]] == ["h", "é", "y"]
        assert (choices[-1]["delta"], choices[-1]["finish_reason"]) == ({}, "stop")
        assert all(choice["finish_reason"] is None for choice in choices[:-1])

    def test_each_choice_opens_with_its_role(self, server: Running) -> None:
        opening = events(server, n=2)[:2]
        assert [chunk["choices"][0]["index"] for chunk in opening] == [0, 1]
        assert all(chunk["choices"][0]["delta"]["role"] == "assistant" for chunk in opening)

    def test_usage(self, server: Running) -> None:
        *chunks, last = events(server, stream_options={"include_usage": True})
        assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 4)
        assert last["object"] == "chat.completion.chunk"
        assert all(chunk["usage"] is None for chunk in chunks)

    def test_logprobs_go_with_their_text(self, server: Running) -> None:
        chunks = [chunk["choices"][0] for chunk in events(server, logprobs=True)]
        shown = [
            (chunk["delta"]["content"], [token["bytes"] for token in chunk["logprobs"]["content"]])
            for chunk in chunks
            if chunk["logprobs"]
        ]
        assert shown == [("h", [[104]]), ("é", [[0xC3], [0xA9]]), ("y", [[121]])]
