"""Requests of editor plug-ins, as their sources make them, replayed to a live server.

Each file in clients/recorded/ names a plug-in, the version that was read and its requests; `answer` says what
the plug-in reads of an answer: JSON pointers (RFC 6901) and the types that its parser asks for. `engine` says
what the engine must have been asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from client_servers import SETTINGS
from fake_engine import FakeEngine
from live import Running, Say, serving

from rrtf_serve.engine.protocol import Request, Sampling

FILES = sorted((Path(__file__).parent / "clients" / "recorded").glob("*.json"))
RECORDED = [
    (file.stem, request) for file in FILES for request in json.loads(file.read_text("utf-8"))["requests"]
]
ANSWER = "a + b"
END_OF_TEXT, CHAT_START, CHAT_END = 256, 257, 258  # as fake_engine numbers its special tokens
FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX = 259, 260, 261

KINDS: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "string or null": lambda value: value is None or isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "count": lambda value: type(value) is int and value >= 0,
    "number": lambda value: type(value) in (int, float),
    "list": lambda value: isinstance(value, list),
    "object": lambda value: isinstance(value, dict),
}
OPTIONS = {field.name for field in fields(Sampling)}


def answer_with(prompt: tuple[int, ...]) -> list[int]:
    return [*ANSWER.encode(), CHAT_END if CHAT_START in prompt else END_OF_TEXT]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=answer_with), settings=SETTINGS) as running:
        yield running


def look_up(record: Any, pointer: str) -> Any:
    """Raises KeyError, IndexError or TypeError where nothing is there."""
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        record = record[int(key)] if isinstance(record, list) else record[key]
    return record


def check(record: Any, reads: dict[str, str]) -> None:
    for pointer, kind in reads.items():
        value = look_up(record, pointer)
        assert KINDS[kind](value), f"{pointer}: {kind}, but got {value!r}"


def records(form: str, text: str) -> list[Any]:
    if form == "sse":
        lines = [line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:")]
        return [json.loads(line) for line in lines if line != "[DONE]"]
    return [json.loads(line) for line in text.splitlines()] if form == "ndjson" else [json.loads(text)]


def joined(found: list[Any], pointer: str) -> str:
    """The text of all of a stream's records; some, such as the last, may hold none."""
    pieces = []
    for record in found:
        try:
            pieces.append(look_up(record, pointer))
        except (KeyError, IndexError, TypeError):
            continue
    return "".join(piece for piece in pieces if piece is not None)


def send(running: Running, request_: dict[str, Any]) -> httpx.Response:
    body = json.dumps(request_["body"]) if "body" in request_ else None
    return httpx.request(
        request_["method"], running.address + request_["path"], headers=request_["headers"], content=body
    )


def text_of(running: Running, request_: dict[str, Any]) -> str:
    answer = send(running, request_)
    expected = request_["answer"]
    return joined(records(expected.get("form", "json"), answer.text), expected["text"])


def check_prompt(running: Running) -> None:
    """What the model read: the text around the cursor between its own special tokens, each there once."""
    prompt = list(running.engine.started[-1].prompt)
    assert [token for token in prompt if token in (FIM_PREFIX, FIM_MIDDLE, FIM_SUFFIX)] == [
        FIM_PREFIX,
        FIM_SUFFIX,
        FIM_MIDDLE,
    ]
    prefix = bytes(prompt[prompt.index(FIM_PREFIX) + 1 : prompt.index(FIM_SUFFIX)]).decode()
    suffix = bytes(prompt[prompt.index(FIM_SUFFIX) + 1 : prompt.index(FIM_MIDDLE)]).decode()
    assert prefix.endswith("def add(a, b):\n    return ")
    assert suffix == "\n\n\nprint(add(1, 2))\n"
    assert prompt[-1] == FIM_MIDDLE


def check_asked(running: Running, made: list[Request], expected: dict[str, Any]) -> None:
    assert set(expected) <= OPTIONS | {"max_tokens", "rows", "stops", "dropped", "contains"}
    options = {name: value for name, value in expected.items() if name in OPTIONS}
    assert "temperature" in options
    assert len(made) == expected.get("rows", 1)
    for asked in made:
        left = running.engine.capabilities.max_context - len(asked.prompt)
        assert asked.max_tokens == (left if expected["max_tokens"] is None else expected["max_tokens"])
        assert asked.min_tokens == 0
        assert asked.sampling == Sampling(**options)
        prompt = running.served.tokenizer.decode(asked.prompt, skip_specials=False)
        for text in expected.get("contains", []):
            assert text in prompt


@pytest.mark.parametrize(
    ("client", "request_"), RECORDED, ids=[f"{client}: {request['name']}" for client, request in RECORDED]
)
def test_a_plug_in_reads_what_it_looks_for(server: Running, client: str, request_: dict[str, Any]) -> None:
    expected = request_["answer"]
    already = len(server.engine.started)
    answer = send(server, request_)
    assert answer.status_code == expected["status"], answer.text
    for pattern in expected.get("raw", []):
        assert re.search(pattern, answer.text), answer.text
    made = server.engine.started[already:]
    if "text" in expected:
        found = records(expected.get("form", "json"), answer.text)
        assert joined(found, expected["text"]) == ANSWER
        for record in found:
            check(record, expected.get("every", {}))
        check(found[-1], expected.get("last", {}))
        if "chat" not in request_["path"] and "messages" not in request_["body"]:
            check_prompt(server)
        check_asked(server, made, request_["engine"])
        dropped = answer.headers.get("x-rrtf-dropped", "")
        assert dropped == ", ".join(request_["engine"].get("dropped", []))
    else:
        assert not made
        assert "engine" not in request_
    if expected.get("reads"):
        check(answer.json(), expected["reads"])


STOPS = [
    (f"{client}: {request['name']}: {stop}", request, stop)
    for client, request in RECORDED
    if "stops" in request.get("engine", {})
    for stop in look_up(request["body"], request["engine"]["stops"])
]


@pytest.mark.parametrize(
    ("request_", "stop"), [(request, stop) for _, request, stop in STOPS], ids=[name for name, _, _ in STOPS]
)
def test_a_stop_string_of_a_plug_in_ends_the_text(said: Say, request_: dict[str, Any], stop: str) -> None:
    # Within brackets: nothing else ends it there.
    running = said(f"({ANSWER}{stop}c)")
    assert text_of(running, request_) == f"({ANSWER}"
    without = deepcopy(request_)
    look_up(without["body"], request_["engine"]["stops"]).clear()
    assert text_of(running, without) == f"({ANSWER}{stop}c)"


@pytest.mark.parametrize(
    ("client", "request_"), RECORDED, ids=[f"{client}: {request['name']}" for client, request in RECORDED]
)
def test_no_stop_string_of_a_plug_in_is_left_unchecked(client: str, request_: dict[str, Any]) -> None:
    body = request_.get("body", {})
    sent = body.get("stop") or body.get("options", {}).get("stop")
    if sent and "text" in request_["answer"]:
        assert look_up(body, request_["engine"]["stops"]) == sent
