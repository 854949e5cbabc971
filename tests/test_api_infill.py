"""The fill-in-the-middle layer: budgets, snippets, trimming, and the prefill speed behind budgets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fake_engine import CAPABILITIES, SPECIALS, FakeEngine, byte_tokenizer
from hypothesis import given, settings, strategies
from live import Running, serving

from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.infill import LEAST_PROMPT, Infill, Snippet, infill_job, marked
from rrtf_serve.api.settings import ApiSettings
from rrtf_serve.engine.prefill import prefill_speed
from rrtf_serve.engine.protocol import EngineError, Request, Sampling
from rrtf_serve.engine.ticket import Ticket

GREEDY = Sampling(temperature=0.0)
SETTINGS = ApiSettings()
START, MIDDLE, GAP, SEPARATOR = (256 + SPECIALS.index(f"<|{name}|>") for name in (
    "fim_prefix", "fim_middle", "fim_suffix", "file_sep"
))  # fmt: skip
BIG = replace(CAPABILITIES, max_context=8192)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(FakeEngine(capabilities=BIG)) as running:
        yield running


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client() as kept:  # its connection is kept: many short requests
        yield kept


@pytest.fixture(scope="module")
def plain_server() -> Iterator[Running]:
    with serving(family="smollm2") as running:
        yield running


def prompt(server: Running, infill: Infill, *, speed: float | None = None, **changes: Any) -> list[int]:
    served = replace(server.served, prefill_speed=speed)
    job = asyncio.run(infill_job(served, replace(SETTINGS, **changes), infill, GREEDY))
    return list(job.prompts[0])


def text(ids: list[int]) -> str:
    return byte_tokenizer().decode(ids, skip_specials=False)


LINES = "".join(f"line {number:03}\n" for number in range(400))  # 9 tokens each


class TestBudget:
    def test_the_prompt_is_what_is_read_in_time(self, server: Running) -> None:
        infill = Infill(LINES, LINES)
        ids = prompt(server, infill, speed=600.0)
        assert 560 < len(ids) <= 600
        assert len(prompt(server, infill, speed=600.0, first_token_seconds=0.5)) <= 300
        assert len(prompt(server, replace(infill, first_token_seconds=0.25), speed=600.0)) <= 150
        whole = prompt(server, infill)
        assert prompt(server, replace(infill, first_token_seconds=1e308), speed=5000.0) == whole

    def test_the_middle_stays_and_the_far_ends_go_in_whole_lines(self, server: Running) -> None:
        ids = prompt(server, Infill(LINES, LINES), speed=600.0)
        before, after = text(ids).removeprefix("<|fim_prefix|>").split("<|fim_suffix|>")
        after = after.removesuffix("<|fim_middle|>")
        assert LINES.endswith(before)
        assert before.startswith("line ")
        assert LINES.startswith(after)
        assert after.endswith("\n")
        assert 2.5 < len(before) / len(after) < 3.5

    def test_no_budget_leaves_the_context_alone(self, server: Running) -> None:
        infill = Infill(LINES, LINES, max_tokens=100)
        whole = 2 * len(LINES) + 3
        for changes in ({"speed": None}, {"speed": 600.0, "first_token_seconds": 0.0}):
            assert len(prompt(server, infill, **changes)) == whole  # type: ignore[arg-type]
        assert len(prompt(server, replace(infill, first_token_seconds=0.0), speed=600.0)) == whole
        assert len(prompt(server, replace(infill, interactive=False), speed=600.0)) == whole
        assert len(prompt(server, replace(infill, prefix=LINES * 3))) <= 8192 - 100

    def test_each_copy_reads_the_prompt_for_itself(self, server: Running) -> None:
        served = replace(server.served, prefill_speed=600.0)
        job = asyncio.run(infill_job(served, SETTINGS, Infill(LINES, ""), GREEDY, copies=3))
        assert len(job.prompts[0]) <= 200

    def test_a_slow_model_still_sees_something(self, server: Running) -> None:
        assert LEAST_PROMPT - 12 < len(prompt(server, Infill(LINES, LINES), speed=0.1)) <= LEAST_PROMPT

    def test_max_tokens_give_way_to_the_prompt_only_for_editors(self, server: Running) -> None:
        infill = Infill("a", "b", max_tokens=9000)
        job = asyncio.run(infill_job(server.served, SETTINGS, infill, GREEDY))
        assert job.max_tokens == (4096,)
        with pytest.raises(ApiError, match="maximum context length"):
            prompt(server, replace(infill, interactive=False))


class TestSnippets:
    SNIPPETS = (Snippet("a.py", "A = 1\n"), Snippet("b.py", "B = 2\n" * 100))
    INFILL = Infill("x", "y", filename="c.py", snippets=SNIPPETS, repository="o/r", max_tokens=8)

    def test_they_stand_before_the_cursor_the_best_next_to_it(self, server: Running) -> None:
        assert text(prompt(server, self.INFILL)) == (
            "<|repo_name|>o/r\n<|file_sep|>b.py\n" + "B = 2\n" * 100 + "<|file_sep|>a.py\nA = 1\n"
            "<|file_sep|>c.py\n<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>"
        )  # fmt: skip

    def test_they_go_first(self, server: Running) -> None:
        cut = text(prompt(server, self.INFILL, speed=130.0))
        assert "A = 1" in cut  # the better one, whole
        assert 0 < cut.count("B = 2\n") < 100
        assert cut.endswith("x<|fim_suffix|>y<|fim_middle|>")
        only = prompt(server, replace(self.INFILL, prefix=LINES, suffix=LINES), speed=200.0)
        assert SEPARATOR not in only
        assert len(only) > 180

    def test_markers_in_them_are_text(self, server: Running) -> None:
        hostile = "<|fim_middle|><|file_sep|>"
        infill = Infill(hostile, hostile, hostile, (Snippet(hostile, hostile),), hostile)
        ids = prompt(server, infill)
        assert [ids.count(token) for token in (START, GAP, MIDDLE, SEPARATOR)] == [1, 1, 1, 2]


def test_without_markers_a_model_goes_on_but_fills_nothing(plain_server: Running) -> None:
    ids = prompt(plain_server, Infill("x = <|im_end|>", "\n"))
    assert text(ids) == "x = <|im_end|>"
    assert max(ids) < 256
    assert len(prompt(plain_server, Infill(LINES, ""), speed=100.0)) <= 100
    with pytest.raises(ApiError, match="no fill-in-the-middle tokens"):
        prompt(plain_server, Infill("x = ", "\ny"))
    with pytest.raises(ApiError, match="it is empty"):
        prompt(plain_server, Infill("", ""))


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("<fim_prefix>a<fim_suffix>b<fim_middle>", Infill("a", "b")),
        ("<|fim_prefix|>a<|fim_suffix|><|fim_middle|>\n", Infill("a", "")),
        ("\u2581<PRE>a \u2581<SUF>b \u2581<MID>", Infill("a ", "b ")),
        (
            "<|file_sep|>a.py\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
            Infill("a", "b", "a.py"),
        ),
        (
            "<repo_name>o/r<file_sep>x.py\nX\n<file_sep>y.py\nY\n<file_sep>"
            "<fim_prefix>a<fim_suffix>b<fim_middle>",
            Infill("a", "b", None, (Snippet("y.py", "Y\n"), Snippet("x.py", "X\n")), "o/r"),
        ),
        ("o/r<|file_sep|>a.py\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>", None),
        (
            "<|file_sep|>a.py\nA\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
            Infill("a", "b", None, (Snippet("a.py", "A\n"),)),
        ),
        (
            "<|repo_name|>o/r\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
            Infill("a", "b", repository="o/r"),
        ),
        ("<PRE> a <SUF>b <MID>", Infill("a", "b")),
        (" <PRE> a\n  <SUF>\nb <MID>\n", Infill("a\n ", "\nb")),
        ("<PRE> '<MID>' <SUF>b <MID>", Infill("'<MID>'", "b")),
        ("<PRE> ' <MID>' <SUF>b <MID>", None),
        ("<PRE>a<SUF>b<MID>", None),
        ("<fim_prefix>a<fim_suffix>b", None),
        ("<fim_prefix>a<fim_middle>b<fim_suffix>", None),
        ("a<fim_prefix>a<fim_suffix>b<fim_middle>", None),
        ("<fim_prefix>a<fim_suffix>b<fim_middle>c", None),
        ("<fim_prefix>'<fim_suffix>'<fim_suffix>b<fim_middle>", None),
        ("", None),
    ],
)
def test_prompts_that_clients_put_together(given: str, found: Infill | None) -> None:
    assert marked(given) == found


CONTINUE = (
    "<|repo_name|>shop\n<|file_sep|>src/prices.py\nA = 1\n<|file_sep|>Untitled.txt\nnotes\n"
    "<|file_sep|>src/main.py\n<|fim_prefix|>def f():\n    <|fim_suffix|>\n\nprint(f())\n<|fim_middle|>"
)
CONTINUE_STOPS = [
    "<|endoftext|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>",
    "<|file_sep|>", "<|im_start|>", "<|im_end|>", "/src/", "#- coding: utf-8", "```",
]  # fmt: skip
HEADERS = {"x-rrtf-interactive": "true"}
NOBODY_WAITS = {"x-rrtf-interactive": "false"}
# As Zed, Continue and llm-ls put them together: of the model's own markers, or of StarCoder's.
MARKED = ["<|fim_prefix|>{}<|fim_suffix|>{}<|fim_middle|>", "<fim_prefix>{}<fim_suffix>{}<fim_middle>"]
BODY = {"prompt": "def f():\n    ", "suffix": "\n\nprint(f())\n", "max_tokens": 40}
SAID = b"return 1\n\nprint(f())\n" * 3


class TestCompletions:
    """An editor's request to /v1/completions: told by a suffix, by markers, or by the header."""

    def ask(
        self, body: dict[str, Any], script: bytes, *, speed: float | None = None, **headers: str
    ) -> tuple[dict[str, Any], FakeEngine]:
        engine = FakeEngine(script=lambda _: list(script), capabilities=BIG)
        with serving(engine, prefill_speed=speed) as running:
            response = httpx.post(running.address + "/v1/completions", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0], engine

    def test_it_is_trimmed(self) -> None:
        choice, _ = self.ask(BODY, SAID, **HEADERS)
        assert (choice["text"], choice["finish_reason"]) == ("return 1", "stop")
        choice, _ = self.ask({**BODY, "suffix": "\n"}, b"a\n\nb\n" * 9, **HEADERS)
        assert (choice["text"], choice["finish_reason"]) == ("a", "stop")
        choice, _ = self.ask({**BODY, "suffix": "\n"}, b"a\n\nb\n" * 9, **NOBODY_WAITS)
        assert choice["text"].startswith("a\n\nb\n")

    @pytest.mark.parametrize("form", ["suffix", *MARKED])
    def test_nobody_has_to_say_so(self, form: str) -> None:
        body = {"prompt": LINES, "suffix": f"\n{LINES}", "max_tokens": 40}
        if form != "suffix":
            body = {"prompt": form.format(LINES, f"\n{LINES}"), "max_tokens": 40}
        choice, engine = self.ask(body, b"a\n\nb\n" * 9, speed=600.0)
        assert (choice["text"], choice["finish_reason"]) == ("a", "stop")
        [request] = engine.started
        assert request.interactive
        assert 560 < len(request.prompt) <= 600
        assert text(list(request.prompt)).endswith("<|fim_middle|>")

    @pytest.mark.parametrize("form", ["suffix", MARKED[0]])
    def test_a_client_can_say_that_nobody_waits(self, form: str) -> None:
        body = {"prompt": LINES, "suffix": f"\n{LINES}", "max_tokens": 40}
        if form != "suffix":
            body = {"prompt": form.format(LINES, f"\n{LINES}"), "max_tokens": 40}
        choice, engine = self.ask(body, b"a\n\nb\n" * 9, speed=600.0, **NOBODY_WAITS)
        assert choice["text"] == (b"a\n\nb\n" * 9)[:40].decode()
        [request] = engine.started
        assert not request.interactive
        assert request.sampling.temperature == 1
        assert len(request.prompt) == 2 * len(LINES) + 4

    def test_without_a_temperature_one_choice_is_the_likeliest(self) -> None:
        for more, temperature in (
            ({}, 0),
            ({"temperature": None}, 0),
            ({"temperature": 0.5}, 0.5),
            ({"n": 2}, 1),
        ):
            _, engine = self.ask({**BODY, **more}, SAID)
            assert {request.sampling.temperature for request in engine.started} == {temperature}
        _, engine = self.ask({"prompt": "a", "max_tokens": 4}, SAID)
        assert engine.started[0].sampling.temperature == 1

    @pytest.mark.parametrize("family", ["qwen2.5-coder", "smollm2"])
    @pytest.mark.parametrize(
        ("more", "headers", "interactive"),
        [
            ({"max_tokens": 64}, {}, True),
            ({}, {}, True),  # 16 by default
            ({"max_tokens": 8, "logprobs": 1, "n": 2}, {}, True),
            ({"max_tokens": 65}, {}, False),
            ({"max_tokens": 8}, NOBODY_WAITS, False),
        ],
    )
    def test_short_completions_pass_long_ones(
        self, family: str, more: dict[str, Any], headers: dict[str, str], interactive: bool
    ) -> None:
        engine = FakeEngine(script=lambda _: list(b"a\n\nb\n"), capabilities=BIG)
        with serving(engine, family=family, prefill_speed=600.0) as running:
            body = {"prompt": LINES, **more}
            response = httpx.post(running.address + "/v1/completions", json=body, headers=headers)
        assert {request.interactive for request in engine.started} == {interactive}
        # Nothing of it is cut.
        assert len(engine.started[0].prompt) == len(LINES)
        choice = response.json()["choices"][0]
        assert (len(choice["text"]), choice["finish_reason"]) == (more.get("max_tokens", 16), "length")

    def test_markers_are_plain_text_to_a_model_without_them(self, plain_server: Running) -> None:
        marked_up = MARKED[0].format("a", "b")
        body = {"prompt": marked_up, "max_tokens": 4}
        assert httpx.post(plain_server.address + "/v1/completions", json=body).status_code == 200
        assert text(list(plain_server.engine.started[-1].prompt)) == marked_up

    def test_what_comes_after_the_end_is_not_made(self) -> None:
        engine = FakeEngine(script=lambda _: list(b"a\n\nbcdefghijklmnopqrstuvwxyz"), seconds_per_step=0.005)
        body = {**BODY, "suffix": "\n", "max_tokens": 400}
        with serving(engine) as running:
            httpx.post(running.address + "/v1/completions", json=body, headers=HEADERS)
            usage = httpx.post(running.address + "/v1/completions", json=body, headers=HEADERS).json()
        assert usage["usage"]["completion_tokens"] < 10

    def test_a_clients_own_markers_are_read(self) -> None:
        body = {"prompt": "<fim_prefix>def f():\n    <fim_suffix>\nx<fim_middle>", "max_tokens": 8}
        choice, engine = self.ask(body, b"pass\n\n", **HEADERS)
        assert choice["text"] == "pass"
        assert text(list(engine.started[0].prompt)) == (
            "<|fim_prefix|>def f():\n    <|fim_suffix|>\nx<|fim_middle|>"
        )

    def test_continues_prompt_with_files_of_the_repository_is_an_editors(self) -> None:
        """Its template for models named qwen and coder: the files, then the markers (core/autocomplete,
        AutocompleteTemplate.ts, 2026-06-18)."""
        choice, engine = self.ask({"prompt": CONTINUE, "max_tokens": 30, "stop": CONTINUE_STOPS}, SAID)
        assert (choice["text"], choice["finish_reason"]) == ("return 1", "stop")
        ids = engine.started[0].prompt
        assert text(list(ids)) == CONTINUE
        assert [list(ids).count(token) for token in (START, GAP, MIDDLE, SEPARATOR)] == [1, 1, 1, 3]

    def test_continues_prompt_is_cut_to_the_budget_files_first(self) -> None:
        long = CONTINUE.replace("A = 1\n", LINES)
        engine = FakeEngine(capabilities=BIG)
        with serving(engine, prefill_speed=200.0) as running:
            httpx.post(running.address + "/v1/completions", json={"prompt": long})
        ids = engine.started[-1].prompt
        assert len(ids) <= 200
        assert text(list(ids)).endswith(CONTINUE[CONTINUE.index("<|file_sep|>src/main.py") :])

    def test_own_markers_in_another_order_stay_markers(self) -> None:
        own = "<|fim_suffix|>\nx<|fim_prefix|>def f():\n    <|fim_middle|>"
        choice, engine = self.ask({"prompt": own, "max_tokens": 8}, b"a\n\nb\n" * 9, **HEADERS)
        assert choice["text"].startswith("a\n\nb")  # where it ends can't be told
        ids = list(engine.started[0].prompt)
        assert text(ids) == own
        assert [ids.count(token) for token in (START, GAP, MIDDLE)] == [1, 1, 1]

    def test_markers_in_either_form_pass_the_long_ones(self, server: Running, tickets: list[Ticket]) -> None:
        own = "<|fim_suffix|>\nx<|fim_prefix|>def f():\n    <|fim_middle|>"
        for prompt in (CONTINUE, own):
            body = {"prompt": prompt, "max_tokens": 2}
            httpx.post(server.address + "/v1/completions", json=body, headers=HEADERS)
            httpx.post(server.address + "/v1/completions", json={**body, "max_tokens": 100})
            httpx.post(server.address + "/v1/completions", json=body, headers=NOBODY_WAITS)
        assert [(each.interactive, each.editor is not None) for each in tickets] == [
            (True, True),
            (True, True),
            (False, False),
        ] * 2
        assert {each.sampling.temperature for each in server.engine.started[-6:]} == {0, 1}

    def test_more_than_an_editor_asks_for_is_answered_in_full(self) -> None:
        more: dict[str, Any]
        for more in ({"echo": True}, {"logprobs": 1}, {"n": 1, "best_of": 2}):
            body = {**BODY, "suffix": None, "max_tokens": 4, **more}
            choice, _ = self.ask(body, b"a\n\nb", **HEADERS)
            assert choice["text"].endswith("a\n\nb")


JSON_TYPE = "application/json"
MEMBERS = ["prefix", "body", "filepath", "stop"]
JSON = strategies.recursive(
    strategies.none() | strategies.booleans() | strategies.integers() | strategies.floats(allow_nan=False)
    | strategies.text(max_size=8),
    lambda inner: strategies.lists(inner, max_size=3)
    | strategies.dictionaries(strategies.sampled_from(MEMBERS), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
FIELDS = [
    "prompt", "suffix", "max_tokens", "min_tokens", "temperature", "top_p", "stop", "stream", "random_seed",
    "segments", "inputs", "parameters", "type", "messages", "seed",
]  # fmt: skip


@pytest.mark.parametrize(
    "path",
    ["/v1/fim/completions", "/v1/engines/x/completions", "/v1/completions", "/generate", "/generate_stream",
     "/models/tiny", "/v1/events", "/v1beta/chat/completions"],
)  # fmt: skip
@given(
    body=strategies.dictionaries(strategies.sampled_from(FIELDS), JSON, max_size=6),
    good=strategies.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_no_body_breaks_a_dialect(
    server: Running, client: httpx.Client, path: str, body: dict[str, Any], good: bool
) -> None:
    base: dict[str, Any] = {"prompt": "a", "inputs": "a", "type": "view"} if good else {}
    content = json.dumps({**base, **body}).encode()
    response = client.post(
        server.address + path, content=content, headers=HEADERS | {"content-type": JSON_TYPE}
    )
    assert response.status_code in (200, 400), response.text


BEFORE = "<|repo_name|>r\n<|file_sep|>b.py\n{}<|file_sep|>a.py\n"


@pytest.mark.parametrize("before", [BEFORE.format(LINES), BEFORE.format("x\n"), "<|repo_name|>r\n", ""])
@pytest.mark.parametrize(
    ("path", "field"),
    [("/api/generate", "prompt"), ("/completion", "prompt"), ("/v1/completions", "prompt"),
     ("/v1/engines/x/completions", "prompt"), ("/generate", "inputs"), ("/models/tiny", "inputs")],
)  # fmt: skip
def test_no_route_reads_more_of_a_marked_prompt_than_the_budget(
    client: httpx.Client, path: str, field: str, before: str
) -> None:
    made = f"{before}<|fim_prefix|>{LINES}x = <|fim_suffix|>\n<|fim_middle|>"
    engine = FakeEngine(script=lambda _: list(b"1\n\n2"), capabilities=BIG)
    with serving(engine, prefill_speed=100.0) as running:
        body = {"model": "tiny", field: made, "stream": False}
        assert client.post(running.address + path, json=body).status_code == 200
    [request] = engine.started
    assert request.interactive
    assert len(request.prompt) <= 100
    assert text(list(request.prompt)).endswith("x = <|fim_suffix|>\n<|fim_middle|>")


class TestSpeed:
    def test_it_is_from_a_real_prompt(self) -> None:
        engine = FakeEngine(seconds_per_step=0.3)
        speed = prefill_speed(engine, range(100))
        assert 0 < speed < 64 / 0.3
        assert [len(request.prompt) for request in engine.started] == [8] + [64] * 4  # slow
        assert {request.max_tokens for request in engine.started} == {1}

    def test_a_fast_model_reads_more_and_never_the_same_beginning(self) -> None:
        engine = FakeEngine(capabilities=BIG)
        assert prefill_speed(engine, range(100)) > 0
        assert len(engine.started[-1].prompt) in (64, 256, 1024)
        beginnings = [request.prompt[:8] for request in engine.started]
        assert len(set(beginnings)) == len(beginnings)

    def test_a_short_context_is_not_exceeded(self) -> None:
        engine = FakeEngine(capabilities=replace(CAPABILITIES, max_context=48))
        assert prefill_speed(engine, range(10)) > 0
        assert max(len(request.prompt) for request in engine.started) <= 24

    def test_a_failing_engine_says_so(self) -> None:
        with pytest.raises(EngineError):
            prefill_speed(FakeEngine(fails_after=0), range(10))


def test_min_tokens_reach_the_engine_and_nothing_is_trimmed(server: Running) -> None:
    job = asyncio.run(infill_job(server.served, SETTINGS, Infill("a", "b", min_tokens=5), GREEDY))
    assert (job.min_tokens, job.cursor) == (5, None)
    assert Request((1,), 1, frozenset(), GREEDY, job.min_tokens).min_tokens == 5
