"""The page's client of the API, against a live server that speaks OpenAI's shapes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from itertools import pairwise

import pytest
from fake_openai import ANSWER, FILL, Failure, Fake, add_api, free_listener, serving
from fastapi import FastAPI
from openai.types.chat import ChatCompletionMessageParam

from ui.server import AnswerError, Options, Progress, Server

OPTIONS = Options(max_tokens=64, temperature=0.3, top_p=0.9)
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def origin_and_fake() -> Iterator[tuple[str, Fake]]:
    app, fake = FastAPI(), Fake()
    add_api(app, fake)
    with serving(app, free_listener()) as origin:
        yield origin, fake


@pytest.fixture
def fake(origin_and_fake: tuple[str, Fake]) -> Fake:
    origin_and_fake[1].reset()
    return origin_and_fake[1]


@pytest.fixture
def base_url(origin_and_fake: tuple[str, Fake]) -> str:
    return f"{origin_and_fake[0]}/v1"


async def chat(server: Server, key: str | None = None) -> list[Progress]:
    return [progress async for progress in server.chat(HELLO, OPTIONS, key=key)]


async def complete(server: Server, suffix: str | None) -> list[Progress]:
    return [progress async for progress in server.complete("def add(a, b):\n    ", suffix, OPTIONS, key=None)]


def ask(base_url: str, key: str | None = None) -> list[Progress]:
    async def once() -> list[Progress]:
        async with aclosing(Server(base_url)) as server:
            return await chat(server, key)

    return asyncio.run(once())


def test_a_chat_streams_and_ends_with_its_cost(base_url: str, fake: Fake) -> None:
    seen = ask(base_url, "secret")
    texts = [progress.text for progress in seen]
    assert texts[-1] == ANSWER
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert len(set(texts)) > 5
    last = seen[-1]
    assert (last.finish, last.tokens) == ("stop", 20)
    assert last.first_after is not None
    assert 0 < last.first_after < last.elapsed
    body = fake.bodies[-1]
    assert body == {
        "model": "tiny-coder",
        "messages": HELLO,
        "max_tokens": 64,
        "temperature": 0.3,
        "top_p": 0.9,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert set(fake.keys) == {"Bearer secret"}


def test_a_suffix_is_sent_only_where_there_is_one(base_url: str, fake: Fake) -> None:
    async def both() -> None:
        async with aclosing(Server(base_url)) as server:
            assert (await complete(server, "\n"))[-1].text == FILL
            assert (await complete(server, None))[-1].text == FILL

    asyncio.run(both())
    assert [body.get("suffix", "absent") for body in fake.bodies] == ["\n", "absent"]
    assert fake.interactive == ["false", "false"]  # else the server would cut the answer as for an editor


@pytest.mark.parametrize("delay", [0.005, 30.0], ids=["while it streams", "before the first token"])
def test_closing_early_or_being_cancelled_ends_the_answer_on_the_server(
    base_url: str, fake: Fake, delay: float
) -> None:
    fake.pieces, fake.delay = 100_000, delay

    async def take_some(server: Server) -> None:
        async with aclosing(server.chat(HELLO, OPTIONS, key=None)) as stream:
            async for progress in stream:
                if delay < 1 and len(progress.text) > 20:
                    return

    async def run() -> None:
        async with aclosing(Server(base_url)) as server:
            task = asyncio.create_task(take_some(server))
            await until(lambda: fake.running == 1)
            if delay > 1:
                await asyncio.sleep(0.1)
                task.cancel()
            await asyncio.wait([task])
            await until(lambda: fake.running == 0)

    asyncio.run(run())
    assert fake.left == 1


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "the server did not notice within 5 s"
        await asyncio.sleep(0.01)


REFUSALS: list[tuple[Failure, str]] = [
    (
        (429, {"message": "Queue full.", "code": "rate_limit_exceeded"}, {"Retry-After": "7"}),
        "The server is busy: every place in its queue is taken. Try again in 7 s.",
    ),
    ((429, {"message": "Queue full."}, {}), "Try again in a moment."),
    (
        (400, {"message": "This model's maximum context length is 4096 tokens."}, {}),
        "This model's maximum context length is 4096 tokens.",
    ),
    ((401, {"message": "Incorrect API key."}, {}), "did not accept the page's key: Incorrect API key."),
    ((404, {"message": "The model `x` does not exist."}, {}), "The model `x` does not exist."),
    ((500, {"message": "Internal error."}, {}), "The server failed (500): Internal error."),
    ((503, {"message": "Stopping."}, {}), "The server failed (503): Stopping."),
]


@pytest.mark.parametrize(("failure", "said"), REFUSALS)
def test_a_refusal_becomes_a_sentence_at_once(base_url: str, fake: Fake, failure: Failure, said: str) -> None:
    fake.failure = failure
    started = time.monotonic()
    with pytest.raises(AnswerError) as caught:
        ask(base_url)
    assert said in str(caught.value)
    assert "Error code" not in str(caught.value)
    assert len(fake.bodies) == 1, "a refusal must not be retried behind the user's back"
    assert time.monotonic() - started < 3


def test_a_failure_in_mid_stream_becomes_a_sentence(base_url: str, fake: Fake) -> None:
    fake.break_after = 3
    with pytest.raises(AnswerError, match=r"^The engine failed\.$"):
        ask(base_url)


def test_a_server_that_is_gone_is_said_to_be_gone() -> None:
    with free_listener() as listener:
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    with pytest.raises(AnswerError, match="connection to the server is gone"):
        ask(address)


def test_a_proxy_in_the_environment_is_not_asked(
    base_url: str, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(base_url)[-1].text == ANSWER


def test_after_another_model_took_its_place_the_name_is_asked_for_again(base_url: str, fake: Fake) -> None:
    async def run() -> None:
        async with aclosing(Server(base_url)) as server:
            await chat(server)
            fake.failure = (404, {"message": "The model `tiny-coder` does not exist."}, {})
            with pytest.raises(AnswerError):
                await chat(server)
            fake.failure = None
            before = len(fake.keys)
            await chat(server)
            assert len(fake.keys) - before == 2  # the list of models, then the chat

    asyncio.run(run())
