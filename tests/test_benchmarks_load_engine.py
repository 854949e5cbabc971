"""An engine that fails in mid-batch, behind the whole API: only that batch fails, as clients read it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection
from typing import Any

import httpx2
import pytest
from fake_engine import CAPABILITIES, FakeBatch, FakeEngine
from live import Running, serving

from rrtf_serve.api.models import Models
from rrtf_serve.engine.protocol import Delta, Request

BAD = "bad"


@dataclass
class Flawed(FakeEngine):
    """Fails at the third step of each batch that holds a prompt that begins with BAD."""

    error: Exception = field(default_factory=RuntimeError)

    def start(self, requests: list[Request]) -> FakeBatch:
        self.started += requests
        hit = any(bytes(request.prompt[: len(BAD)]) == BAD.encode() for request in requests)
        return FlawedBatch(self, requests) if hit else FakeBatch(self, requests)


class FlawedBatch(FakeBatch):
    def __init__(self, engine: Flawed, requests: list[Request]) -> None:
        super().__init__(engine, requests)
        self._error = engine.error
        self._left = 2

    def step(self) -> list[Delta]:
        self._left -= 1
        if self._left < 0:
            raise self._error
        return super().step()


Ask = Callable[..., httpx2.Response]


@contextmanager
def asking(flawed: Flawed) -> Iterator[tuple[Running, Ask]]:
    with serving(flawed) as server, httpx2.Client(timeout=60, trust_env=False) as http:

        def ask(prompt: str, **options: Any) -> httpx2.Response:
            body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, **options}
            return http.post(f"{server.address}/v1/completions", json=body)

        yield server, ask


@contextmanager
def http11(server: Running) -> Iterator[HTTPConnection]:
    """One connection, kept."""
    connection = HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    try:
        yield connection
    finally:
        connection.close()


@pytest.fixture(
    params=[RuntimeError("out of memory"), ValueError("a shape that fits nothing"), MemoryError()]
)
def flawed(request: pytest.FixtureRequest) -> Flawed:
    return Flawed(capabilities=replace(CAPABILITIES, max_batch=4), error=request.param)


def test_a_whole_answer_is_500_in_openais_shape(flawed: Flawed) -> None:
    with asking(flawed) as (server, ask):
        answer = ask(BAD)
        assert answer.status_code == 500
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "internal_error")
        assert answer.headers["x-request-id"] in error["message"]
        assert "memory" not in answer.text  # the cause is for the log
        assert server.scheduler.rows_running == 0
        assert ask("good").json()["choices"][0]["text"] == "goodgood"


def test_a_stream_ends_with_an_error_event(flawed: Flawed) -> None:
    with asking(flawed) as (_, ask):
        events = [line[6:] for line in ask(BAD, stream=True).text.splitlines() if line]
        assert json.loads(events[-1])["error"]["code"] == "internal_error"
        assert "[DONE]" not in events
        assert json.loads(events[0])["choices"][0]["text"] == "b"
        assert ask("good").status_code == 200


def test_only_the_batch_that_failed_fails(flawed: Flawed) -> None:
    """Other sampling is another batch: what decodes beside, before and after the failing one is whole."""
    with asking(flawed) as (server, ask):
        flawed.open.clear()
        released = threading.Timer(0.3, flawed.open.set)
        released.start()
        prompts = [(BAD, 0.0), ("good", 1.0), (BAD, 1.5), ("fine", 1.2), ("well", 1.7)]
        with ThreadPoolExecutor(len(prompts)) as pool:
            answers = list(pool.map(lambda each: ask(each[0], temperature=each[1]), prompts))
        released.join()
        assert [answer.status_code for answer in answers] == [500, 200, 500, 200, 200]
        texts = [answer.json()["choices"][0]["text"] for answer in answers if answer.status_code == 200]
        assert texts == ["goodgood", "finefine", "wellwell"]
        assert server.scheduler.rows_running == server.scheduler.queue_depth == 0


def test_a_server_whose_every_batch_fails_goes_on_answering(flawed: Flawed) -> None:
    with asking(flawed) as (server, ask):
        with ThreadPoolExecutor(8) as pool:
            statuses = list(pool.map(lambda number: ask(f"{BAD}{number}").status_code, range(40)))
        assert set(statuses) == {500}
        assert ask("good").status_code == 200
        assert server.scheduler.rows_running == server.scheduler.queue_depth == 0


def test_a_kept_connection_outlives_a_failed_batch(flawed: Flawed) -> None:
    """Else a client's next request over it is lost, and with it that of whoever shares it."""
    with asking(flawed) as (server, _), http11(server) as connection:
        for prompt, status in ((BAD, 500), ("good", 200), (BAD, 500), ("good", 200)):
            body = json.dumps({"prompt": prompt, "max_tokens": 8, "temperature": 0})
            connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
            response = connection.getresponse()
            assert response.status == status
            assert not response.will_close
            response.read()


def test_a_fault_of_our_own_says_that_it_closes_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with asking(Flawed()) as (server, _), http11(server) as connection:

        async def broken(name: object) -> None:
            raise KeyError(name)

        monkeypatch.setattr(Models, "get", lambda self, name: broken(name))
        connection.request("POST", "/v1/completions", "{}", {"content-type": "application/json"})
        response = connection.getresponse()
        assert (response.status, response.getheader("connection")) == (500, "close")
        assert json.loads(response.read())["error"]["code"] == "internal_error"
