"""Both sources of responses: an engine with a script, and a server on this machine."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_engine import FakeEngine, byte_tokenizer

from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.problems import http_sampler, samplers
from rrtf_serve.problems.http_sampler import HttpSampler
from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, EngineSampler, SamplerError

END = 258  # <|im_end|>
GREEDY = Decoding()


def script(text: str, *, end: bool = True) -> list[int]:
    return [*text.encode(), END] if end else list(text.encode())


def engine_sampler(engine: FakeEngine, batch: int = 4) -> EngineSampler:
    tokenizer = byte_tokenizer()
    prompts = Prompts(
        tokenizer, FAMILIES["qwen2.5-coder"], chat_template="", add_bos=False, bos_token="",
        end_tokens=["<|endoftext|>", "<|im_end|>"],
    )  # fmt: skip
    return EngineSampler(engine, tokenizer, prompts, model="tiny", digest="d", batch=batch)


def answers(sampler: Any, *prompts: Prompt, decoding: Decoding = GREEDY) -> list[samplers.Response]:
    found = dict(sampler.answer([Ask(prompt, 0) for prompt in prompts], decoding))
    return [found[at] for at in range(len(prompts))]


def text(ids: tuple[int, ...]) -> str:
    return byte_tokenizer().decode(ids, skip_specials=False)


def test_answers_come_back_to_their_asks() -> None:
    engine = FakeEngine(lambda prompt: script(text(prompt)[::-1]))
    prompts = [Prompt("completion", text="x" * length) for length in (5, 1, 9, 3, 7)]
    found = answers(engine_sampler(engine, batch=2), *prompts)
    assert [len(response.text) for response in found] == [5, 1, 9, 3, 7]
    assert [response.tokens for response in found] == [5, 1, 9, 3, 7]
    assert {response.finish for response in found} == {"stop"}
    # Batches hold prompts of similar length.
    assert [len(request.prompt) for request in engine.started] == [1, 3, 5, 7, 9]


def test_a_resumed_run_keeps_its_batches() -> None:
    engine = FakeEngine(lambda _: script("x"))
    asks = [Ask(Prompt("completion", text="x" * length), 0) for length in (1, 2, 3, 4)]
    found = dict(engine_sampler(engine, batch=2).answer(asks, GREEDY, {0, 1, 2}))
    # The done batch isn't asked again; the other one is asked whole, and only what is missing comes back.
    assert [len(request.prompt) for request in engine.started] == [3, 4]
    assert list(found) == [3]


def test_stop_strings_end_a_row_and_are_cut() -> None:
    engine = FakeEngine(lambda _: script("return 1\ndef other", end=False))
    [response] = answers(engine_sampler(engine), Prompt("completion", text="p", stop=("\ndef",)))
    assert (response.text, response.finish) == ("return 1", "stop")


def test_the_limit_ends_a_row() -> None:
    engine = FakeEngine(lambda _: script("ab", end=False))
    [response] = answers(
        engine_sampler(engine), Prompt("completion", text="p"), decoding=Decoding(max_tokens=5)
    )
    assert response == samplers.Response("ababa", "length", 5)


def test_chat_is_rendered_and_a_begun_answer_goes_on() -> None:
    engine = FakeEngine(lambda _: script("code\n```\nmore", end=False))
    chat = Prompt("chat-prefilled", message="Do it.", prefill="Here:\n```python\n", stop=("\n```",))
    [response] = answers(engine_sampler(engine), chat)
    assert response.text == "code"
    assert text(engine.started[0].prompt).endswith("<|im_start|>assistant\nHere:\n```python\n")


def test_infilling_ends_where_the_suffix_comes_again() -> None:
    engine = FakeEngine(lambda _: script("x = 1\n    return x\n\nprint(f())", end=False))
    infill = Prompt("infill", text="def f():\n    ", suffix="\n    return x\n\nprint(f())\n")
    [response] = answers(engine_sampler(engine), infill)
    assert (response.text, response.finish) == ("x = 1", "stop")


def test_infilling_uses_the_models_markers() -> None:
    engine = FakeEngine(lambda _: script("middle"))
    [response] = answers(engine_sampler(engine), Prompt("infill", text="before", suffix="after"))
    assert response.text == "middle"
    wanted = "<|fim_prefix|>before<|fim_suffix|>after<|fim_middle|>"
    assert text(engine.started[0].prompt) == wanted


def test_a_failing_engine_keeps_what_was_answered() -> None:
    engine = FakeEngine(lambda prompt: script("a" if len(prompt) == 1 else "a" * 50), fails_after=9)
    arrived = engine_sampler(engine).answer(
        [Ask(Prompt("completion", text=each), 0) for each in ("p", "pp")], GREEDY
    )
    assert next(arrived)[0] == 0
    with pytest.raises(SamplerError, match="tiny: the fake engine was told to fail"):
        list(arrived)


@pytest.mark.parametrize(
    ("options", "flag"),
    [({"temperature": -1}, "--temperature"), ({"top_p": 0}, "--top-p"), ({"max_tokens": 0}, "--max-tokens")],
)
def test_decoding_names_the_flag(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        Decoding(**options)


@dataclass
class Upstream:
    """What the server answers and what it was asked."""

    url: str = ""
    models: Any = field(default_factory=lambda: [{"id": "served"}])
    statuses: list[int] = field(default_factory=list)  # of the next answers, before 200s
    answer: Any = None  # instead of an echo
    retry_after: str = ""
    hangs: threading.Event | None = None  # answers wait for it
    pauses: list[float] = field(default_factory=list)  # seconds that the client would have waited
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    interactive: set[str] = field(default_factory=set)


@pytest.fixture
def upstream(monkeypatch: pytest.MonkeyPatch) -> Iterator[Upstream]:
    state = Upstream()
    monkeypatch.setattr(http_sampler, "rest", lambda _, seconds: state.pauses.append(seconds))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send({"data": state.models} if isinstance(state.models, list) else state.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.bodies.append((self.path, body))
            state.keys.add(self.headers.get("Authorization", ""))
            state.interactive.add(self.headers.get("x-rrtf-interactive", ""))
            if state.hangs is not None:
                state.hangs.wait(20)
            if self.path.endswith("/chat/completions"):
                part = {"message": {"content": body["messages"][-1]["content"][::-1]}}
            else:
                part = {"text": body["prompt"][::-1]}
            usage = {"completion_tokens": 7}
            self._send(state.answer or {"choices": [{**part, "finish_reason": "length"}], "usage": usage})

        def _send(self, record: Any) -> None:
            status = state.statuses.pop(0) if state.statuses else 200
            payload = json.dumps(record).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            if state.retry_after:
                self.send_header("Retry-After", state.retry_after)
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *arguments: object) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            """Quiet, too: clients go away here."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()
        thread.join()


def test_a_server_answers_chat_and_completions(upstream: Upstream) -> None:
    sampler = HttpSampler(upstream.url + "/v1/", None, workers=3, api_key="k")
    assert sampler.model == "served"
    prompts = [
        Prompt("chat", message="chat"),
        Prompt("completion", text="plain", stop=tuple("abcde")),
        Prompt("infill", text="before", suffix="after"),
    ]
    found = answers(sampler, *prompts, decoding=Decoding(0.2, 0.95, 9, seed=5))
    assert [response.text for response in found] == ["tahc", "nialp", "erofeb"]
    assert found[0] == samplers.Response("tahc", "length", 7)
    bodies = {path: body for path, body in upstream.bodies if "suffix" not in body}
    common = {"model": "served", "temperature": 0.2, "top_p": 0.95, "max_tokens": 9, "seed": 5}
    messages = [{"role": "user", "content": "chat"}]
    assert bodies["/v1/chat/completions"] == {**common, "messages": messages}
    # OpenAI's servers take four stop strings; the rest is cut when the code is taken out.
    assert bodies["/v1/completions"] == {**common, "prompt": "plain", "stop": list("abcd")}
    assert upstream.keys == {"Bearer k"}
    assert upstream.interactive == {"false"}  # ours would cut the prompt and the answer


def test_seeds_differ_from_sample_to_sample(upstream: Upstream) -> None:
    sampler = HttpSampler(upstream.url, "served", workers=2)
    asks = [Ask(Prompt("chat", message="m"), index) for index in range(4)]
    assert len(list(sampler.answer(asks, Decoding(0.8, seed=10)))) == 4
    assert sorted(body["seed"] for _, body in upstream.bodies) == [10, 11, 12, 13]


def test_overload_is_waited_for(upstream: Upstream) -> None:
    sampler = HttpSampler(upstream.url, None)
    upstream.statuses = [429, 503, 500]
    assert answers(sampler, Prompt("chat", message="ok"))[0].text == "ko"
    upstream.statuses = [503] * 100
    with pytest.raises(SamplerError, match="503"):
        answers(sampler, Prompt("chat", message="ok"))


def test_waiting_is_told_once_for_all_workers(upstream: Upstream, caplog: pytest.LogCaptureFixture) -> None:
    sampler = HttpSampler(upstream.url, None, workers=4)
    upstream.statuses = [503] * 4
    assert len(answers(sampler, *[Prompt("chat", message="ok")] * 4)) == 4
    [warning] = [record.getMessage() for record in caplog.records]
    assert "/v1/chat/completions: 503 " in warning
    assert warning.endswith("; trying again in 1 s")


def test_what_may_move_an_answer_is_told(upstream: Upstream) -> None:
    url = upstream.url + "/v1"
    assert HttpSampler(url, None, workers=3).provenance() == {"engine": "http", "url": url, "batch": 3}
    tokenizer = byte_tokenizer()
    prompts = Prompts(
        tokenizer, FAMILIES["qwen2.5-coder"], chat_template="", add_bos=False, bos_token="", end_tokens=[]
    )

    def provenance(spread: int | None, **described: Any) -> dict[str, Any]:
        engine = FakeEngine(lambda _: [])
        engine.capabilities = replace(engine.capabilities, prompt_spread=spread)
        sampler = EngineSampler(
            engine, tokenizer, prompts, model="m", digest="d", batch=4, described=described
        )
        return sampler.provenance()

    int8 = {"engine": "ct2", "device": "cpu", "compute_type": "int8", "threads": 2}
    assert provenance(16, **int8, weights_bytes=9) == {**int8, "batch": 4, "prompt_spread": 16}
    # Where no answer depends on its batch, another batch size does no harm.
    assert provenance(0, **int8) == int8
    exact = {**int8, "compute_type": "float32"}
    assert provenance(16, **exact) == exact
    assert provenance(None, engine="torch", dtype="bfloat16")["batch"] == 4


def test_what_a_server_refuses_is_told_at_once(upstream: Upstream) -> None:
    sampler = HttpSampler(upstream.url, None)
    upstream.statuses = [400]
    with pytest.raises(SamplerError, match="/v1/chat/completions: 400"):
        answers(sampler, Prompt("chat", message="no"))
    assert len(upstream.bodies) == 1
    upstream.answer = {"error": "odd"}
    with pytest.raises(SamplerError, match="not an OpenAI answer"):
        answers(sampler, Prompt("chat", message="no"))


def test_wrong_models_and_no_server_are_told(upstream: Upstream) -> None:
    with pytest.raises(SamplerError, match=r"--model other: .* serves served"):
        HttpSampler(upstream.url, "other")
    with pytest.raises(SamplerError, match=r"no server answers at http://127\.0\.0\.1:9/v1: is rrtf-serve"):
        HttpSampler("http://127.0.0.1:9", None)
    for address in ("127.0.0.1:8000", "ftp://127.0.0.1", "http://"):
        with pytest.raises(ValueError, match=rf"--url {address}: must be http://"):
            HttpSampler(address, None)
    with pytest.raises(ValueError, match="--url http://a b"):
        HttpSampler("http://a b", None)
    upstream.models = []
    with pytest.raises(SamplerError, match="give --model"):
        HttpSampler(upstream.url, None)


def test_the_digest_is_the_cards_where_there_is_one(upstream: Upstream) -> None:
    assert HttpSampler(upstream.url, None).digest == upstream.url + "/v1"
    upstream.models = [{"id": "m", "card": {"quantization": "int8", "source": {"sha256": "ab"}}}]
    assert HttpSampler(upstream.url, None).digest == "ab:int8"


def test_a_begun_answer_is_refused_through_a_url(upstream: Upstream) -> None:
    sampler = HttpSampler(upstream.url, None)
    with pytest.raises(ValueError, match="--prompt chat-prefilled"):
        answers(sampler, Prompt("chat-prefilled", message="m", prefill="Here:"))


@pytest.mark.parametrize(
    "answer",
    [
        [1], "text", 7, {"choices": {}}, {"choices": [[]]}, {"choices": ["text"]},
        {"choices": [{"message": {"content": ["a"]}}]},
        {"choices": [{"message": {"content": "a"}, "finish_reason": 3}]},
    ],
)  # fmt: skip
def test_nonsense_is_no_answer_and_no_crash(upstream: Upstream, answer: Any) -> None:
    sampler = HttpSampler(upstream.url, None)
    upstream.answer = answer
    with pytest.raises(SamplerError, match="not an OpenAI answer"):
        answers(sampler, Prompt("chat", message="m"))


def test_what_is_odd_beside_an_answer_does_no_harm(upstream: Upstream) -> None:
    upstream.models = [{"id": "m", "card": {"source": "here", "quantization": 1}}, "odd"]
    sampler = HttpSampler(upstream.url, None)
    upstream.answer = {"choices": [{"message": {"content": "a"}}], "usage": ["odd"]}
    assert answers(sampler, Prompt("chat", message="m")) == [samplers.Response("a", "stop", None)]
    upstream.answer["usage"] = {"completion_tokens": "3"}
    assert answers(sampler, Prompt("chat", message="m"))[0].tokens is None
    for odd in ([1], {"data": {"id": "m"}}, {"data": 3}):
        upstream.models = odd
        with pytest.raises(SamplerError, match="models"):
            HttpSampler(upstream.url, None)


@pytest.mark.parametrize(
    ("asked", "waited"), [("30", 30.0), ("86400", 120.0), ("Wed, 21 Oct 2015", 1), ("", 1)]
)
def test_an_overloaded_server_says_when_to_come_back(upstream: Upstream, asked: str, waited: float) -> None:
    sampler = HttpSampler(upstream.url, None)
    upstream.statuses, upstream.retry_after = [429], asked
    assert answers(sampler, Prompt("chat", message="ok"))[0].text == "ko"
    assert upstream.pauses == [waited]


def test_a_server_that_hangs_is_given_up_and_a_stop_does_not_wait_for_it(upstream: Upstream) -> None:
    upstream.hangs = threading.Event()
    try:
        with pytest.raises(SamplerError, match=r"no answer within 0\.05 s"):
            answers(HttpSampler(upstream.url, None, timeout_s=0.05), Prompt("chat", message="m"))
        assert len(upstream.pauses) == http_sampler.TIMED_OUT - 1
        asks = [Ask(Prompt("chat", message="m"), 0)] * 2
        arriving = HttpSampler(upstream.url, None, workers=2).answer(asks, GREEDY)
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt), interrupted_soon():
            next(arriving)
        assert time.monotonic() - started < 10
    finally:
        upstream.hangs.set()


@contextmanager
def interrupted_soon() -> Iterator[None]:
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGINT])
    timer.start()
    try:
        yield
    finally:
        timer.join()


def test_no_secret_goes_where_it_would_be_kept(upstream: Upstream) -> None:
    with pytest.raises(ValueError, match="--url: holds a user's name or password") as raised:
        HttpSampler(upstream.url.replace("//", "//me:secret@"), None)
    assert "secret" not in str(raised.value)
    with pytest.raises(ValueError, match="the API key holds characters") as raised:
        HttpSampler(upstream.url, None, api_key="sec\nret")
    assert "sec" not in str(raised.value)
    answers(HttpSampler(upstream.url, None, api_key="k\n"), Prompt("chat", message="m"))
    assert upstream.keys == {"Bearer k"}
