"""Tabby's dialect: what its agent 1.5.0 was seen to send, and what its documentation adds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine, byte_tokenizer
from live import Running, serving

from rrtf_serve.api.app import ApiSettings

SEEN: dict[str, Any] = {
    "language": "python",
    "segments": {"prefix": "def add(a, b):\n    ", "suffix": "\n\nprint(add(1, 2))\n"},
}
FULL: dict[str, Any] = {
    "language": "python",
    "segments": {
        **SEEN["segments"],
        "filepath": "src/add.py",
        "git_url": "https://user:secret@example.org/team/calc.git",
        "declarations": [{"filepath": "decl.py", "body": "D = 1\n"}],
        "relevant_snippets_from_changed_files": [
            {"filepath": "low.py", "body": "L = 1\n", "score": 0.1},
            {"filepath": "high.py", "body": "H = 1\n", "score": 0.9},
        ],
        "relevant_snippets_from_recently_opened_files": [{"filepath": "open.py", "body": "O = 1\n"}],
        "clipboard": "hunter2",
        "edit_history": {"edits_diff": "x"},
    },
    "temperature": 0.1,
    "user": "u",
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=lambda _: list(b"return a + b\n\nmore"))) as running:
        yield running


def test_what_the_agent_does_at_its_start(server: Running) -> None:
    for method in ("GET", "POST"):
        health = httpx.request(method, server.address + "/v1/health").raise_for_status().json()
        assert set(health) >= {"device", "arch", "cpu_info", "cpu_count", "cuda_devices", "version"}
        assert set(health["version"]) == {"build_date", "build_timestamp", "git_sha", "git_describe"}
        assert tuple(map(int, health["version"]["git_describe"].lstrip("v").split("."))) >= (0, 9, 0)
    settings = httpx.get(server.address + "/v1beta/server_setting").raise_for_status().json()
    assert settings == {"disable_client_side_telemetry": True}


@pytest.mark.parametrize("body", [SEEN, FULL])
def test_segments_are_completed(server: Running, body: dict[str, Any]) -> None:
    record = httpx.post(server.address + "/v1/completions", json=body).raise_for_status().json()
    assert set(record) == {"id", "choices"}
    assert record["choices"] == [{"index": 0, "text": "return a + b"}]


def test_other_files_are_in_the_prompt_and_the_clipboard_is_not(server: Running) -> None:
    httpx.post(server.address + "/v1/completions", json=FULL).raise_for_status()
    prompt = byte_tokenizer().decode(server.engine.started[-1].prompt, skip_specials=False)
    assert prompt == (
        "<|repo_name|>team/calc\n<|file_sep|>open.py\nO = 1\n<|file_sep|>low.py\nL = 1\n"
        "<|file_sep|>high.py\nH = 1\n<|file_sep|>decl.py\nD = 1\n<|file_sep|>src/add.py\n"
        "<|fim_prefix|>def add(a, b):\n    <|fim_suffix|>\n\nprint(add(1, 2))\n<|fim_middle|>"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("git@example.org:team/calc.git", "team/calc"),
        ("https://token@example.org/team/calc", "team/calc"),
        ("ssh://git@example.org:22/team/sub/calc.git/", "sub/calc"),
        ("calc", None),
        ("https://user:p/w@host", None),
    ],
)
def test_a_repositorys_url_gives_its_name_alone(server: Running, url: str, shown: str | None) -> None:
    segments = {**FULL["segments"], "git_url": url}
    httpx.post(server.address + "/v1/completions", json={"segments": segments}).raise_for_status()
    prompt = byte_tokenizer().decode(server.engine.started[-1].prompt, skip_specials=False)
    assert prompt.startswith(f"<|repo_name|>{shown}\n" if shown else "<|file_sep|>")


def test_the_same_path_still_takes_openais_requests(server: Running) -> None:
    record = httpx.post(server.address + "/v1/completions", json={"prompt": "a", "segments": None}).json()
    assert record["object"] == "text_completion"


@pytest.mark.parametrize(
    ("segments", "param"),
    [
        ({}, "segments"),
        ("x", "segments"),
        ({"prefix": 1}, "segments.prefix"),
        ({"prefix": "a", "declarations": [{"body": "x"}]}, "segments.declarations[0]"),
    ],
)
def test_mistakes_are_named(server: Running, segments: object, param: str) -> None:
    response = httpx.post(server.address + "/v1/completions", json={"segments": segments})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_events_are_counted_and_nothing_else(server: Running) -> None:
    for kind in ("view", "select", "view", "no such thing"):
        event = {"type": kind, "completion_id": "cmpl-1", "choice_index": 0, "view_id": "v", "elapsed": 3}
        response = httpx.post(server.address + "/v1/events?select_kind=line", json=event)
        assert (response.status_code, response.content) == (200, b"")
    assert httpx.post(server.address + "/v1/events", json={}).status_code == 400
    figures = httpx.get(server.address + "/metrics").text
    for kind, count in (("view", 2), ("select", 1), ("other", 1)):
        assert f'rrtf:editor_events_total{{type="{kind}"}} {count}.0' in figures
    assert "no such thing" not in figures


def test_chat_is_openais(server: Running) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    record = httpx.post(server.address + "/v1beta/chat/completions", json=body).raise_for_status().json()
    assert record["object"] == "chat.completion"


def test_all_of_it_asks_for_the_key() -> None:
    with serving(settings=ApiSettings(api_keys=frozenset({"0" * 64}))) as server:
        for method, path in [
            ("GET", "/v1/health"), ("POST", "/v1/health"), ("GET", "/v1beta/server_setting"),
            ("POST", "/v1/completions"), ("POST", "/v1/events"), ("POST", "/v1beta/chat/completions"),
        ]:  # fmt: skip
            assert httpx.request(method, server.address + path).status_code == 401, path
