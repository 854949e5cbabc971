"""TGI's dialect: llm-ls's and Continue's requests, and what the documentation says of the parameters."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import CAPABILITIES, FakeEngine, byte_tokenizer
from live import Running, serving

from rrtf_serve.api.app import ApiSettings

END = 256  # of the fake tokenizer
# llm-ls, with its default markers
LLM_LS: dict[str, Any] = {
    "inputs": "<fim_prefix>def f():\n    <fim_suffix>\n\nprint(f())\n<fim_middle>",
    "parameters": {"max_new_tokens": 60, "temperature": 0.2, "top_p": 0.95, "return_full_text": False},
}
# Continue's huggingface-tgi
CONTINUE: dict[str, Any] = {
    "inputs": "hello",
    "parameters": {"max_new_tokens": 10, "best_of": 1, "stop": ["\n\n\n"], "temperature": 0.01},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(script=lambda _: list("return 'é😀'\n\nmore".encode()))) as running:
        yield running


def generate(server: Running, body: dict[str, Any], path: str = "/generate") -> Any:
    response = httpx.post(server.address + path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(server: Running, body: dict[str, Any]) -> list[Any]:
    response = httpx.post(server.address + "/generate_stream", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data:")) for block in blocks]


def test_llm_ls_gets_an_editors_answer(server: Running) -> None:
    assert generate(server, LLM_LS) == {"generated_text": "return 'é😀'"}
    request = server.engine.started[-1]
    assert byte_tokenizer().decode(request.prompt, skip_specials=False) == (
        "<|fim_prefix|>def f():\n    <|fim_suffix|>\n\nprint(f())\n<|fim_middle|>"
    )
    assert (request.sampling.temperature, request.sampling.top_p) == (0.2, 0.95)


def test_plain_inputs_are_gone_on_with(server: Running) -> None:
    assert generate(server, CONTINUE)["generated_text"] == "return 'é"
    full = {**CONTINUE, "parameters": {**CONTINUE["parameters"], "return_full_text": True}}
    assert generate(server, full)["generated_text"] == "helloreturn 'é"
    assert generate(server, {"inputs": "a"})["generated_text"].startswith("return")


def test_events_of_a_stream(server: Running) -> None:
    made = events(server, CONTINUE)
    assert "".join(event["token"]["text"] for event in made) == "return 'é"
    assert [event["generated_text"] for event in made] == [None] * (len(made) - 1) + ["return 'é"]
    assert all(set(event["token"]) == {"id", "text", "logprob", "special"} for event in made)
    assert [event["index"] for event in made] == list(range(1, len(made) + 1))
    assert made[-1]["details"] is None
    made = events(server, LLM_LS)
    assert made[-1]["generated_text"] == "".join(event["token"]["text"] for event in made) == "return 'é😀'"


def test_details(server: Running) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 3, "details": True}}
    details = generate(server, body)["details"]
    assert details["finish_reason"] == "length"
    assert details["generated_tokens"] == 3
    assert [token["text"] for token in details["tokens"]] == ["r", "e", "t"]
    assert details["tokens"][0] == {"id": 114, "text": "r", "logprob": -0.25, "special": False}
    last = events(server, body)[-1]
    assert last["details"] == {"finish_reason": "length", "generated_tokens": 3, "seed": None}
    assert last["token"]["id"] == ord("t")


def test_a_stop_sequence_is_named_and_stays_at_the_texts_end(server: Running) -> None:
    stopped = {"max_new_tokens": 20, "details": True, "stop": ["xyz", "rn '"]}
    body = {"inputs": "a", "parameters": stopped}
    whole = generate(server, body)
    assert whole["generated_text"] == "return '"
    assert whole["details"]["finish_reason"] == "stop_sequence"
    *_, last = made = events(server, body)
    assert last["generated_text"] == "".join(event["token"]["text"] for event in made) == "return '"
    assert last["details"]["finish_reason"] == "stop_sequence"
    best = {**stopped, "best_of": 2, "return_full_text": True}
    assert generate(server, {"inputs": "a", "parameters": best})["generated_text"] == "areturn '"


def test_what_ends_an_answer_without_a_stop_sequence_is_told_apart() -> None:
    with serving(FakeEngine(script=lambda _: [*b"x = 1", END])) as server:
        body = {"inputs": "a", "parameters": {"details": True, "stop": ["never"]}}
        assert generate(server, body)["details"]["finish_reason"] == "eos_token"
    # The suffix once more ends an editor's answer, and is no stop sequence of the client's.
    with serving(FakeEngine(script=lambda _: list(b"g()\n\nprint(f())\nmore"))) as server:
        asked = {**LLM_LS, "parameters": {"max_new_tokens": 60, "details": True, "stop": ["("]}}
        made = generate(server, {**asked, "inputs": LLM_LS["inputs"]})
        assert (made["generated_text"], made["details"]["finish_reason"]) == ("g", "stop_sequence")
        asked["parameters"]["stop"] = ["never"]
        assert generate(server, asked)["details"]["finish_reason"] == "eos_token"


def test_truncate_cuts_an_editors_prompt_around_the_cursor(server: Running) -> None:
    above, below = "".join(f"a = {number}\n" for number in range(30)), "b = 1\n" * 30
    inputs = f"<fim_prefix>{above}x<fim_suffix>{below}<fim_middle>"
    generate(server, {"inputs": inputs, "parameters": {"max_new_tokens": 2, "truncate": 40}})
    request = server.engine.started[-1]
    text = byte_tokenizer().decode(request.prompt, skip_specials=False)
    assert len(request.prompt) <= 40
    assert "a = 29\nx<|fim_suffix|>b" in text
    assert text.startswith("<|fim_prefix|>")
    assert text.endswith("<|fim_middle|>")


@pytest.mark.parametrize(
    ("parameters", "temperature", "top_p", "top_k"),
    [
        ({}, 0.0, 1.0, 0),
        ({"do_sample": True}, 1.0, 1.0, 0),
        ({"top_k": 5}, 1.0, 1.0, 5),
        ({"top_p": 0.5}, 1.0, 0.5, 0),
        ({"temperature": 0, "top_p": 0.5}, 0.0, 1.0, 0),
        ({"temperature": None, "top_k": None, "stop": None}, 0.0, 1.0, 0),
    ],
)
def test_what_is_drawn(
    server: Running, parameters: dict[str, Any], temperature: float, top_p: float, top_k: int
) -> None:
    generate(server, {"inputs": "a", "parameters": {"max_new_tokens": 1, **parameters}})
    sampling = server.engine.started[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (temperature, top_p, top_k)


def test_truncate_keeps_the_end(server: Running) -> None:
    generate(server, {"inputs": "abcdef", "parameters": {"max_new_tokens": 1, "truncate": 2}})
    assert server.engine.started[-1].prompt == (101, 102)


def test_the_best_of_some(server: Running) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 2, "best_of": 3, "do_sample": True}}
    assert generate(server, body) == {"generated_text": "re"}
    response = httpx.post(server.address + "/generate_stream", json=body)
    assert response.status_code == 400


def test_what_has_no_effect_is_named_and_a_grammar_is_refused(server: Running) -> None:
    body = {"inputs": "a", "parameters": {"max_new_tokens": 1, "watermark": True, "typical_p": 0.5, "x": 1}}
    response = httpx.post(server.address + "/generate", json=body)
    assert response.headers["x-rrtf-dropped"] == "typical_p, watermark"
    body = {"inputs": "a", "parameters": {"grammar": {"type": "json", "value": {}}}}
    response = httpx.post(server.address + "/generate", json=body)
    assert response.status_code == 400
    assert set(response.json()) == {"error", "error_type"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {}),
        ("/generate", {"inputs": 1}),
        ("/generate", {"inputs": ""}),
        ("/generate", {"inputs": "a" * 600}),
        ("/generate", {"inputs": "a", "parameters": []}),
        ("/generate_stream", {"inputs": "a", "parameters": {"max_new_tokens": "x"}}),
    ],
)
def test_errors_are_texts(server: Running, path: str, body: dict[str, Any]) -> None:
    response = httpx.post(server.address + path, json=body)
    assert response.status_code == 400
    record = response.json()
    assert record["error_type"] == "validation"
    assert isinstance(record["error"], str)


def test_errors_of_the_server_and_in_mid_stream() -> None:
    with serving(FakeEngine(fails_after=2)) as server:
        response = httpx.post(server.address + "/generate", json=CONTINUE)
        assert (response.status_code, response.json()["error_type"]) == (500, "generation")
        made = events(server, CONTINUE)
        assert made[-1]["error_type"] == "generation"
    with serving(settings=ApiSettings(api_keys=frozenset({"0" * 64}))) as server:
        for path in ("/generate", "/generate_stream"):
            response = httpx.post(server.address + path, json=CONTINUE)
            assert (response.status_code, set(response.json())) == (401, {"error", "error_type"})
        assert httpx.get(server.address + "/info").status_code == 401


def test_info(server: Running) -> None:
    info = httpx.get(server.address + "/info").json()
    assert info["model_id"] == "tiny-coder"
    assert (info["max_input_length"], info["max_total_tokens"]) == (511, 512)


def test_the_root_leads_to_the_model(server: Running) -> None:
    response = httpx.post(server.address + "/", json=LLM_LS, follow_redirects=True)
    assert response.json() == [{"generated_text": "return 'é😀'"}]


def test_an_engine_without_logprobs_gives_details_without_tokens() -> None:
    with serving(FakeEngine(capabilities=replace(CAPABILITIES, max_logprobs=0))) as server:
        body = {"inputs": "a", "parameters": {"max_new_tokens": 3, "details": True}}
        assert generate(server, body)["details"]["generated_tokens"] == 3
