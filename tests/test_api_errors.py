"""Every refusal has OpenAI's envelope, a code and the field's name; nothing that clients send makes a 5xx."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fake_engine import FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_values import JSON
from live import Running, serving

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.fields import CHAT_FIELDS, COMPLETION_FIELDS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def completion(**fields: Any) -> dict[str, Any]:
    return {"prompt": "abc", **fields}


def chat(**fields: Any) -> dict[str, Any]:
    return {"messages": HELLO, **fields}


def image(text: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    return [{"role": "user", "content": parts}]


# path, body, param, code
REFUSALS = [
    # missing
    (COMPLETIONS, {}, "prompt", "missing_required_parameter"),
    (COMPLETIONS, {"prompt": None}, "prompt", "missing_required_parameter"),
    (CHAT, {}, "messages", "missing_required_parameter"),
    (CHAT, {"messages": [{"content": "x"}]}, "messages[0].role", "missing_required_parameter"),
    (CHAT, {"messages": [*HELLO, {"role": "user"}]}, "messages[1].content", "missing_required_parameter"),
    # types
    (COMPLETIONS, completion(temperature="hot"), "temperature", "invalid_type"),
    (COMPLETIONS, completion(temperature=True), "temperature", "invalid_type"),
    (COMPLETIONS, completion(max_tokens="16"), "max_tokens", "invalid_type"),
    (COMPLETIONS, completion(max_tokens=True), "max_tokens", "invalid_type"),
    (COMPLETIONS, completion(max_tokens=1.5), "max_tokens", "invalid_type"),
    (COMPLETIONS, completion(stream="yes"), "stream", "invalid_type"),
    (COMPLETIONS, completion(echo=1), "echo", "invalid_type"),
    (COMPLETIONS, completion(logprobs=True), "logprobs", "invalid_type"),
    (COMPLETIONS, completion(stop=5), "stop", "invalid_type"),
    (COMPLETIONS, completion(stop=["a", 5]), "stop[1]", "invalid_type"),
    (COMPLETIONS, completion(suffix=["x"]), "suffix", "invalid_type"),
    (COMPLETIONS, completion(model=5), "model", "invalid_type"),
    (COMPLETIONS, completion(user=5), "user", "invalid_type"),
    (COMPLETIONS, completion(logit_bias=[1]), "logit_bias", "invalid_type"),
    (COMPLETIONS, completion(logit_bias={"5": "x"}), "logit_bias.5", "invalid_type"),
    (COMPLETIONS, completion(logit_bias={"5": 101}), "logit_bias.5", "invalid_value"),
    (COMPLETIONS, completion(logit_bias={"the": 1}), "logit_bias", "invalid_value"),
    (COMPLETIONS, completion(stream_options=True, stream=True), "stream_options", "invalid_type"),
    (
        COMPLETIONS,
        completion(stream_options={"include_usage": 1}, stream=True),
        "stream_options.include_usage",
        "invalid_type",
    ),
    (COMPLETIONS, {"prompt": 5}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": {"text": "x"}}, "prompt", "invalid_type"),
    (COMPLETIONS, {"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
    (COMPLETIONS, {"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
    (COMPLETIONS, {"prompt": [1, True]}, "prompt[1]", "invalid_type"),
    (COMPLETIONS, {"prompt": [[1], [2, "x"]]}, "prompt[1][1]", "invalid_type"),
    (COMPLETIONS, {"prompt": [[1], 2]}, "prompt[1]", "invalid_type"),
    (COMPLETIONS, {"prompt": [None]}, "prompt[0]", "invalid_type"),
    (CHAT, {"messages": "hello"}, "messages", "invalid_type"),
    (CHAT, {"messages": ["hello"]}, "messages[0]", "invalid_type"),
    (CHAT, {"messages": [{"role": 1, "content": "x"}]}, "messages[0].role", "invalid_type"),
    (CHAT, {"messages": [{"role": "user", "content": 1}]}, "messages[0].content", "invalid_type"),
    (CHAT, {"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "invalid_type"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text",
        "invalid_type",
    ),
    (CHAT, chat(tools={}), "tools", "invalid_type"),
    (CHAT, chat(logprobs=1), "logprobs", "invalid_type"),
    (CHAT, chat(response_format={"type": 5}), "response_format.type", "invalid_type"),
    # values
    (COMPLETIONS, completion(temperature=-0.1), "temperature", "invalid_value"),
    (COMPLETIONS, completion(temperature=2.1), "temperature", "invalid_value"),
    (COMPLETIONS, completion(temperature=10**400), "temperature", "invalid_value"),
    (COMPLETIONS, completion(top_p=1.1), "top_p", "invalid_value"),
    (COMPLETIONS, completion(n=0), "n", "invalid_value"),
    (COMPLETIONS, completion(n=10**6), "n", "invalid_value"),
    (COMPLETIONS, completion(max_tokens=-1), "max_tokens", "invalid_value"),
    (COMPLETIONS, completion(max_tokens=10**4299), "max_tokens", "invalid_value"),
    (CHAT, chat(max_completion_tokens=10**4299), "max_completion_tokens", "invalid_value"),
    (COMPLETIONS, completion(logprobs=-1), "logprobs", "invalid_value"),
    (COMPLETIONS, completion(logprobs=21), "logprobs", "invalid_value"),
    (COMPLETIONS, completion(stop=["x"] * 1000), "stop", "invalid_value"),
    (COMPLETIONS, completion(stop=["x" * 3000] * 2), "stop", "invalid_value"),
    (COMPLETIONS, completion(n=3, best_of=2), "best_of", "invalid_value"),
    (COMPLETIONS, completion(best_of=2, stream=True), "best_of", "invalid_value"),
    (COMPLETIONS, completion(stream_options={}), "stream_options", "invalid_value"),
    (COMPLETIONS, {"prompt": []}, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": ""}, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt[0]", "invalid_value"),
    (COMPLETIONS, {"prompt": ["a", ""]}, "prompt[1]", "invalid_value"),
    (COMPLETIONS, {"prompt": [1, -1]}, "prompt[1]", "invalid_value"),
    (COMPLETIONS, {"prompt": [1, 10**30]}, "prompt", "invalid_value"),
    (COMPLETIONS, {"prompt": ["a"] * 128, "n": 100}, "n", "invalid_value"),
    (CHAT, {"messages": []}, "messages", "invalid_value"),
    (CHAT, {"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role", "invalid_value"),
    (CHAT, chat(max_tokens=0), "max_tokens", "invalid_value"),
    (CHAT, chat(top_logprobs=3), "top_logprobs", "invalid_value"),
    (CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs", "invalid_value"),
    (CHAT, chat(tool_choice="always"), "tool_choice", "invalid_value"),
    (CHAT, chat(response_format={}), "response_format", "invalid_value"),
    # what this server or this engine can't do
    (COMPLETIONS, completion(logit_bias={"5": -100}), "logit_bias", "unsupported_parameter"),
    (COMPLETIONS, {"prompt": [1, 2], "suffix": "x"}, "suffix", "unsupported_parameter"),
    (
        COMPLETIONS,
        completion(suffix="x", echo=True, logprobs=1),
        "logprobs",
        "unsupported_parameter",
    ),
    (CHAT, chat(tool_choice="required"), "tool_choice", "unsupported_parameter"),
    (CHAT, chat(tool_choice={"type": "function"}), "tool_choice", "unsupported_parameter"),
    (CHAT, chat(function_call={"name": "f"}), "function_call", "unsupported_parameter"),
    (CHAT, chat(response_format={"type": "json_object"}), "response_format", "unsupported_parameter"),
    (CHAT, chat(modalities=["text", "audio"]), "modalities", "unsupported_parameter"),
    (CHAT, {"messages": image("look")}, "messages[0].content[1]", "unsupported_parameter"),
    # context
    (COMPLETIONS, {"prompt": "a" * 512}, "prompt", "context_length_exceeded"),
    (COMPLETIONS, {"prompt": "a" * 512, "max_tokens": 600}, "prompt", "context_length_exceeded"),
    (COMPLETIONS, {"prompt": "a" * 513, "max_tokens": 0, "echo": True}, "prompt", "context_length_exceeded"),
    (CHAT, {"messages": [{"role": "user", "content": "a" * 600}]}, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize(("path", "body", "param", "code"), REFUSALS)
def test_refusal_names_the_field(server: Running, path: str, body: Any, param: str, code: str) -> None:
    response = httpx.post(server.address + path, json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"], error["type"]) == (param, code, "invalid_request_error")
    [detail] = response.json()["detail"]
    assert detail["msg"] == error["message"]
    assert detail["loc"] == f"body.{param}"
    assert response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"prompt": "a",}', "invalid_json"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "a", "temperature": -Infinity}', "invalid_json"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "invalid_json"),
        (b'{"prompt": "a", "temperature": 1e999}', "invalid_value"),
        (b"[]", "invalid_type"),
        (b'"prompt"', "invalid_type"),
        (b"null", "invalid_type"),
    ],
)
def test_bodies_that_are_not_json_objects(server: Running, raw: bytes, code: str) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(server.address + COMPLETIONS, content=raw, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, code)


@pytest.mark.parametrize(
    ("path", "body", "read"),
    [
        (COMPLETIONS, {"prompt": "a" * 100, "max_tokens": 100_000}, 100),
        (COMPLETIONS, {"prompt": ["a" * 100], "max_tokens": 413}, 100),
        (COMPLETIONS, {"prompt": "a" * 512, "max_tokens": 0, "echo": True}, 512),
        (COMPLETIONS, {"prompt": "a" * 100, "suffix": "b" * 100, "max_tokens": 100_000, "best_of": 2}, 203),
        (CHAT, {"messages": [{"role": "user", "content": "a" * 100}], "max_tokens": 100_000}, 119),
        ("/completion", {"prompt": "a" * 100, "n_predict": 100_000}, 100),
        ("/api/generate", {"model": "tiny", "prompt": "a" * 100, "raw": True, "stream": False,
                           "options": {"num_predict": 100_000}}, 100),
        ("/generate", {"inputs": "a" * 100, "parameters": {"max_new_tokens": 100_000}}, 100),
    ],
)  # fmt: skip
def test_more_tokens_than_the_context_leaves_are_not_asked_for(path: str, body: Any, read: int) -> None:
    with serving() as server:
        response = httpx.post(server.address + path, json=body)
        assert response.status_code == 200, response.text
        asked = {(len(request.prompt), request.max_tokens) for request in server.engine.started}
    assert asked == ({(read, 512 - read)} if read < 512 else set())


def test_context_error_carries_the_numbers(server: Running) -> None:
    body = {"prompt": "a" * 520, "max_tokens": 9}
    error = httpx.post(server.address + COMPLETIONS, json=body).json()["error"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (520, 512)
    assert error["message"] == (
        "This model's maximum context length is 512 tokens. However, you requested 521 tokens "
        "(520 in the prompt, 1 in the completion). Please reduce the length of the prompt or completion."
    )


def test_megabytes_of_text_are_refused_before_all_of_it_is_encoded(server: Running) -> None:
    text = "a" * 4_000_000
    for path, body in (
        (COMPLETIONS, {"prompt": text}),
        (CHAT, chat(messages=[{**HELLO[0], "content": text}])),
    ):
        error = httpx.post(server.address + path, json=body, timeout=60).json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert 512 < error["n_prompt_tokens"] < 60_000


def test_unknown_things(server: Running) -> None:
    def ask(method: str, path: str, **options: Any) -> tuple[int, str]:
        response = httpx.request(method, server.address + path, **options)
        return response.status_code, response.json()["error"]["code"]

    assert ask("POST", COMPLETIONS, json=completion(model="gpt-9")) == (404, "model_not_found")
    assert ask("POST", CHAT, json=chat(model="gpt-9")) == (404, "model_not_found")
    assert ask("GET", "/v1/models/gpt-9") == (404, "model_not_found")
    assert ask("GET", "/v1/nothing") == (404, "unknown_url")
    assert ask("GET", COMPLETIONS) == (405, "method_not_allowed")
    assert ask("POST", COMPLETIONS, content=b"{}") == (415, "unsupported_media_type")
    assert ask("POST", COMPLETIONS, data={"prompt": "a"}) == (415, "unsupported_media_type")


def test_suffix_on_a_model_without_infilling() -> None:
    with serving(family="smollm2") as server:
        error = httpx.post(server.address + COMPLETIONS, json=completion(suffix="x")).json()["error"]
    assert (error["code"], error["param"]) == ("unsupported_parameter", "suffix")
    assert "smollm2" in error["message"]


def test_too_large_a_body_is_refused_announced_or_not() -> None:
    with serving(settings=ApiSettings(max_body_bytes=1000)) as server:
        body = json.dumps(completion(user="x" * 2000)).encode()
        headers = {"content-type": "application/json"}
        announced = httpx.post(server.address + COMPLETIONS, content=body, headers=headers)
        chunked = httpx.post(server.address + COMPLETIONS, content=iter([body]), headers=headers)
    for response in (announced, chunked):
        assert (response.status_code, response.json()["error"]["code"]) == (413, "request_too_large")


@pytest.fixture(scope="module")
def guarded() -> Iterator[Running]:
    digests = frozenset(hashlib.sha256(key).hexdigest() for key in (b"one", b"two", "schlüssel".encode()))
    with serving(settings=ApiSettings(api_keys=digests)) as running:
        yield running


def _utf8(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer one"},
        {"authorization": "bearer two"},
        {"x-api-key": "one"},
        {"api-key": "two"},
        {"authorization": "Bearer wrong", "api-key": "two"},
        {"authorization": "Bearer schlüssel"},
    ],
)
def test_a_key_opens_the_api(guarded: Running, headers: dict[str, str]) -> None:
    assert httpx.get(guarded.address + "/v1/models", headers=_utf8(headers)).status_code == 200


def test_a_request_is_its_keys_and_carries_no_key(guarded: Running) -> None:
    engine = guarded.engine
    owners = []
    for headers in (
        {"authorization": "Bearer one"},
        {"x-api-key": "two"},
        {"authorization": "Bearer wrong", "api-key": "one"},
    ):
        for path, body in ((COMPLETIONS, completion()), (CHAT, chat())):
            response = httpx.post(guarded.address + path, json=body, headers=headers)
            assert response.status_code == 200
            owners.append(engine.started[-1].owner)
    one, two = (hashlib.sha256(key).hexdigest() for key in (b"one", b"two"))
    assert owners == [one, one, two, two, one, one]


def test_without_keys_nobody_owns_a_request(server: Running) -> None:
    assert httpx.post(server.address + COMPLETIONS, json=completion()).status_code == 200
    assert server.engine.started[-1].owner is None


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "one"},
        {"Authorization": "Basic one"},
        {"api-key": ""},
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/x", COMPLETIONS, CHAT, "/v1/nothing", "/v1"])
def test_without_a_key_nothing_below_v1_answers(guarded: Running, headers: dict[str, str], path: str) -> None:
    response = httpx.get(guarded.address + path, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_api_key")
    assert response.headers["x-request-id"]
    assert "detail" in response.json()


def test_health_and_version_need_no_key(guarded: Running) -> None:
    assert httpx.get(guarded.address + "/health").json() == {"status": "ok", "model": "tiny-coder"}
    assert httpx.get(guarded.address + "/version").json()["version"]


def test_a_full_queue_answers_429_at_once() -> None:
    engine = FakeEngine()
    engine.open.clear()
    with serving(engine, max_queue=1) as server, httpx.Client(base_url=server.address) as client:
        body = completion(stream=True)
        with client.stream("POST", COMPLETIONS, json=body):
            while not engine.started:
                time.sleep(0.005)
            with client.stream("POST", COMPLETIONS, json=body) as waiting:
                assert waiting.status_code == 200
                full = client.post(COMPLETIONS, json=completion())
        engine.open.set()
    error = full.json()["error"]
    assert (full.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert int(full.headers["retry-after"]) >= 1
    assert 0 < int(full.headers["retry-after-ms"]) <= 1000 * int(full.headers["retry-after"])


def test_a_failing_engine_is_a_500_without_a_stack_trace() -> None:
    with serving(FakeEngine(fails_after=0)) as server:
        response = httpx.post(server.address + COMPLETIONS, json=completion())
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (500, "internal_error", "server_error")
    assert response.headers["x-request-id"] in error["message"]
    assert "Traceback" not in response.text
    assert "told to fail" not in response.text


def test_what_the_engine_refuses_is_a_400() -> None:
    with serving(FakeEngine(vocabulary=200)) as server:
        error = httpx.post(server.address + COMPLETIONS, json={"prompt": [250]}).json()["error"]
    assert (error["code"], error["param"]) == ("invalid_value", "prompt")


def test_a_stopping_server_says_so() -> None:
    engine = FakeEngine(seconds_per_step=0.01)
    with serving(engine) as server, httpx.Client(base_url=server.address) as client:
        with client.stream("POST", COMPLETIONS, json=completion(stream=True, max_tokens=500)) as running:
            asyncio.run(server.scheduler.close(0))
            last = running.read().decode().strip().split("\n\n")[-1]
        late = client.post(COMPLETIONS, json=completion())
        scored = client.post(COMPLETIONS, json=completion(echo=True, logprobs=1, max_tokens=0))
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "server_shutting_down"
    for response in (late, scored):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "server_shutting_down")
        assert response.headers["retry-after"]


def test_a_request_id_is_kept_when_it_is_harmless(server: Running) -> None:
    def ask(given: str) -> str:
        return httpx.get(server.address + "/health", headers={"x-request-id": given}).headers["x-request-id"]

    assert ask("client-42") == "client-42"
    assert ask("no spaces please").startswith("req_")
    assert ask("x" * 1000).startswith("req_")


def test_llm_ls_can_parse_a_refusal(server: Running) -> None:
    """Its Rust type: {"detail": [{"loc": string or integer, "msg": string, "type": string}]}."""
    for body in ({}, {"prompt": ["a", 1]}):
        for detail in httpx.post(server.address + COMPLETIONS, json=body).json()["detail"]:
            assert isinstance(detail["loc"], str)
            assert isinstance(detail["msg"], str)
            assert isinstance(detail["type"], str)


PLAUSIBLE = st.one_of(
    JSON, st.sampled_from([0, 1, 2, True, "auto", [], {}, ["a"], [1, 2], HELLO, {"type": "text"}, "abc"])
)


@pytest.mark.parametrize(("path", "table"), [(COMPLETIONS, COMPLETION_FIELDS), (CHAT, CHAT_FIELDS)])
def test_no_body_makes_a_5xx(server: Running, path: str, table: Any) -> None:
    base = completion(max_tokens=3) if path == COMPLETIONS else chat(max_tokens=3)
    names = st.sampled_from([field.name for field in table] + ["parameters", "options"])

    with httpx.Client(base_url=server.address) as client:

        @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(names, PLAUSIBLE, max_size=6), st.booleans())
        def fuzz(fields: dict[str, Any], bare: bool) -> None:
            body = fields if bare else {**base, **fields}
            response = client.post(
                path, content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert response.status_code < 500, (body, response.text)
            if response.status_code >= 400:
                assert response.json()["error"]["code"], response.text

        fuzz()


def test_half_a_request_leaves_no_trace(server: Running) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    for _ in range(3):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 1000\r\n\r\n{"
            )
    assert httpx.post(server.address + COMPLETIONS, json=completion()).status_code == 200
