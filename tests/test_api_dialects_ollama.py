"""Ollama's dialect: the requests that its clients send, word for word, and what they read of the answers."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fake_engine import SPECIALS, FakeEngine, byte_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from json_values import JSON
from live import Running, Say, serving

from rrtf_serve.api.app import ApiSettings, Served
from rrtf_serve.api.dialects import ollama_models
from rrtf_serve.api.dialects.ollama import RUNNING
from rrtf_serve.api.dialects.ollama_fields import CHAT_FIELDS, GENERATE_FIELDS, OPTION_FIELDS
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.engine.ticket import Ticket
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts

FIM = {name: 256 + index for index, name in enumerate(SPECIALS)}
END = FIM["<|endoftext|>"]
MODEL = "tiny-coder"

# Continue's provider ollama, as of 2026-06-18: it asks /api/show first.
CONTINUE_SHOW = {"name": "tiny-coder:latest"}
CONTINUE: dict[str, Any] = {
    "model": "tiny-coder:latest",
    "prompt": "def add(a, b):\n    return ",
    "suffix": "\n\nprint(add(1, 2))\n",
    "options": {
        "temperature": 0.01,
        "num_predict": 128,
        "stop": ["<|endoftext|>", "/src/", "#- coding: utf-8", "```"],
        "num_ctx": 4096,
    },
    "keep_alive": 1800,
    "stream": True,
}
# Zed's edit predictions write the markers themselves.
ZED: dict[str, Any] = {
    "model": "tiny-coder",
    "prompt": "<|fim_prefix|>def f():\n    <|fim_suffix|>\n<|fim_middle|>",
    "raw": True,
    "stream": False,
    "options": {
        "num_predict": 64,
        "temperature": 0.2,
        "stop": [
            "<|endoftext|>", "<|file_separator|>", "<|fim_pad|>", "<|fim_prefix|>", "<|fim_middle|>",
            "<|fim_suffix|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<PRE>", "<SUF>", "<MID>",
            "[PREFIX]", "[SUFFIX]",
        ],
    },
}  # fmt: skip
# llm-ls, as of 2026-04-07: its default requestBody stays in, and it doesn't say `raw`.
LLM_LS: dict[str, Any] = {
    "model": "tiny-coder",
    "prompt": "<|fim_prefix|>def f():\n    <|fim_suffix|>\n<|fim_middle|>",
    "stream": False,
    "parameters": {"max_new_tokens": 60, "temperature": 0.2, "top_p": 0.95},
}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def post(server: Running, path: str, body: Any) -> Any:
    response = httpx.post(server.address + path, json={"stream": False, **body}, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()


def lines(server: Running, path: str, body: Any) -> list[Any]:
    response = httpx.post(server.address + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    parts = response.text.split("\n")
    assert parts.pop() == ""
    return [json.loads(part) for part in parts]


def asked(server: Running) -> str:
    """The last prompt that reached the engine."""
    return server.served.tokenizer.decode(server.engine.started[-1].prompt, skip_specials=False)


class TestGenerate:
    def test_continue_fills_the_middle(self, said: Say) -> None:
        server = said("a + b")
        *parts, last = lines(server, "/api/generate", CONTINUE)
        assert "".join(part["response"] for part in parts) == "a + b"
        assert all(part["done"] is False for part in parts)
        assert (last["done"], last["done_reason"], last["response"]) == (True, "stop", "")
        assert (last["eval_count"], last["prompt_eval_count"]) == (5, len(server.engine.started[-1].prompt))
        assert asked(server) == (
            "<|fim_prefix|>def add(a, b):\n    return <|fim_suffix|>\n\nprint(add(1, 2))\n<|fim_middle|>"
        )
        assert {part["model"] for part in [*parts, last]} == {"tiny-coder:latest"}

    def test_zed_writes_its_own_markers(self, said: Say) -> None:
        server = said("pass")
        answer = post(server, "/api/generate", ZED)
        assert (answer["response"], answer["done_reason"]) == ("pass", "stop")
        assert server.engine.started[-1].prompt[-1] == FIM["<|fim_middle|>"]

    def test_llm_ls_does_so_without_raw(self, said: Say) -> None:
        server = said("pass")
        assert post(server, "/api/generate", LLM_LS)["response"] == "pass"
        assert asked(server) == LLM_LS["prompt"]
        starcoders = "<fim_prefix>def f():\n    <fim_suffix>\n<fim_middle>"  # its default, whatever the model
        assert post(server, "/api/generate", {**LLM_LS, "prompt": starcoders})["response"] == "pass"
        assert asked(server) == LLM_LS["prompt"]

    def test_files_of_a_repository_may_come_first(self, said: Say) -> None:
        prompt = f"<|repo_name|>r\n<|file_sep|>a.py\nx = 1\n<|file_sep|>b.py\n{LLM_LS['prompt']}"
        server = said("pass")
        assert post(server, "/api/generate", {**LLM_LS, "prompt": prompt})["response"] == "pass"
        assert asked(server) == prompt
        assert server.engine.started[-1].prompt[0] == FIM["<|repo_name|>"]

    def test_editors_are_told_from_others(self, server: Running, tickets: list[Ticket]) -> None:
        options = {"options": {"num_predict": 2}}
        for body in (CONTINUE, ZED, LLM_LS):
            post(server, "/api/generate", {**body, "stream": False, **options})
        assert all(ticket.interactive and ticket.editor for ticket in tickets)
        tickets.clear()
        post(server, "/api/generate", {"model": MODEL, "prompt": "a", **options})
        post(server, "/api/generate", {"model": MODEL, "prompt": "a", "raw": True, **options})
        assert [(ticket.interactive, ticket.editor) for ticket in tickets] == [(False, None)] * 2

    def test_a_prompt_is_a_message_unless_raw(self, server: Running) -> None:
        body = {"model": MODEL, "prompt": "U", "options": {"num_predict": 1}}
        post(server, "/api/generate", body)
        assert asked(server) == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
        post(server, "/api/generate", {**body, "system": "S", "template": "ignored"})
        assert asked(server).startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU")
        post(server, "/api/generate", {**body, "raw": True})
        assert asked(server) == "U"

    def test_a_base_models_prompt_is_a_text_to_go_on_with(self) -> None:
        with serving(family="plain") as server:
            post(server, "/api/generate", {"model": MODEL, "prompt": "U", "options": {"num_predict": 1}})
            assert asked(server) == "U"

    def test_streaming_is_the_default_and_joins_to_the_whole(self, said: Say) -> None:
        text = "größe\u2028 + 漢字 🙂"
        body = {"model": MODEL, "prompt": "U"}
        *parts, last = lines(said(text), "/api/generate", body)
        assert "".join(part["response"] for part in parts) == text
        assert len(parts) > 1
        assert post(said(text), "/api/generate", body)["response"] == text
        assert last["done_reason"] == "stop"

    def test_times_are_nanoseconds_that_add_up(self, server: Running) -> None:
        before = time.monotonic_ns()
        answer = post(server, "/api/generate", {"model": MODEL, "prompt": "U", "options": {"num_predict": 9}})
        assert answer["eval_count"] == 9 and answer["done_reason"] == "length"
        parts = [answer[name] for name in ("prompt_eval_duration", "eval_duration", "load_duration")]
        assert all(isinstance(part, int) and part >= 0 for part in parts)
        assert 0 < answer["prompt_eval_duration"] + answer["eval_duration"] <= answer["total_duration"]
        assert answer["total_duration"] < time.monotonic_ns() - before
        made = datetime.strptime(answer["created_at"], "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
        assert abs((datetime.now(UTC) - made).total_seconds()) < 600

    @pytest.mark.parametrize(("num_predict", "made"), [(-1, 511), (-2, 511), (100_000, 511), (7, 7), (0, 0)])
    def test_the_context_ends_it(self, server: Running, num_predict: int, made: int) -> None:
        body = {"model": MODEL, "prompt": "a", "raw": True, "options": {"num_predict": num_predict}}
        answer = post(server, "/api/generate", body)
        assert (answer["eval_count"], answer["done_reason"]) == (made, "length")

    def test_options_reach_the_engine(self, server: Running) -> None:
        body: dict[str, Any] = {"model": MODEL, "prompt": "a", "options": {"num_predict": 1}}
        post(server, "/api/generate", body)
        drawn = server.engine.started[-1].sampling
        assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.8, 40, 0.9)
        assert drawn.repetition_penalty == 1.0
        body["options"] = {
            "temperature": 0.5,
            "top_k": 3,
            "top_p": 0.7,
            "repeat_penalty": 1.2,
            "num_predict": 1,
        }
        post(server, "/api/generate", body)
        drawn = server.engine.started[-1].sampling
        assert (drawn.temperature, drawn.top_k, drawn.top_p) == (0.5, 3, 0.7)
        assert drawn.repetition_penalty == 1.2
        post(server, "/api/generate", {**body, "suffix": "b", "options": {"num_predict": 1}})
        assert server.engine.started[-1].sampling.temperature == 0

    @pytest.mark.parametrize("order", ["prefix suffix middle", "suffix prefix middle"])
    def test_an_editor_that_names_no_temperature_gets_the_likeliest(
        self, server: Running, order: str
    ) -> None:
        marked = "".join(f"<|fim_{marker}|>{marker[:-3]}" for marker in order.split())
        for raw in (False, True):
            for options, temperature in (({}, 0), ({"temperature": 0.5}, 0.5)):
                body = {
                    "model": MODEL,
                    "prompt": marked,
                    "raw": raw,
                    "options": {**options, "num_predict": 1},
                }
                post(server, "/api/generate", body)
                assert server.engine.started[-1].sampling.temperature == temperature

    def test_every_option_of_the_documentation_is_taken(self, server: Running) -> None:
        options = {
            "num_keep": 5, "seed": 42, "num_predict": 2, "draft_num_predict": 4, "top_k": 20, "top_p": 0.9,
            "min_p": 0.0, "typical_p": 0.7, "repeat_last_n": 33, "temperature": 0.8, "repeat_penalty": 1.2,
            "presence_penalty": 1.5, "frequency_penalty": 1.0, "penalize_newline": True,
            "stop": ["\n", "user:"], "numa": False, "num_ctx": 1024, "num_batch": 2, "num_gpu": 1,
            "main_gpu": 0, "use_mmap": True, "num_thread": 8,
        }  # fmt: skip
        body = {"model": MODEL, "prompt": "a", "stream": False, "options": options, "context": [1, 2]}
        response = httpx.post(server.address + "/api/generate", json=body)
        assert response.status_code == 200, response.text
        assert response.headers["x-rrtf-dropped"] == (
            "context, options.seed, options.presence_penalty, options.frequency_penalty, options.typical_p"
        )

    def test_stops_end_it(self, said: Say) -> None:
        body = {"model": MODEL, "prompt": "a", "options": {"stop": ["two"]}}
        answer = post(said("one two"), "/api/generate", body)
        assert (answer["response"], answer["done_reason"]) == ("one ", "stop")

    @pytest.mark.parametrize(("keep_alive", "reason"), [(None, "load"), ("5m", "load"), (0, "unload")])
    def test_without_a_prompt_nothing_is_made(self, server: Running, keep_alive: Any, reason: str) -> None:
        response = httpx.post(
            server.address + "/api/generate", json={"model": "tiny", "keep_alive": keep_alive}
        )
        answer = response.json()
        assert (answer["done"], answer["done_reason"], answer["response"]) == (True, reason, "")


class TestChat:
    BODY: dict[str, Any] = {  # noqa: RUF012  # read only
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "U"},
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "V"},
        ],
    }

    def test_lines(self, said: Say) -> None:
        server = said("ja, 漢")
        *parts, last = lines(server, "/api/chat", self.BODY)
        assert "".join(part["message"]["content"] for part in parts) == "ja, 漢"
        assert {part["message"]["role"] for part in [*parts, last]} == {"assistant"}
        assert (last["done"], last["done_reason"], last["message"]["content"]) == (True, "stop", "")
        assert asked(server).endswith("<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n")

    def test_whole(self, said: Say) -> None:
        answer = post(said("ja"), "/api/chat", self.BODY)
        assert answer["message"] == {"role": "assistant", "content": "ja"}
        assert answer["eval_count"] == 2

    def test_without_messages_nothing_is_made(self, server: Running) -> None:
        answer = httpx.post(server.address + "/api/chat", json={"model": MODEL, "messages": []}).json()
        assert (answer["done"], answer["done_reason"]) == (True, "load")

    def test_a_chat_ends_somewhere(self) -> None:
        with serving(settings=ApiSettings(chat_max_tokens=9)) as server:
            assert post(server, "/api/chat", self.BODY)["eval_count"] == 9


class TestErrors:
    @pytest.mark.parametrize(
        ("path", "body", "status", "says"),
        [
            ("generate", {}, 400, "model"),
            ("generate", {"model": "gpt-9", "prompt": "a"}, 404, "model 'gpt-9' not found"),
            ("generate", {"model": 1, "prompt": "a"}, 400, "model"),
            ("generate", {"model": MODEL, "prompt": "a", "format": "json"}, 400, "format"),
            ("generate", {"model": MODEL, "prompt": "a", "format": {"type": "object"}}, 400, "format"),
            ("generate", {"model": MODEL, "prompt": "a", "images": ["eA=="]}, 400, "images"),
            ("generate", {"model": MODEL, "prompt": "a", "think": True}, 400, "thinking"),
            ("generate", {"model": MODEL, "prompt": "a", "options": []}, 400, "options"),
            ("generate", {"model": MODEL, "prompt": "a", "options": {"top_p": 2}}, 400, "top_p"),
            ("generate", {"model": MODEL, "prompt": "a" * 600}, 400, "512 tokens"),
            ("chat", {"model": MODEL, "messages": [{"role": "user"}]}, 400, "messages[0].content"),
            ("chat", {"model": MODEL, "messages": [{"role": "user", "content": "a", "images": ["eA=="]}]},
             400, "messages[0].images"),
            ("chat", {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "tools": [{}]},
             400, "tools"),
            ("show", {}, 400, "model"),
            ("show", {"model": "gpt-9"}, 404, "not found"),
            ("pull", {"model": "llama3.2"}, 501, "rrtf-serve --model"),
            ("create", {"model": "mine", "from": "llama3.2"}, 501, "rrtf-serve --model"),
            ("copy", {"source": "a", "destination": "b"}, 501, "rrtf-serve --model"),
            ("push", {"model": "a"}, 501, "rrtf-serve --model"),
            ("embed", {"model": MODEL, "input": "a"}, 501, "embeds"),
            ("embeddings", {"model": MODEL, "prompt": "a"}, 501, "embeds"),
            ("nothing", {}, 404, "/api/nothing"),
        ],
    )  # fmt: skip
    def test_an_error_is_a_text(self, server: Running, path: str, body: Any, status: int, says: str) -> None:
        response = httpx.post(f"{server.address}/api/{path}", json=body)
        assert response.status_code == status, response.text
        assert set(response.json()) == {"error"}
        assert says in response.json()["error"]

    def test_deleting_is_refused(self, server: Running) -> None:
        response = httpx.request("DELETE", server.address + "/api/delete", json={"model": MODEL})
        assert (response.status_code, list(response.json())) == (501, ["error"])

    def test_a_model_that_cannot_insert_says_so(self) -> None:
        with serving(family="smollm2") as server:
            response = httpx.post(server.address + "/api/generate", json={**CONTINUE, "model": MODEL})
            shown = httpx.post(server.address + "/api/show", json={"name": MODEL}).json()
        assert response.status_code == 400
        assert "does not support insert" in response.json()["error"]
        assert ".Suffix" not in shown["template"]
        assert shown["capabilities"] == ["completion"]

    def test_a_failure_in_mid_stream_is_the_last_line(self) -> None:
        with serving(FakeEngine(fails_after=2)) as server:
            body = {"model": MODEL, "prompt": "ab", "raw": True}
            *parts, last = lines(server, "/api/generate", body)
        assert "".join(part["response"] for part in parts) == "ab"
        assert list(last) == ["error"] and isinstance(last["error"], str)

    def test_every_path_asks_for_the_key(self) -> None:
        digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"  # of "foo"
        with serving(settings=ApiSettings(api_keys=frozenset({digest}))) as server:
            for method, path in (
                ("POST", "generate"), ("POST", "chat"), ("POST", "show"), ("GET", "tags"), ("GET", "ps"),
                ("GET", "version"), ("POST", "pull"),
            ):  # fmt: skip
                response = httpx.request(method, f"{server.address}/api/{path}", json={})
                assert response.status_code == 401, path
                assert isinstance(response.json()["error"], str)
            headers = {"authorization": "Bearer foo"}
            assert httpx.get(server.address + "/api/tags", headers=headers).status_code == 200


class TestContentType:
    BODY = json.dumps({"model": MODEL, "prompt": "a", "stream": False, "options": {"num_predict": 1}})

    @pytest.mark.parametrize("kind", [None, "text/plain;charset=UTF-8", "application/x-www-form-urlencoded"])
    def test_programs_may_leave_it_out(self, server: Running, kind: str | None) -> None:
        headers = {"content-type": kind} if kind else {}
        response = httpx.post(server.address + "/api/generate", content=self.BODY, headers=headers)
        assert response.status_code == 200, response.text
        assert "content-type" in response.request.headers or kind is None

    @pytest.mark.parametrize("mark", [{"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}])
    @pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
    def test_web_pages_may_not(self, server: Running, kind: str, mark: dict[str, str]) -> None:
        headers = {"content-type": kind, **mark} if kind else mark
        response = httpx.post(server.address + "/api/generate", content=self.BODY, headers=headers)
        assert response.status_code in (403, 415)
        assert isinstance(response.json()["error"], str)

    def test_other_types_are_refused(self, server: Running) -> None:
        headers = {"content-type": "application/xml"}
        response = httpx.post(server.address + "/api/generate", content=self.BODY, headers=headers)
        assert response.status_code == 415


class TestListing:
    def test_tags(self, server: Running) -> None:
        [model] = httpx.get(server.address + "/api/tags").json()["models"]
        assert model["name"] == model["model"] == "tiny-coder:latest"
        assert re.fullmatch("[0-9a-f]{64}", model["digest"])
        assert datetime.strptime(model["modified_at"], "%Y-%m-%dT%H:%M:%S.%fZ").year == 2023
        assert model["details"]["family"] == "qwen2"

    def test_what_is_listed_can_be_asked_for(self, server: Running) -> None:
        [model] = httpx.get(server.address + "/api/tags").json()["models"]
        body = {"model": model["name"], "prompt": "a", "options": {"num_predict": 1}}
        assert post(server, "/api/generate", body)["model"] == model["name"]

    def test_ps(self, server: Running) -> None:
        [model] = httpx.get(server.address + "/api/ps").json()["models"]
        assert (model["name"], model["context_length"]) == ("tiny-coder:latest", 512)
        assert datetime.strptime(model["expires_at"], "%Y-%m-%dT%H:%M:%S.%fZ").year > 2100

    def test_continue_finds_the_suffix_and_the_context(self, server: Running) -> None:
        shown = httpx.post(server.address + "/api/show", json=CONTINUE_SHOW).json()
        assert ".Suffix" in shown["template"]
        assert "<|fim_prefix|>{{ .Prompt }}<|fim_suffix|>{{ .Suffix }}<|fim_middle|>" in shown["template"]
        parameters = dict(line.split(maxsplit=1) for line in shown["parameters"].split("\n"))
        assert parameters["num_ctx"] == "512"
        assert shown["capabilities"] == ["completion", "insert"]
        architecture = shown["model_info"]["general.architecture"]
        assert shown["model_info"][f"{architecture}.context_length"] == 512

    def test_version(self, server: Running) -> None:
        version = httpx.get(server.address + "/api/version").json()["version"]
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)

    def test_the_root_says_it_runs_to_those_who_ask(self, server: Running) -> None:
        head = httpx.head(server.address + "/")
        assert (head.status_code, head.text) == (200, "")
        client = httpx.get(server.address + "/", headers={"user-agent": "ollama-python/0.6.3"})
        assert (client.status_code, client.text) == (200, RUNNING)
        browser = httpx.get(
            server.address + "/", headers={"user-agent": "Mozilla/5.0", "accept": "text/html"}
        )
        assert browser.status_code != 200  # the page is not the API's


NAMES = {
    "qwen2.5-coder-0.5b-instruct": ("default", "qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b", "qwen2.5-coder"),
    "starcoder2-3b": ("starcoder2:3b", "bigcode/starcoder2-3b"),
    "My-Coder-7B-Instruct-v1": (),
    "my-writer-7b": (),
    "my-writer-13b": (),
}


@pytest.fixture(scope="module")
def models() -> Iterator[list[Served]]:
    tokenizer = byte_tokenizer()
    with serving() as running:
        scheduler: Scheduler = running.scheduler
        yield [
            Served(
                name,
                aliases,
                Card(name, "qwen2", "plain", 512, "int8", end_tokens=["<|endoftext|>"]),
                tokenizer,
                Prompts(
                    tokenizer, FAMILIES["plain"], chat_template="", add_bos=False, bos_token="", end_tokens=[]
                ),
                0,
                512,
                scheduler=scheduler,
            )
            for name, aliases in NAMES.items()
        ]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("qwen2.5-coder-0.5b-instruct", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder:0.5b", "qwen2.5-coder-0.5b-instruct"),
        ("Qwen2.5-Coder:0.5B", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder:latest", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder:0.5b-instruct", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder:0.5b-instruct-q4_K_M", "qwen2.5-coder-0.5b-instruct"),
        ("library/qwen2.5-coder:0.5b-instruct-fp16", "qwen2.5-coder-0.5b-instruct"),
        ("qwen2.5-coder:0.5b-base", None),
        ("qwen2.5-coder:7b", None),
        ("starcoder2", "starcoder2-3b"),
        ("starcoder2:3b", "starcoder2-3b"),
        ("starcoder2:3b-q8_0", "starcoder2-3b"),
        ("bigcode/starcoder2-3b:latest", "starcoder2-3b"),
        ("hf.co/bigcode/starcoder2-3b", "starcoder2-3b"),
        ("starcoder", None),
        ("starcoder2:15b", None),
        ("my-coder:7b", "My-Coder-7B-Instruct-v1"),
        ("my-coder", "My-Coder-7B-Instruct-v1"),
        ("my-writer:13b", "my-writer-13b"),
        ("my-writer", None),  # which?
        ("my", None),
        ("", None),
        (":latest", None),
        ("/", None),
    ],
)
def test_tags_name_models(models: list[Served], asked: str, found: str | None) -> None:
    served = ollama_models.resolve(models, asked)
    assert (served.name if served else None) == found


def test_listed_names_have_a_tag_that_editors_know(models: list[Served]) -> None:
    names = [ollama_models.listed_name(served) for served in models]
    assert names[:3] == ["qwen2.5-coder:0.5b", "starcoder2:3b", "My-Coder-7B-Instruct-v1:latest"]
    for served, name in zip(models, names, strict=True):
        assert ollama_models.resolve(models, name) is served


def test_sizes_and_ends_are_shown(models: list[Served]) -> None:
    shown = ollama_models.show_record(models[0])
    assert shown["details"]["parameter_size"] == "494.03M"
    assert ollama_models.details(models[1])["parameter_size"] == "3.0B"
    assert shown["model_info"]["general.parameter_count"] == 494_032_768
    assert shown["parameters"] == 'num_ctx 512\nstop "<|endoftext|>"'


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_frees_its_row(stream: bool) -> None:
    engine = FakeEngine()
    engine.open.clear()
    with serving(engine) as server:
        with httpx.Client(base_url=server.address) as client, pytest.raises(httpx.ReadTimeout):
            body = {"model": MODEL, "prompt": "a", "stream": stream}
            with client.stream("POST", "/api/generate", json=body, timeout=0.5) as response:
                response.read()
        deadline = time.monotonic() + 30
        while server.scheduler.rows_running:
            assert time.monotonic() < deadline, "the engine still works for a client that has gone"
            time.sleep(0.005)
        assert len(engine.started) == 1


@pytest.mark.parametrize(("path", "table"), [("/api/generate", GENERATE_FIELDS), ("/api/chat", CHAT_FIELDS)])
def test_no_body_makes_a_5xx(server: Running, path: str, table: Any) -> None:
    names = st.sampled_from([field.name for field in table if field.name != "options"])
    options = st.dictionaries(st.sampled_from([field.name for field in OPTION_FIELDS]), JSON, max_size=4)
    message = {"role": "user", "content": "a"}

    with httpx.Client(base_url=server.address, timeout=60) as client:

        @settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.dictionaries(names, JSON, max_size=5), options)
        def fuzz(fields: dict[str, Any], options: dict[str, Any]) -> None:
            base = {"model": MODEL, "prompt": "a", "messages": [message]}
            body = {**base, "options": {"num_predict": 2, **options}, **fields}
            response = client.post(path, content=json.dumps(body))
            assert response.status_code < 500, (body, response.text)
            if response.status_code >= 400:
                assert isinstance(response.json()["error"], str)

        fuzz()
