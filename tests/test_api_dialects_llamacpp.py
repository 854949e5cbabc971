"""llama.cpp's dialect: the requests that its editors send, word for word, and what they read of answers."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_engine import CAPABILITIES, SPECIALS, FakeEngine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_values import JSON
from live import Running, Say, serving
from tiny_ct2 import write_llama

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.dialects.llamacpp_fields import (
    COMPLETION_FIELDS,
    DETOKENIZE_FIELDS,
    INFILL_FIELDS,
    TEMPLATE_FIELDS,
    TOKENIZE_FIELDS,
)
from rrtf_serve.api.dialects.llamacpp_shape import chosen, timings
from rrtf_serve.api.dialects.timed import Times
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.ticket import Ticket
from rrtf_serve.models.tokens import BYTE_ALPHABET

FIM = {name: 256 + index for index, name in enumerate(SPECIALS)}
END = FIM["<|endoftext|>"]

# llama.vim, as of 2026-01-31.
LLAMA_VIM: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "def add(a, b):\n",
    "input_suffix": "\n\nprint(add(1, 2))\n",
    "input_extra": [{"text": "def sub(a, b):\n    return a - b\n", "time": [1, 2], "filename": "sub.py"}],
    "prompt": "    return ",
    "n_predict": 128,
    "stop": [],
    "n_indent": 4,
    "top_k": 40,
    "top_p": 0.9,
    "samplers": ["top_k", "top_p", "infill"],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 1000,
    "response_fields": [
        "content",
        "timings/prompt_n",
        "timings/prompt_ms",
        "timings/prompt_per_token_ms",
        "timings/prompt_per_second",
        "timings/predicted_n",
        "timings/predicted_ms",
        "timings/predicted_per_token_ms",
        "timings/predicted_per_second",
        "truncated",
        "tokens_cached",
    ],
}
# It asks so ahead of time, with the pieces that it will send later.
LLAMA_VIM_WARM_UP: dict[str, Any] = {
    "id_slot": 0,
    "input_prefix": "",
    "input_suffix": "",
    "input_extra": LLAMA_VIM["input_extra"],
    "prompt": "",
    "n_predict": 0,
    "temperature": 0.0,
    "samplers": [],
    "stream": False,
    "cache_prompt": True,
    "t_max_prompt_ms": 1,
    "t_max_predict_ms": 1,
    "response_fields": [""],
}
# llama.vscode, as of 2026-08-19.
LLAMA_VSCODE: dict[str, Any] = {
    "input_prefix": "function add(a, b) {\n",
    "input_suffix": "\n}\n",
    "input_extra": [],
    "prompt": "  return ",
    "n_predict": 128,
    "n_cmpl": 3,
    "top_k": 40,
    "top_p": 0.99,
    "stream": False,
    "n_indent": 2,
    "samplers": ["top_k", "top_p", "infill"],
    "cache_prompt": True,
    "t_max_prompt_ms": 500,
    "t_max_predict_ms": 2500,
}
# Continue's provider llama.cpp: it writes the markers itself.
CONTINUE: dict[str, Any] = {
    "model": "whatever the user's settings say",
    "prompt": "<|fim_prefix|>def f():\n    <|fim_suffix|>\n<|fim_middle|>",
    "stream": True,
    "n_predict": 64,
    "stop": ["<|endoftext|>", "<|fim_prefix|>", "/src/", "#- coding: utf-8", "```"],
    "temperature": 0.01,
    "top_k": 40,
    "top_p": 1,
    "min_p": 0,
    "mirostat": 0,
}
# Tabby's server with kind llama.cpp/completion.
TABBY_SERVER: dict[str, Any] = {
    "seed": 4242,
    "prompt": "def f():",
    "n_predict": 8,
    "temperature": 0.1,
    "stream": True,
    "penalty_last_n": 0,
    "presence_penalty": 0.0,
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def post(server: Running, path: str, body: Any, **options: Any) -> Any:
    response = httpx.post(server.address + path, json=body, timeout=60, **options)
    assert response.status_code == 200, response.text
    return response.json()


def events(server: Running, path: str, body: dict[str, Any]) -> list[Any]:
    response = httpx.post(server.address + path, json={**body, "stream": True}, timeout=60)
    assert response.headers["content-type"].startswith("text/event-stream")
    blocks = response.text.split("\n\n")
    assert blocks.pop() == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def asked(server: Running) -> str:
    """The last prompt that reached the engine."""
    return server.served.tokenizer.decode(server.engine.started[-1].prompt, skip_specials=False)


class TestInfill:
    def test_llama_vim_reads_its_fields_at_the_root(self, said: Say) -> None:
        server = said("a + b")
        answer = post(server, "/infill", LLAMA_VIM)
        assert list(answer) == LLAMA_VIM["response_fields"]
        assert answer["content"] == "a + b"
        assert (answer["timings/predicted_n"], answer["truncated"]) == (5, False)
        assert answer["timings/prompt_n"] == len(server.engine.started[-1].prompt)
        assert answer["timings/prompt_ms"] > 0

    def test_the_cursors_line_comes_before_the_cursor(self, said: Say) -> None:
        prompt = (post(server := said("x"), "/infill", LLAMA_VIM), asked(server))[1]
        before, _, rest = prompt.partition("<|fim_suffix|>")
        assert before.endswith("<|fim_prefix|>def add(a, b):\n    return ")
        assert rest.startswith("\n\nprint(add(1, 2))\n") and rest.endswith("<|fim_middle|>")

    def test_other_files_come_first_the_last_looked_at_nearest(self, server: Running) -> None:
        extra = [{"text": f"x = {name!r}\n", "filename": f"{name}.py"} for name in ("old", "new")]
        post(server, "/infill", {**LLAMA_VIM, "input_extra": extra, "n_predict": 4})
        prompt = asked(server)
        places = [
            prompt.index(part) for part in ("<|file_sep|>old.py", "<|file_sep|>new.py", "<|fim_prefix|>")
        ]
        assert places == sorted(places)

    def test_the_oldest_files_go_first(self, server: Running) -> None:
        extra = [{"text": sign * 300, "filename": f"{sign}.py"} for sign in "YZ"]
        post(server, "/infill", {**LLAMA_VIM, "input_extra": extra, "n_predict": 4})
        prompt = asked(server)
        assert prompt.count("Z") == 301 and prompt.count("Y") < 200

    def test_the_prompt_keeps_to_its_time(self) -> None:
        body = {**LLAMA_VIM, "input_prefix": "a = 1\n" * 60, "n_predict": 4}
        with serving(prefill_speed=200.0) as server:
            made = [
                post(server, "/infill", {**body, "t_max_prompt_ms": limit})["timings/prompt_n"]
                for limit in (0, 500, 750)
            ]
        assert 150 < made[0] <= 200  # the server's own second
        assert 70 < made[1] <= 100
        assert 110 < made[2] <= 150

    def test_a_warm_up_is_answered_at_once_with_nothing(self, server: Running) -> None:
        server.engine.open.clear()  # it does not even reach the engine
        try:
            assert post(server, "/infill", LLAMA_VIM_WARM_UP) == {}
        finally:
            server.engine.open.set()

    def test_a_warm_up_may_stream(self, server: Running) -> None:
        [only] = events(server, "/infill", {**LLAMA_VIM_WARM_UP, "response_fields": ["content", "stop"]})
        assert only == {"content": "", "stop": True}

    def test_llama_vscode_reads_an_array(self, said: Say) -> None:
        answers = post(said("a + b;"), "/infill", LLAMA_VSCODE)
        assert [answer["index"] for answer in answers] == [0, 1, 2]
        assert {answer["content"] for answer in answers} == {"a + b;"}
        assert [answer["timings"]["predicted_n"] for answer in answers] == [6, 6, 6]

    def test_llama_vscode_reads_one_object_for_one(self, said: Say) -> None:
        answer = post(said("a + b;"), "/infill", {**LLAMA_VSCODE, "n_cmpl": 1})
        assert answer["content"] == "a + b;"
        assert answer["stop"] is True
        assert answer["stop_type"] == "eos"
        assert answer["timings"]["prompt_n"] == answer["tokens_evaluated"] > 0

    def test_one_completion_is_greedy_and_several_differ(self, server: Running) -> None:
        post(server, "/infill", {**LLAMA_VSCODE, "n_cmpl": 1})
        assert server.engine.started[-1].sampling.temperature == 0
        post(server, "/infill", LLAMA_VSCODE)
        drawn = server.engine.started[-1].sampling
        assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.8, 40, 0.99)
        post(server, "/infill", {**LLAMA_VIM, "temperature": 0.3, "samplers": ["top_k", "temperature"]})
        drawn = server.engine.started[-1].sampling
        assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.3, 40, 1.0)

    def test_markers_in_the_users_code_stay_text(self, server: Running) -> None:
        body = {"input_prefix": "a = '<|fim_middle|>'\n", "input_suffix": "<|endoftext|>", "n_predict": 4}
        post(server, "/infill", body)
        prompt = server.engine.started[-1].prompt
        assert prompt.count(FIM["<|fim_middle|>"]) == 1
        assert END not in prompt

    def test_without_a_limit_it_may_take_half_of_the_context(self, server: Running) -> None:
        post(server, "/infill", {**LLAMA_VIM, "n_predict": -1})
        assert server.engine.started[-1].max_tokens == CAPABILITIES.max_context // 2
        post(server, "/completion", {"prompt": "abc", "n_predict": -1})
        assert server.engine.started[-1].max_tokens == CAPABILITIES.max_context - 3

    def test_is_an_editors(self, server: Running, tickets: list[Ticket]) -> None:
        post(server, "/infill", {**LLAMA_VIM, "prompt": "    re"})
        post(server, "/infill", LLAMA_VIM)
        post(server, "/infill", {**LLAMA_VIM, "input_prefix": "something else\n"})
        assert all(ticket.interactive for ticket in tickets)
        first, second, third = [ticket.editor for ticket in tickets]
        assert first is not None and second is not None and third is not None
        assert second.goes_on(first)
        assert not third.goes_on(second)

    def test_a_model_that_cannot_says_so(self) -> None:
        with serving(family="smollm2") as server:
            response = httpx.post(server.address + "/infill", json=LLAMA_VIM)
        assert response.status_code == 501
        error = response.json()["error"]
        assert (error["code"], error["type"]) == (501, "not_supported_error")
        assert "qwen2.5-coder" in error["message"]

    def test_streams_join_to_the_whole(self, said: Say) -> None:
        text = "größe + 漢字 🙂"
        server = said(text)
        whole = post(server, "/infill", {**LLAMA_VIM, "response_fields": None})
        *parts, last = events(server, "/infill", {**LLAMA_VIM, "response_fields": None})
        assert "".join(part["content"] for part in parts) == whole["content"] == text
        assert not any(part["stop"] for part in parts)
        assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "eos")
        assert last["tokens_predicted"] == whole["tokens_predicted"] == len(text.encode())


class TestTimeLimit:
    def test_ends_the_answer_after_the_first_line(self) -> None:
        engine = FakeEngine(lambda prompt: b"x = 1\ny = 2\n", seconds_per_step=0.005)
        body = {"prompt": "p", "n_predict": 400, "t_max_predict_ms": 1, "temperature": 0}
        with serving(engine) as server:
            answer = post(server, "/completion", body)
            until_idle(server)
        assert answer["stop_type"] == "limit"
        assert answer["content"].startswith("x = 1\n")
        assert 6 <= answer["tokens_predicted"] < 400

    def test_does_not_wait_for_an_engine_that_is_slow(self) -> None:
        engine = FakeEngine(lambda prompt: b"x\n" + bytes([97]) * 400)
        body = {"prompt": "p", "n_predict": 400, "t_max_predict_ms": 50, "temperature": 0}
        with (
            serving(engine) as server,
            httpx.Client(base_url=server.address, timeout=30) as client,
            client.stream("POST", "/completion", json={**body, "stream": True}) as response,
        ):
            lines = response.iter_lines()
            for line in lines:
                if line and json.loads(line.removeprefix("data: "))["content"] == "\n":
                    break
            engine.open.clear()  # from here on nothing more comes of it
            last = [json.loads(line.removeprefix("data: ")) for line in lines if line][-1]
            engine.open.set()
        assert (last["stop"], last["stop_type"]) == (True, "limit")

    def test_none_is_none(self, said: Say) -> None:
        body = {"prompt": "p", "n_predict": 50, "t_max_predict_ms": 0, "temperature": 0}
        assert post(said("a\n", then_end=False), "/completion", body)["tokens_predicted"] == 50


class TestCompletion:
    def test_continue_makes_its_own_prompt(self, said: Say, tickets: list[Ticket]) -> None:
        server = said("pass")
        *parts, last = events(server, "/completion", CONTINUE)
        assert "".join(part["content"] for part in parts) == "pass"
        assert last["stop"] is True
        assert server.engine.started[-1].prompt[0] == FIM["<|fim_prefix|>"]
        assert server.engine.started[-1].prompt[-1] == FIM["<|fim_middle|>"]
        assert tickets[0].interactive and tickets[0].editor

    def test_a_model_without_markers_reads_them_as_text(self) -> None:
        with serving(family="smollm2") as server:
            post(server, "/completion", {**CONTINUE, "stream": False})
            assert asked(server) == CONTINUE["prompt"]

    def test_a_plain_prompt_is_nobodys_editor(self, server: Running, tickets: list[Ticket]) -> None:
        post(server, "/completion", {"prompt": "abc", "n_predict": 3})
        assert (tickets[0].interactive, tickets[0].editor) == (False, None)

    def test_tabbys_server(self, said: Say) -> None:
        *parts, last = events(said("\n    pass"), "/completion", TABBY_SERVER)
        assert "".join(part["content"] for part in parts) == "\n    pas"
        assert all(set(part) >= {"content", "stop"} for part in [*parts, last])
        assert (last["stop"], last["stop_type"]) == (True, "limit")

    def test_what_ended_it(self, said: Say) -> None:
        ask = {"prompt": "p", "n_predict": 20}
        stopped = post(said("one two"), "/completion", {**ask, "stop": ["three", "two"]})
        assert (stopped["stop_type"], stopped["stopping_word"]) == ("word", "two")
        ended = post(said("one two"), "/completion", ask)
        assert (ended["stop_type"], ended["stopping_word"]) == ("eos", "")
        assert post(said("one two"), "/completion", {**ask, "n_predict": 3})["stop_type"] == "limit"

    def test_settings_are_those_in_effect(self, server: Running) -> None:
        settings = post(server, "/completion", {"prompt": "abc", "seed": -1})["generation_settings"]
        sampling = server.engine.started[-1].sampling
        assert settings == {
            "seed": 2**32 - 1, "temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": sampling.min_p,
            "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0, "n_ctx": 512,
            "n_predict": server.engine.started[-1].max_tokens, "stop": [], "stream": False,
        }  # fmt: skip
        filled = post(server, "/infill", {"input_prefix": "a", "stop": ["b"]})["generation_settings"]
        assert (filled["temperature"], filled["n_predict"], filled["stop"]) == (0.0, 128, ["b"])
        for path, temperature in (("/infill", 0.0), ("/completion", 0.8)):
            ahead = post(server, path, {"prompt": "a", "n_predict": 0})["generation_settings"]
            assert (ahead["temperature"], ahead["n_predict"]) == (temperature, 0)

    @pytest.mark.parametrize("order", ["prefix suffix middle", "suffix prefix middle"])
    def test_an_editor_that_names_no_temperature_gets_the_likeliest(
        self, server: Running, order: str
    ) -> None:
        marked = "".join(f"<|fim_{marker}|>{marker[:-3]}" for marker in order.split())
        for more, temperature in (({}, 0), ({"temperature": 0.5}, 0.5), ({"n": 2}, 0.8)):
            post(server, "/completion", {"prompt": marked, "n_predict": 1, **more})
            assert server.engine.started[-1].sampling.temperature == temperature

    def test_defaults_are_llama_cpps(self, server: Running) -> None:
        post(server, "/completion", {"prompt": "abc", "n_predict": 1})
        sampling = server.engine.started[-1].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.8, 40, 0.95)
        assert sampling.repetition_penalty == 1.0

    @pytest.mark.parametrize(("n_predict", "made"), [(-1, 509), (None, 509), (100_000, 509), (7, 7), (0, 0)])
    def test_the_context_ends_it(self, server: Running, n_predict: int | None, made: int) -> None:
        answer = post(server, "/completions", {"prompt": "abc", "n_predict": n_predict})
        assert (answer["tokens_predicted"], answer["truncated"]) == (made, False)

    def test_a_limit_of_our_own_where_none_is_named(self) -> None:
        with serving(settings=ApiSettings(chat_max_tokens=9)) as server:
            assert post(server, "/completion", {"prompt": "abc"})["tokens_predicted"] == 9
            assert post(server, "/completion", {"prompt": "abc", "n_predict": -1})["tokens_predicted"] == 509

    def test_prompts_of_all_kinds(self, server: Running) -> None:
        def contents(prompt: Any) -> Any:
            answer = post(server, "/completion", {"prompt": prompt, "n_predict": 3})
            return [each["content"] for each in answer] if isinstance(answer, list) else answer["content"]

        assert contents("ab") == contents([97, 98]) == contents({"prompt_string": "ab"}) == "aba"
        assert contents(["ab", "x"]) == contents([[97, 98], [120]]) == ["aba", "xxx"]

    def test_probabilities(self, said: Say) -> None:
        answer = post(said("é"), "/completion", {"prompt": "p", "n_predict": 2, "n_probs": 2})
        first, second = answer["completion_probabilities"]
        assert (first["id"], first["bytes"], first["logprob"]) == (0xC3, [0xC3], -0.25)
        assert [each["id"] for each in second["top_logprobs"]] == [0xA9, 0xAA]

    def test_ends_can_be_ignored(self, said: Say) -> None:
        answer = post(said("ab"), "/completion", {"prompt": "p", "n_predict": 5, "ignore_eos": True})
        assert (answer["content"], answer["tokens_predicted"]) == ("abab", 5)

    def test_what_has_no_effect_is_named(self, server: Running) -> None:
        body = {"prompt": "a", "n_predict": 1, "mirostat": 2, "typical_p": 0.5, "seed": 1, "min_p": 0.1}
        response = httpx.post(server.address + "/completion", json=body)
        assert set(response.headers["x-rrtf-dropped"].split(", ")) == {
            "mirostat",
            "typical_p",
            "seed",
            "min_p",
        }
        body = {"prompt": "a", "n_predict": 1, "mirostat": 0, "typical_p": 1.0, "seed": -1, "unknown": 1}
        assert "x-rrtf-dropped" not in httpx.post(server.address + "/completion", json=body).headers


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "body", "says"),
        [
            ("/infill", {"input_prefix": 1}, "input_prefix"),
            ("/infill", {"input_extra": [{"text": 1}]}, "input_extra[0].text"),
            ("/infill", {"n_cmpl": 0}, "n_cmpl"),
            ("/completion", {}, "prompt"),
            ("/completion", {"prompt": [999]}, "prompt"),
            ("/completion", {"prompt": ""}, "empty"),
            ("/completion", {"prompt": {"prompt_string": "a", "multimodal_data": ["x"]}}, "multimodal_data"),
            ("/completion", {"prompt": {}}, "prompt_string"),
            ("/completion", {"prompt": "a", "grammar": "root ::= x"}, "grammar"),
            ("/completion", {"prompt": "a", "json_schema": {"type": "object"}}, "json_schema"),
            ("/completion", {"prompt": "a", "n_probs": 21}, "n_probs"),
            ("/tokenize", {}, "content"),
            ("/tokenize", {"content": "a" * 1_000_001}, "content"),
            ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
            ("/apply-template", {"messages": []}, "messages"),
        ],
    )
    def test_a_refusal_names_the_field(self, server: Running, path: str, body: Any, says: str) -> None:
        response = httpx.post(server.address + path, json=body)
        assert response.status_code == 400, response.text
        assert set(response.json()) == {"error"}
        error = response.json()["error"]
        assert (error["code"], error["type"]) == (400, "invalid_request_error")
        assert says in error["message"]

    def test_unknown_things(self, server: Running) -> None:
        for method, path, status, kind in (
            ("POST", "/completion/nothing", 404, "not_found_error"),
            ("POST", "/props", 405, "invalid_request_error"),
            ("GET", "/infill", 405, "invalid_request_error"),
        ):
            response = httpx.request(method, server.address + path)
            assert response.status_code == status
            assert (response.json()["error"]["code"], response.json()["error"]["type"]) == (status, kind)

    def test_an_overflow_says_both_numbers(self, server: Running) -> None:
        response = httpx.post(server.address + "/completion", json={"prompt": "a" * 600})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["type"] == "exceed_context_size_error"
        assert (error["n_prompt_tokens"], error["n_ctx"]) == (600, 512)

    def test_too_much_for_infilling_is_cut_instead(self, server: Running) -> None:
        body = {"input_prefix": "a" * 900, "input_suffix": "b" * 900, "n_predict": 16}
        assert post(server, "/infill", body)["tokens_evaluated"] == 512 - 16

    def test_slots_are_not_shown(self, server: Running) -> None:
        response = httpx.get(server.address + "/slots")
        assert (response.status_code, response.json()["error"]["type"]) == (501, "not_supported_error")

    def test_a_failure_in_mid_stream_is_the_last_event(self) -> None:
        with serving(FakeEngine(fails_after=2)) as server:
            *parts, last = events(server, "/completion", {"prompt": "ab", "n_predict": 10})
        assert "".join(part["content"] for part in parts) == "ab"
        assert (last["error"]["code"], last["error"]["type"]) == (500, "server_error")

    def test_every_path_asks_for_the_key(self) -> None:
        digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of "foo"
        with serving(settings=ApiSettings(api_keys=frozenset({digest}))) as server:
            for method, path in (
                ("POST", "/infill"), ("POST", "/completion"), ("POST", "/completions"), ("GET", "/props"),
                ("GET", "/slots"), ("POST", "/tokenize"), ("POST", "/detokenize"),
                ("POST", "/apply-template"),
            ):  # fmt: skip
                response = httpx.request(method, server.address + path, json={})
                assert response.status_code == 401, path
                assert response.json()["error"]["type"] == "authentication_error"
            headers = {"authorization": "Bearer foo"}
            assert httpx.get(server.address + "/props", headers=headers).status_code == 200

    def test_one_model_answers_to_any_name(self, server: Running) -> None:
        for name in ("", "ggml-org/some-model", None, "tiny"):
            assert (
                post(server, "/completion", {"prompt": "a", "n_predict": 1, "model": name})["content"] == "a"
            )

    def test_a_page_elsewhere_cannot_post_without_asking(self, server: Running) -> None:
        response = httpx.post(server.address + "/infill", content=json.dumps(LLAMA_VIM))
        assert (response.status_code, response.json()["error"]["code"]) == (415, 415)


class TestModel:
    def test_props(self, server: Running) -> None:
        props = httpx.get(server.address + "/props").json()
        assert props["default_generation_settings"]["n_ctx"] == 512
        assert props["total_slots"] == 16
        assert props["model_path"] == "tiny-coder"
        assert props["chat_template"] == ""

    def test_health(self, server: Running) -> None:
        assert httpx.get(server.address + "/health").json()["status"] == "ok"

    def test_a_conversation_becomes_a_prompt(self, server: Running) -> None:
        body = {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]}
        assert post(server, "/apply-template", body) == {
            "prompt": "<|im_start|>system\nS<|im_end|>\n"
            "<|im_start|>user\nU<|im_end|>\n"
            "<|im_start|>assistant\n"
        }

    def test_specials_are_tokens_unless_told_otherwise(self, server: Running) -> None:
        content = "a<|im_end|>"
        assert post(server, "/tokenize", {"content": content}) == {"tokens": [97, FIM["<|im_end|>"]]}
        tokens = post(server, "/tokenize", {"content": content, "parse_special": False})["tokens"]
        assert tokens == list(content.encode())

    def test_pieces_are_text_or_bytes(self, server: Running) -> None:
        assert post(server, "/tokenize", {"content": "aé", "with_pieces": True, "add_special": True}) == {
            "tokens": [{"id": 97, "piece": "a"}, {"id": 0xC3, "piece": [0xC3]}, {"id": 0xA9, "piece": [0xA9]}]
        }

    def test_tokens_are_the_text_again(self, server: Running) -> None:
        with httpx.Client(base_url=server.address) as client:

            @settings(max_examples=50, deadline=None)
            @given(st.text(max_size=40))
            def check(content: str) -> None:
                tokens = client.post("/tokenize", json={"content": content}).json()["tokens"]
                assert client.post("/detokenize", json={"tokens": tokens}).json() == {"content": content}

            check()


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_row(stream: bool) -> None:
    engine = FakeEngine()
    engine.open.clear()
    with serving(engine) as server:
        with httpx.Client(base_url=server.address) as client, pytest.raises(httpx.ReadTimeout):
            body = {"prompt": "a", "n_predict": 500, "n_cmpl": 2, "stream": stream}
            with client.stream("POST", "/completion", json=body, timeout=0.5) as response:
                response.read()
        until_idle(server)
        assert len(engine.started) == 2


def until_idle(server: Running) -> None:
    deadline = time.monotonic() + 30
    while server.scheduler.rows_running:
        assert time.monotonic() < deadline, "the engine still works for a client that has gone"
        time.sleep(0.005)


def test_a_real_model_gives_the_same_streamed_or_not(tmp_path: Path) -> None:
    tokens = [*sorted(BYTE_ALPHABET, key=BYTE_ALPHABET.__getitem__), *SPECIALS]
    folder = write_llama(tmp_path / "model", tokens=tokens)
    engine: Any = Ct2Engine(folder, context_length=256, device="cpu", threads=1)
    body = {**LLAMA_VIM, "n_predict": 24, "t_max_predict_ms": 0, "response_fields": None}
    try:
        with serving(engine) as server:
            whole = post(server, "/infill", body)
            *parts, last = events(server, "/infill", body)
            several = post(server, "/infill", {**body, "n_cmpl": 2})
    finally:
        engine.close()
    assert "".join(part["content"] for part in parts) == whole["content"]
    assert last["stop_type"] == whole["stop_type"] != "none"
    assert len(several) == 2
    assert whole["timings"]["prompt_ms"] > 0
    assert not math.isnan(whole["timings"]["predicted_per_second"])


def test_fields_are_chosen_by_path() -> None:
    record = {"content": "x", "timings": {"prompt_n": 3, "deep": {"er": 1}}}
    assert chosen(record, ["timings/prompt_n", "timings/deep/er", "content/no", "none", ""]) == {
        "timings/prompt_n": 3,
        "timings/deep/er": 1,
    }
    assert chosen(record, []) == chosen(record, None) == record


def test_timings_are_arithmetic() -> None:
    times = Times(accepted=10.0, prompt_tokens=100, first=10.5, last=12.5, predicted_tokens=40)
    made = timings(times)
    assert (made["prompt_ms"], made["prompt_per_token_ms"], made["prompt_per_second"]) == (500.0, 5.0, 200.0)
    assert (made["predicted_ms"], made["predicted_per_token_ms"], made["predicted_per_second"]) == (
        2000.0, 50.0, 20.0,
    )  # fmt: skip
    assert timings(Times(1.0, 5))["prompt_per_second"] == 0.0  # nothing came


@pytest.mark.parametrize(
    ("path", "table"),
    [
        ("/infill", INFILL_FIELDS),
        ("/completion", COMPLETION_FIELDS),
        ("/tokenize", TOKENIZE_FIELDS),
        ("/detokenize", DETOKENIZE_FIELDS),
        ("/apply-template", TEMPLATE_FIELDS),
    ],
)
def test_no_body_makes_a_5xx(server: Running, path: str, table: Any) -> None:
    names = st.sampled_from([field.name for field in table])
    base = {"prompt": "a", "content": "a", "tokens": [97], "messages": [{"role": "user", "content": "a"}]}

    with httpx.Client(base_url=server.address, timeout=60) as client:

        @settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(names, JSON, max_size=5))
        def fuzz(fields: dict[str, Any]) -> None:
            body = {**base, "n_predict": 2, **fields}
            headers = {"content-type": "application/json"}
            response = client.post(path, content=json.dumps(body), headers=headers)
            assert response.status_code < 500, (body, response.text)
            if response.status_code >= 400:
                assert response.json()["error"]["code"] == response.status_code

        fuzz()
