"""The table: every documented field is in it, and each has the decision that docs/api.md states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import pytest
from fake_engine import CAPABILITIES, FakeEngine
from live import serving
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params

from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.fields import CHAT_FIELDS, COMPLETION_FIELDS, Field, parse
from rrtf_serve.api.kinds import Number
from rrtf_serve.engine.protocol import Capabilities

ABLE = Capabilities(512, 16, 20, 256, seed=True, penalties=True, logit_bias=True, min_p=True)


@pytest.mark.parametrize(
    ("table", "documented"),
    [
        (COMPLETION_FIELDS, completion_create_params.CompletionCreateParamsStreaming),
        (CHAT_FIELDS, chat_create_params.CompletionCreateParamsStreaming),
    ],
)
def test_every_field_of_the_sdk_is_in_the_table(table: tuple[Field, ...], documented: Any) -> None:
    assert set(documented.__annotations__) | set(get_type_hints(documented)) <= {
        field.name for field in table
    }


def test_the_document_lists_every_field() -> None:
    text = (Path(__file__).parent.parent / "docs" / "api.md").read_text("utf-8")
    missing = {field.name for field in (*COMPLETION_FIELDS, *CHAT_FIELDS) if f"`{field.name}`" not in text}
    assert not missing


# field, value, dropped by an engine that can nothing special, dropped by one that can all
CHAT_DECISIONS = [
    ("seed", 7, True, False),
    ("presence_penalty", 0.5, True, False),
    ("presence_penalty", 0, False, False),
    ("frequency_penalty", -0.5, True, False),
    ("min_p", 0.1, True, False),
    ("min_p", 0, False, False),
    ("top_k", 5, False, False),
    ("repetition_penalty", 1.1, False, False),
    ("logit_bias", {}, False, False),
    ("tools", [{"type": "function", "function": {"name": "f"}}], True, True),
    ("tools", [], False, False),
    ("tool_choice", "none", False, False),
    ("tool_choice", "auto", False, False),
    ("functions", [{"name": "f"}], True, True),
    ("parallel_tool_calls", True, False, False),
    ("response_format", {"type": "text"}, False, False),
    ("modalities", ["text"], False, False),
    ("audio", {"voice": "x", "format": "wav"}, True, True),
    ("web_search_options", {}, False, False),
    ("web_search_options", {"user_location": {}}, True, True),
    ("reasoning_effort", "high", True, True),
    ("reasoning_effort", "none", False, False),
    ("verbosity", "low", True, True),
    ("verbosity", "medium", False, False),
    ("service_tier", "auto", False, False),
    ("service_tier", "priority", True, True),
    ("moderation", {"model": "m"}, True, True),
    ("prediction", {"type": "content", "content": "x"}, False, False),
    ("user", "ada", False, False),
    ("metadata", {"a": "b"}, False, False),
    ("store", True, False, False),
    ("prompt_cache_key", "k", False, False),
    ("safety_identifier", "s", False, False),
]


@pytest.mark.parametrize(("name", "value", "plain", "able"), CHAT_DECISIONS)
def test_what_is_dropped(name: str, value: object, plain: bool, able: bool) -> None:
    body = {"messages": [{}], name: value}
    assert parse(CHAT_FIELDS, body, CAPABILITIES).dropped == ((name,) if plain else ())
    assert parse(CHAT_FIELDS, body, ABLE).dropped == ((name,) if able else ())


def test_a_seed_is_neutral_when_decoding_is_greedy() -> None:
    body = {"prompt": "a", "seed": 7, "temperature": 0}
    assert parse(COMPLETION_FIELDS, body, CAPABILITIES).dropped == ()


def test_tools_and_their_choice_are_dropped_together() -> None:
    body = {"messages": [{}], "tools": [{}], "tool_choice": "auto"}
    assert set(parse(CHAT_FIELDS, body, CAPABILITIES).dropped) == {"tools", "tool_choice"}


def test_logit_bias_is_refused_unless_the_engine_can() -> None:
    body = {"prompt": "a", "logit_bias": {"5": 1}}
    with pytest.raises(ApiError, match="logit_bias"):
        parse(COMPLETION_FIELDS, body, CAPABILITIES)
    assert parse(COMPLETION_FIELDS, body, ABLE).values["logit_bias"] == ((5, 1.0),)


def test_null_is_absent_and_the_unknown_is_ignored() -> None:
    nothing = parse(COMPLETION_FIELDS, {"prompt": "a"}, CAPABILITIES)
    nulls: dict[str, object] = {field.name: None for field in COMPLETION_FIELDS}
    unknown: dict[str, object] = {"parameters": {"max_new_tokens": 60}, "options": 5, "keep_alive": [1]}
    assert parse(COMPLETION_FIELDS, {**nulls, **unknown, "prompt": "a"}, CAPABILITIES) == nothing


def test_whole_floats_are_integers() -> None:
    values = parse(COMPLETION_FIELDS, {"prompt": "a", "max_tokens": 5.0, "n": 2.0}, CAPABILITIES).values
    assert (values["max_tokens"], values["n"]) == (5, 2)
    assert type(values["max_tokens"]) is int


def test_the_header_names_what_had_no_effect() -> None:
    body = {"prompt": "a", "max_tokens": 1, "seed": 1, "presence_penalty": 1}
    with serving() as server:
        whole = httpx.post(server.address + "/v1/completions", json=body)
        streamed = httpx.post(server.address + "/v1/completions", json={**body, "stream": True})
        clean = httpx.post(server.address + "/v1/completions", json={"prompt": "a"})
    assert whole.headers["x-rrtf-dropped"] == "seed, presence_penalty"
    assert streamed.headers["x-rrtf-dropped"] == "seed, presence_penalty"
    assert "x-rrtf-dropped" not in clean.headers


def test_sampling_options_reach_the_engine() -> None:
    with serving(FakeEngine(capabilities=ABLE)) as server:

        def sampling(**fields: Any) -> Any:
            body = {"prompt": "a", "max_tokens": 1, **fields}
            assert httpx.post(server.address + "/v1/completions", json=body).status_code == 200
            return server.engine.started[-1].sampling

        assert (sampling().temperature, sampling().top_p, sampling().logprobs) == (1.0, 1.0, None)
        asked = sampling(temperature=0.3, top_p=0.9, top_k=5, repetition_penalty=1.2, logprobs=3)
        assert (asked.temperature, asked.top_p, asked.top_k, asked.repetition_penalty) == (0.3, 0.9, 5, 1.2)
        assert asked.logprobs == 3
        assert sampling(top_k=-1).top_k == 0
        special = sampling(
            seed=7, min_p=0.1, presence_penalty=0.5, frequency_penalty=-0.5, logit_bias={"65": 2}
        )
        assert (special.seed, special.min_p) == (7, 0.1)
        assert (special.presence_penalty, special.frequency_penalty) == (0.5, -0.5)
        assert special.logit_bias == ((65, 2.0),)
        # Greedy requests are equal whatever else they say, so that they can share a batch.
        assert sampling(temperature=0, top_p=0.5, top_k=3) == sampling(temperature=0) == sampling(top_p=0)


@pytest.mark.parametrize("value", [10**400, -(10**400), math.inf])
def test_a_number_beyond_every_float_is_refused(value: float) -> None:
    with pytest.raises(ApiError, match="'x'") as caught:
        Number().check(value, ("x",))
    assert caught.value.status == 400
