"""Several models: who is loaded when, who goes when there is no room, and what nobody loses by it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import httpx
import pytest
from fake_engine import FakeEngine, byte_tokenizer
from starlette.types import Message

from rrtf_serve import roster as module
from rrtf_serve.api.app import create_app
from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings, Known, Served
from rrtf_serve.api.sse import ClientGone
from rrtf_serve.api.visit import Visit, under
from rrtf_serve.engine.protocol import Request, TokenLogprob
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.roster import Opened, Residence, Roster

MIB = 2**20


def known(name: str, size: int = 100 * MIB) -> Known:
    tokenizer = byte_tokenizer()
    family = FAMILIES["qwen2.5-coder"]
    prompts = Prompts(tokenizer, family, chat_template="", add_bos=False, bos_token="", end_tokens=[])
    card = replace(Card(name, "qwen2", "qwen2.5-coder", 512, "int8"), size_bytes=size)
    return Known(name, (f"{name}-alias",), card, tokenizer, prompts, 0, 512)


@dataclass
class Loader:
    """Loads fake engines, and takes memory for them as a real one would."""

    free: int = 10_000 * MIB
    log: list[str] = field(default_factory=list)
    fails: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    asked: threading.Event = field(default_factory=threading.Event)
    scoring: threading.Semaphore | None = None  # what scores wait for

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, model: Known) -> Opened:
        self.asked.set()
        self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.log.append(f"+{model.name}")
        self.free -= model.card.size_bytes
        loader = self

        class Engine(FakeEngine):
            def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
                if loader.scoring is not None:
                    loader.scoring.acquire()
                return super().score(prompt, top)

            def close(self) -> None:
                super().close()
                loader.log.append(f"-{model.name}")
                loader.free += model.card.size_bytes

        engine = Engine()
        scheduler = Scheduler(engine)
        served = Served(
            model.name, model.aliases, model.card, model.tokenizer, model.prompts, 0, 512, scheduler=scheduler
        )
        return Opened(served, engine)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)


def run(
    names: str,
    loader: Loader,
    residence: Residence,
    work: Callable[[Roster, Models], object],
    size: int = 100,
    *,
    sizes: Mapping[str, int] | None = None,
) -> list[str]:
    """What was loaded and unloaded, in order, while `work` went on and at the end."""

    async def go() -> None:
        roster = Roster(
            [known(name, (sizes or {}).get(name, size) * MIB) for name in names],
            loader,
            residence,
            free=lambda: loader.free,
        )
        roster.start()
        try:
            done = work(roster, Models(roster.known, roster))
            assert asyncio.iscoroutine(done)
            await done
        finally:
            await roster.close(1)
            await roster.release()

    asyncio.run(go())
    return loader.log


async def ask(models: Models, name: str | None) -> str:
    """A request that needs the model for a moment."""
    with under(Visit()):
        return (await models.get(name)).name


def test_a_model_is_loaded_once_by_any_of_its_names() -> None:
    async def work(roster: Roster, models: Models) -> None:
        assert roster.loaded == models.loaded == []
        several = await asyncio.gather(models.get("b"), models.get("b-alias"), models.get("b"))
        assert len({id(each) for each in several}) == 1
        assert await ask(models, None) == "a"
        assert [each.name for each in models.loaded] == ["a", "b"]
        with pytest.raises(ApiError, match="This server has 'a', 'b'"):
            await ask(models, "c")

    assert run("ab", Loader(), Residence(), work) == ["+b", "+a", "-a", "-b"]


def test_the_one_asked_for_longest_ago_goes_when_memory_is_short() -> None:
    async def work(_: Roster, models: Models) -> None:
        for name in ("a", "b", "a", "c"):
            await ask(models, name)
            await asyncio.sleep(0.02)
        assert [each.name for each in models.loaded] == ["a", "c"]

    # 100 MiB and 256 for their work and 256 in reserve: the third doesn't fit beside two.
    assert run("abc", Loader(free=750 * MIB), Residence(), work)[:4] == ["+a", "+b", "-b", "+c"]


def test_a_number_of_models_is_a_limit_too() -> None:
    async def work(_: Roster, models: Models) -> None:
        for name in ("a", "b", "a"):
            await ask(models, name)  # no pause is needed between them

    assert run("ab", Loader(), Residence(most=1), work)[:5] == ["+a", "-a", "+b", "-b", "+a"]


def test_a_model_at_work_is_never_unloaded_and_the_other_waits_or_hears_why() -> None:
    async def work(roster: Roster, models: Models) -> None:
        with under(Visit()):
            first = await models.get("a")
        opened = roster._places["a"].opened
        assert opened is not None
        engine = opened.engine
        assert isinstance(engine, FakeEngine)
        engine.open.clear()
        stream = first.scheduler.submit([Request((65,), 3, frozenset())])
        with pytest.raises(
            ApiError, match="'b' can't be loaded now: 1 are loaded and at work, and --max-loa"
        ) as e:
            await ask(models, "b")
        assert (e.value.status, e.value.headers["retry-after"]) == (503, "10")
        waiting = asyncio.create_task(ask(models, "b"))
        await asyncio.sleep(0.05)
        engine.open.set()
        tokens = [delta.token async for deltas in stream for delta in deltas]
        assert tokens == [65, 65, 65]
        assert await waiting == "b"

    assert run("ab", Loader(), Residence(most=1), work)[:3] == ["+a", "-a", "+b"]


def test_waits_for_room_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 1.0)

    async def work(_: Roster, models: Models) -> None:
        with under(Visit()):
            await models.get("a")
            began = time.monotonic()
            others = [asyncio.create_task(ask(models, name)) for name in "bcd"]
            refused = await asyncio.gather(*others, return_exceptions=True)
            seconds = time.monotonic() - began
        assert [each.status for each in refused if isinstance(each, ApiError)] == [503] * 3
        assert seconds < 2.0  # one after another they would take three

    assert run("abcd", Loader(), Residence(most=1), work) == ["+a", "-a"]


def test_a_model_that_is_always_asked_for_gives_way_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(module, "WAIT_SECONDS", 5.0)

    async def work(_: Roster, models: Models) -> None:
        done = asyncio.Event()

        async def steadily() -> int:
            count = 0
            while not done.is_set():
                with under(Visit()):
                    await models.get("a")
                    await asyncio.sleep(0.03)
                count += 1
            return count

        steady = [asyncio.create_task(steadily()) for _ in range(3)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert await ask(models, "b") == "b"
        assert time.monotonic() - began < 3.0
        assert await ask(models, "a") == "a"  # and comes back
        done.set()
        assert all(count > 0 for count in await asyncio.gather(*steady))

    assert run("ab", Loader(), Residence(most=1), work)[:5] == ["+a", "-a", "+b", "-b", "+a"]


def test_one_that_can_never_fit_is_refused_with_the_numbers() -> None:
    async def work(_: Roster, models: Models) -> None:
        with pytest.raises(ApiError, match=r"it needs about 612 MiB of memory, and 500 MiB are free"):
            await models.get("a")

    assert run("a", Loader(free=500 * MIB), Residence(), work) == []


def test_nothing_is_unloaded_for_one_that_fits_in_no_case() -> None:
    async def work(_: Roster, models: Models) -> None:
        await ask(models, "a")
        with pytest.raises(ApiError, match=r"needs about 4999 MiB of memory, and \d+ MiB are free without"):
            await ask(models, "b")
        assert [each.name for each in models.loaded] == ["a"]

    log = run("ab", Loader(free=1000 * MIB), Residence(), work, sizes={"b": 3795})
    assert log == ["+a", "-a"]  # it went when the roster was closed


def test_one_that_fails_to_load_is_tried_again_after_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(fails=ModelError("/secret/path: damaged"))

    async def work(_: Roster, models: Models) -> None:
        with pytest.raises(ApiError, match="'a' can't be loaded here; the server's log says why") as caught:
            await models.get("a")
        assert caught.value.status == 503 and "secret" not in str(caught.value)
        loader.fails = None
        loader.asked.clear()
        with pytest.raises(ApiError, match="'a' can't be loaded here"):
            await models.get("a")
        assert not loader.asked.is_set()
        monkeypatch.setattr(module, "FAILED_SECONDS", 0.0)
        assert (await models.get("a")).name == "a"

    assert run("a", loader, Residence(), work) == ["+a", "-a"]


def test_who_asked_may_go_while_it_is_loaded() -> None:
    loader = Loader()
    loader.gate.clear()

    async def work(roster: Roster, models: Models) -> None:
        asked = asyncio.create_task(ask(models, "a"))
        await asyncio.to_thread(loader.asked.wait)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked  # it doesn't wait for the end of the load
        loader.gate.set()
        while not roster.loaded:
            await asyncio.sleep(0.01)

    assert run("a", loader, Residence(), work) == ["+a", "-a"]


def test_what_nobody_asks_for_goes() -> None:
    async def work(roster: Roster, models: Models) -> None:
        with under(Visit()):
            await models.get("a")
            await asyncio.sleep(0.3)
            assert roster.loaded  # while a request has it, however long it takes
        while roster.loaded:
            await asyncio.sleep(0.01)
        with under(Visit()):
            await models.get("a")

    assert run("a", Loader(), Residence(idle_seconds=0.05), work) == ["+a", "-a", "+a", "-a"]


def test_a_closed_roster_loads_nothing() -> None:
    async def work(roster: Roster, models: Models) -> None:
        await roster.close(0)
        with pytest.raises(ApiError, match="shutting down"):
            await models.get("a")

    assert run("a", Loader(), Residence(), work) == []


def test_a_model_that_a_request_holds_is_not_unloaded_between_its_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(roster: Roster, models: Models) -> None:
        with under(Visit()):
            held = await models.get("a")
            with pytest.raises(ApiError, match="1 are loaded and at work"):
                await ask(models, "b")
            monkeypatch.setattr(module, "WAIT_SECONDS", 30.0)
            waiting = asyncio.create_task(ask(models, "b"))
            await asyncio.sleep(0.05)
            assert roster.loaded == [held] and roster.queue_depth == 1
            assert len(await held.scheduler.score((65, 66), 0)) == 1
        assert await waiting == "b"

    assert run("ab", Loader(), Residence(most=1), work)[:3] == ["+a", "-a", "+b"]


def test_requests_of_several_steps_keep_their_model_beside_those_for_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "WAIT_SECONDS", 30.0)
    loader = Loader(scoring=threading.Semaphore(0))
    scores = {"model": "a", "prompt": ["ab", "cd", "ef"], "max_tokens": 2, "echo": True, "logprobs": 0}

    async def work(roster: Roster, models: Models) -> None:
        app = create_app(models, settings=ApiSettings())
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            first = asyncio.create_task(client.post("/v1/completions", json=scores))
            while not roster.rows_running:  # a score counts
                await asyncio.sleep(0.01)
            second = asyncio.create_task(client.post("/v1/completions", json={"model": "b", "prompt": "ab"}))
            for _ in range(3):
                await asyncio.sleep(0.03)
                assert loader.scoring is not None
                loader.scoring.release()
            answers = [await first, await second]
            assert [each.status_code for each in answers] == [200, 200], [each.text for each in answers]

    assert run("ab", loader, Residence(most=1), work)[:3] == ["+a", "-a", "+b"]


def test_a_deadline_holds_while_a_model_is_loaded() -> None:
    loader = Loader()
    loader.gate.clear()

    async def work(roster: Roster, models: Models) -> None:
        with under(Visit(deadline=time.monotonic() + 0.05)), pytest.raises(ApiError) as late:
            await models.get("a")
        assert (late.value.status, late.value.code) == (504, "deadline_exceeded")
        assert roster.queue_depth == 0
        loader.gate.set()

    run("a", loader, Residence(), work)


def test_nothing_is_loaded_for_clients_that_left() -> None:
    async def work(roster: Roster, models: Models) -> None:
        gone = asyncio.Event()

        async def receive() -> Message:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def left() -> None:
            with under(Visit(receive=receive)), pytest.raises(ClientGone):
                await models.get("b")

        with under(Visit()):
            await models.get("a")
            asked = asyncio.create_task(left())
            while not roster.queue_depth:
                await asyncio.sleep(0.01)
            gone.set()
            await asked
        assert roster.queue_depth == 0

    assert run("ab", Loader(), Residence(most=1), work) == ["+a", "-a"]


def test_those_who_wait_for_a_model_are_bounded() -> None:
    loader = Loader()
    loader.gate.clear()

    async def work(roster: Roster, models: Models) -> None:
        waiting = [asyncio.create_task(ask(models, name)) for name in ("a", "b")]
        while roster.queue_depth < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(ApiError) as full:
            await ask(models, "a")
        assert (full.value.status, full.value.headers["retry-after"]) == (429, "10")
        loader.gate.set()
        assert await asyncio.gather(*waiting) == ["a", "b"]

    run("ab", loader, Residence(waiting=2), work)


def test_closing_tells_those_who_wait_for_a_model() -> None:
    loader = Loader()
    loader.gate.clear()

    async def work(roster: Roster, models: Models) -> None:
        waiting = asyncio.create_task(ask(models, "a"))
        await asyncio.to_thread(loader.asked.wait)
        await roster.close(0)
        with pytest.raises(ApiError, match="shutting down"):
            await waiting
        loader.gate.set()

    assert run("a", loader, Residence(), work) == ["+a", "-a"]


def test_two_models_of_one_name() -> None:
    with pytest.raises(ValueError, match="two models have the name 'a'"):
        Models([known("a"), known("a")])
