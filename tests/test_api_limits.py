"""Limits per key: buckets by themselves, then over a live server, with OpenAI's headers and refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import httpx
import openai
import pytest
from fake_engine import FakeEngine
from hypothesis import given
from hypothesis import strategies as st
from live import Running, serving

from rrtf_serve.api.app import ApiSettings
from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.keys import Keyring, read_variable
from rrtf_serve.api.limits import Account, Accounts, Bucket, Limits

PATH = "/v1/completions"
END = 256  # of the fake tokenizer


@given(
    st.integers(1, 1000),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 1500)), min_size=1, max_size=40),
)
def test_a_bucket_gives_no_more_than_a_minutes_worth_and_what_came_back(
    per_minute: int, asked: list[tuple[float, int]]
) -> None:
    bucket, now, given_out, largest = Bucket(per_minute, 0.0), 0.0, 0, 0
    for pause, amount in asked:
        now += pause
        wait = bucket.take(amount, now)
        assert 0 <= wait <= (largest + amount) * 60 / per_minute
        if wait:
            now += wait + 1e-6
            assert bucket.take(amount, now) == 0, "who waits as long as told is served"
        given_out += amount
        largest = max(largest, amount)
        assert given_out <= per_minute + now * per_minute / 60 + max(0, largest - per_minute) + 1


def test_what_is_given_back_never_makes_more_than_a_full_bucket() -> None:
    bucket = Bucket(10, 0.0)
    bucket.give(100, 0.0)
    assert bucket.level(0.0) == 10
    assert bucket.take(25, 0.0) == 0, "more than it ever holds is given once it is full"
    assert bucket.take(1, 60.0) > 0
    assert bucket.seconds_to_full(60.0) == pytest.approx(90)


def test_accounts_are_bounded_and_those_in_use_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrtf_serve.api.limits.MAX_ACCOUNTS", 3)
    accounts = Accounts(Limits(requests_per_minute=1))
    busy = accounts.of("busy")
    busy.enter()
    recent = accounts.of("recent")
    for number in range(10):
        accounts.of(f"once {number}").enter()
        accounts.of(f"once {number}").leave()
        assert accounts.of("recent") is recent
        assert len(accounts._accounts) <= 3, "bounded also where nobody's minute is over"
    assert accounts.of("busy") is busy


def test_accounts_of_requests_under_way_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rrtf_serve.api.limits.MAX_ACCOUNTS", 3)
    accounts = Accounts(Limits(concurrent_requests=1))
    running = {}
    for number in range(100):
        running[f"{number}"] = accounts.of(f"{number}")
        running[f"{number}"].enter()
    assert all(accounts.of(name) is account for name, account in running.items())
    for account in running.values():
        account.leave()
    accounts.of("new")
    assert len(accounts._accounts) <= 3


@pytest.mark.parametrize(
    ("wait", "written", "seconds"),
    [(0.02, "20ms", "1"), (1.24, "1.3s", "2"), (61, "1m1s", "61"), (360, "6m0s", "360")],
)
def test_waits_are_written_as_openai_writes_them(wait: float, written: str, seconds: str) -> None:
    account = Account(Limits(tokens_per_minute=60), 0.0)
    assert account._tokens is not None
    account._tokens.take = lambda amount, now: wait  # type: ignore[method-assign]
    with pytest.raises(ApiError) as refusal:
        account.reserve(1)
    assert f"try again in {written}." in refusal.value.message
    assert refusal.value.headers["retry-after"] == seconds


def limited(limits: Limits, **more: object) -> ApiSettings:
    return replace(ApiSettings(limits=limits), **more)


LONG = {"max_tokens": 100}  # waits where long requests wait


def ring() -> Keyring:
    return Keyring(read_variable("alice:one,bob:two"))


def ask(server: Running, key: str = "one", **fields: object) -> httpx.Response:
    body = {"prompt": "abc", "max_tokens": 2, **fields}
    return httpx.post(server.address + PATH, json=body, headers={"authorization": f"Bearer {key}"})


def test_requests_per_minute_are_counted_for_each_key_and_the_page_counts_as_its_visitor() -> None:
    keys = ring()
    with serving(keys=keys, settings=limited(Limits(requests_per_minute=2))) as server:
        first = ask(server)
        page = keys.page_key("one")
        assert page is not None
        second = ask(server, page)
        refused = ask(server)
        others = ask(server, "two")
        models = httpx.get(server.address + "/v1/models", headers={"api-key": "one"})
    assert [first.status_code, second.status_code, refused.status_code, others.status_code] == [
        200,
        200,
        429,
        200,
    ]
    assert models.status_code == 200, "reading costs nothing"
    assert "x-ratelimit-limit-requests" not in models.headers
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert int(refused.headers["retry-after-ms"]) <= 30_000
    error = refused.json()["error"]
    assert (error["code"], error["type"], error["param"]) == ("rate_limit_exceeded", "requests", None)
    assert "requests per minute: 2" in error["message"]


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def test_wrong_keys_use_up_nobodys_limit() -> None:
    with serving(keys=ring(), settings=limited(Limits(requests_per_minute=1))) as server:
        assert {ask(server, "wrong").status_code for _ in range(3)} == {401}
        assert ask(server).status_code == 200


def test_without_keys_a_limit_is_an_addresses() -> None:
    with serving(settings=limited(Limits(requests_per_minute=1))) as server:
        assert [ask(server).status_code for _ in range(2)] == [200, 429]


def test_tokens_that_were_not_used_come_back() -> None:
    engine = FakeEngine(script=lambda prompt: [65, END])
    with serving(engine, keys=ring(), settings=limited(Limits(tokens_per_minute=400))) as server:
        for _ in range(2):  # each could take 393 and takes 4
            answer = ask(server, max_tokens=390)
            assert answer.status_code == 200
            assert answer.json()["usage"]["total_tokens"] == 4
            assert answer.headers["x-ratelimit-limit-tokens"] == "400"
            assert "x-ratelimit-remaining-tokens" in answer.headers


def test_more_tokens_than_a_minute_has_are_given_out_of_a_full_minute_once() -> None:
    with serving(keys=ring(), settings=limited(Limits(tokens_per_minute=10))) as server:
        assert ask(server, max_tokens=60).status_code == 200
        refused = ask(server, max_tokens=60)
        assert (refused.status_code, refused.json()["error"]["type"]) == (429, "tokens")
        assert int(refused.headers["retry-after"]) > 200
        assert refused.headers["x-ratelimit-remaining-tokens"] == "0"


def scored(server: Running, prompt: str | list[str], **fields: object) -> httpx.Response:
    return ask(server, prompt=prompt, echo=True, logprobs=0, **fields)


def test_a_scored_prompt_is_held_to_the_longest_prompt() -> None:
    engine = FakeEngine()
    with serving(engine, settings=ApiSettings(max_prompt_tokens=10)) as server:
        refused = scored(server, ["a", "b" * 11], max_tokens=0)
        assert scored(server, "a" * 10, max_tokens=0).status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert engine.scored_prompts == [10], "nothing is read before the longest is known to be allowed"


def test_scored_tokens_count_and_those_that_are_gone_on_with_count_once() -> None:
    engine = FakeEngine()
    with serving(engine, keys=ring(), settings=limited(Limits(tokens_per_minute=100))) as server:
        first = scored(server, ["a" * 20, "b" * 20], max_tokens=0)
        second = scored(server, "c" * 30, max_tokens=10)
        refused = scored(server, ["d" * 20, "e" * 20], max_tokens=0)
    assert [answer.status_code for answer in (first, second, refused)] == [200, 200, 429]
    assert 60 <= int(first.headers["x-ratelimit-remaining-tokens"]) < 65
    assert 20 <= int(second.headers["x-ratelimit-remaining-tokens"]) < 30, "40 of them, not 70"
    assert refused.json()["error"]["type"] == "tokens"
    assert engine.scored_prompts == [20, 20, 30], "nothing is read that can't be paid for"


def test_a_full_queue_gives_the_tokens_of_a_score_back() -> None:
    engine = FakeEngine()
    engine.open.clear()
    limits = Limits(tokens_per_minute=1000)
    with serving(engine, keys=ring(), settings=limited(limits), max_queue=1) as server:
        threads = [threading.Thread(target=ask, args=(server,), kwargs=LONG) for _ in range(2)]
        threads[0].start()
        until(lambda: bool(engine.started))
        threads[1].start()
        until(lambda: server.scheduler.queue_depth == 1)
        full = [scored(server, "a" * 200, max_tokens=300) for _ in range(4)]
        engine.open.set()
        for thread in threads:
            thread.join()
    assert {answer.json()["error"]["type"] for answer in full} == {"requests"}


def test_a_full_queue_gives_tokens_back() -> None:
    engine = FakeEngine()
    engine.open.clear()
    limits = Limits(tokens_per_minute=1000)
    with serving(engine, keys=ring(), settings=limited(limits), max_queue=1) as server:
        threads = [threading.Thread(target=ask, args=(server,), kwargs=LONG) for _ in range(2)]
        threads[0].start()
        until(lambda: bool(engine.started))
        threads[1].start()
        until(lambda: server.scheduler.queue_depth == 1)
        full = ask(server, max_tokens=400)
        again = ask(server, max_tokens=400)
        engine.open.set()
        for thread in threads:
            thread.join()
    assert [full.json()["error"]["type"], again.json()["error"]["type"]] == ["requests", "requests"]
    assert "queue is full" in again.json()["error"]["message"]


def test_requests_at_once_are_bounded_for_each_key_and_end_with_their_client() -> None:
    engine = FakeEngine()
    engine.open.clear()
    settings = limited(Limits(concurrent_requests=1))
    with serving(engine, keys=ring(), settings=settings) as server, httpx.Client() as client:
        body = {"prompt": "abc", "max_tokens": 50, "stream": True}
        url, headers = server.address + PATH, {"authorization": "Bearer one"}
        with client.stream("POST", url, json=body, headers=headers) as running:
            assert running.status_code == 200
            refused = ask(server)
            # Another key's is let in; it waits for the engine.
            with client.stream("POST", url, json=body, headers={"api-key": "two"}) as other:
                assert other.status_code == 200
        engine.open.set()
        # The server hears of the hang-up in its own time.
        until(lambda: ask(server).status_code == 200)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["type"]) == (429, "rate_limit_exceeded", "requests")
    assert "at most 1" in error["message"]
    assert refused.headers["retry-after"] == "1"


def test_openais_sdk_raises_its_own_error() -> None:
    with serving(keys=ring(), settings=limited(Limits(requests_per_minute=1))) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="one", max_retries=0)
        with client:
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
            with pytest.raises(openai.RateLimitError) as refusal:
                client.completions.create(model="tiny", prompt="a", max_tokens=1)
    assert refusal.value.code == "rate_limit_exceeded"
    assert refusal.value.response.headers["retry-after"]


@pytest.mark.parametrize("prompt", ["a" * 11, ["a", "b" * 11], [65] * 11])
def test_a_prompt_beyond_the_limit_is_refused_with_the_numbers(prompt: object) -> None:
    with serving(settings=ApiSettings(max_prompt_tokens=10)) as server:
        refused = ask(server, prompt=prompt)
        assert ask(server, prompt="a" * 10).status_code == 200
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "prompt")
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (11, 10)


def test_a_body_beyond_the_limit_is_refused() -> None:
    with serving(settings=ApiSettings(max_body_bytes=1024)) as server:
        assert ask(server, user="x" * 2000).status_code == 413
        assert ask(server).status_code == 200


def test_an_answer_beyond_the_time_limit_is_a_504_that_nobody_repeats() -> None:
    engine = FakeEngine()
    engine.open.clear()
    with serving(engine, settings=ApiSettings(request_seconds=0.3)) as server:
        whole = ask(server)
        streamed = ask(server, stream=True)
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=5)
        with client, pytest.raises(openai.InternalServerError) as given_up:
            client.completions.create(model="tiny", prompt="a", max_tokens=1)
        asked = len(engine.started)
        engine.open.set()
    error = whole.json()["error"]
    assert (whole.status_code, error["code"], error["type"]) == (504, "deadline_exceeded", "timeout_error")
    assert whole.headers["x-should-retry"] == "false"
    assert given_up.value.status_code == 504
    assert asked <= 3, "the SDK did not try again"
    assert (streamed.status_code, "[DONE]" in streamed.text) == (200, False)
    assert "deadline_exceeded" in streamed.text


def test_a_prompt_that_cannot_be_read_in_time_is_refused_at_once() -> None:
    settings = ApiSettings(request_seconds=20)
    with serving(settings=settings, prefill_speed=10) as server:
        refused = [
            ask(server, prompt="a" * 201),
            ask(server, prompt="a" * 101, n=2, temperature=1),
            ask(server, prompt=["a" * 101] * 2),
            ask(server, prompt="a" * 201, echo=True, logprobs=0, max_tokens=0),
        ]
        assert ask(server, prompt="a" * 200).status_code == 200
        assert server.engine.scored_prompts == []
    assert {answer.status_code for answer in refused} == {400}
    error = refused[0].json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "201 tokens" in error["message"]
    assert "about 200 in the 20 s" in error["message"]
    assert (error["n_prompt_tokens"], error["n_ctx"]) == (201, 200)


def test_what_is_read_in_pieces_is_left_to_the_deadline() -> None:
    engine = FakeEngine(capabilities=replace(FakeEngine().capabilities, admission=True))
    settings = ApiSettings(request_seconds=0.5)
    engine.open.clear()
    with serving(engine, settings=settings, prefill_speed=10) as server:
        answer = ask(server, prompt="a" * 200)
        engine.open.set()
    assert answer.status_code == 504
