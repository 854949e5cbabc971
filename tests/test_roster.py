"""Several models: who is loaded when, who goes when there is no room, and what nobody loses by it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from fake_engine import FakeEngine, byte_tokenizer

from rrtf_serve import roster as module
from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import Known, Served
from rrtf_serve.engine.protocol import Request
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

    def __post_init__(self) -> None:
        self.gate.set()

    def __call__(self, model: Known) -> Opened:
        self.gate.wait()
        if self.fails is not None:
            raise self.fails
        self.log.append(f"+{model.name}")
        self.free -= model.card.size_bytes
        loader = self

        class Engine(FakeEngine):
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
    monkeypatch.setattr(module, "JUST_ASKED_SECONDS", 0.0)
    monkeypatch.setattr(module, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "WAIT_SECONDS", 0.2)


def run(
    names: str,
    loader: Loader,
    residence: Residence,
    work: Callable[[Roster, Models], object],
    size: int = 100,
) -> list[str]:
    """What was loaded and unloaded, in order, while `work` went on and at the end."""

    async def go() -> None:
        roster = Roster(
            [known(name, size * MIB) for name in names], loader, residence, free=lambda: loader.free
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


def test_a_model_is_loaded_once_by_any_of_its_names() -> None:
    async def work(roster: Roster, models: Models) -> None:
        assert roster.loaded == models.loaded == []
        several = await asyncio.gather(models.get("b"), models.get("b-alias"), models.get("b"))
        assert len({id(each) for each in several}) == 1
        assert (await models.get(None)).name == "a"
        assert [each.name for each in models.loaded] == ["a", "b"]
        with pytest.raises(ApiError, match="This server has 'a', 'b'"):
            await models.get("c")

    assert run("ab", Loader(), Residence(), work) == ["+b", "+a", "-a", "-b"]


def test_the_one_asked_for_longest_ago_goes_when_memory_is_short() -> None:
    async def work(_: Roster, models: Models) -> None:
        for name in ("a", "b", "a", "c"):
            await models.get(name)
            await asyncio.sleep(0.02)
        assert [each.name for each in models.loaded] == ["a", "c"]

    # 100 MiB and 256 for their work and 256 in reserve: the third doesn't fit beside two.
    assert run("abc", Loader(free=750 * MIB), Residence(), work)[:4] == ["+a", "+b", "-b", "+c"]


def test_a_number_of_models_is_a_limit_too() -> None:
    async def work(_: Roster, models: Models) -> None:
        for name in ("a", "b", "a"):
            await models.get(name)
            await asyncio.sleep(0.02)

    assert run("ab", Loader(), Residence(most=1), work)[:5] == ["+a", "-a", "+b", "-b", "+a"]


def test_a_model_at_work_is_never_unloaded_and_the_other_waits_or_hears_why() -> None:
    async def work(roster: Roster, models: Models) -> None:
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
            await models.get("b")
        assert (e.value.status, e.value.headers["retry-after"]) == (503, "10")
        waiting = asyncio.create_task(models.get("b"))
        await asyncio.sleep(0.05)
        engine.open.set()
        tokens = [delta.token async for deltas in stream for delta in deltas]
        assert tokens == [65, 65, 65]
        assert (await waiting).name == "b"

    assert run("ab", Loader(), Residence(most=1), work)[:3] == ["+a", "-a", "+b"]


def test_one_that_can_never_fit_is_refused_with_the_numbers() -> None:
    async def work(_: Roster, models: Models) -> None:
        with pytest.raises(ApiError, match=r"it needs about 612 MiB of memory, and 500 MiB are free"):
            await models.get("a")

    assert run("a", Loader(free=500 * MIB), Residence(), work) == []


def test_one_that_fails_to_load_is_tried_again_at_the_next_request() -> None:
    loader = Loader(fails=ModelError("/secret/path: damaged"))

    async def work(_: Roster, models: Models) -> None:
        with pytest.raises(ApiError, match="'a' can't be loaded here; the server's log says why") as caught:
            await models.get("a")
        assert caught.value.status == 503 and "secret" not in str(caught.value)
        loader.fails = None
        assert (await models.get("a")).name == "a"

    assert run("a", loader, Residence(), work) == ["+a", "-a"]


def test_who_asked_may_go_while_it_is_loaded() -> None:
    loader = Loader()
    loader.gate.clear()

    async def work(roster: Roster, models: Models) -> None:
        asked = asyncio.create_task(models.get("a"))
        await asyncio.sleep(0.02)
        asked.cancel()
        loader.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert [each.name for each in roster.loaded] == ["a"]

    assert run("a", loader, Residence(), work) == ["+a", "-a"]


def test_what_nobody_asks_for_goes() -> None:
    async def work(roster: Roster, models: Models) -> None:
        await models.get("a")
        while roster.loaded:
            await asyncio.sleep(0.01)
        assert (await models.get("a")).name == "a"

    assert run("a", Loader(), Residence(idle_seconds=0.05), work) == ["+a", "-a", "+a", "-a"]


def test_a_closed_roster_loads_nothing() -> None:
    async def work(roster: Roster, models: Models) -> None:
        await roster.close(0)
        with pytest.raises(ApiError, match="shutting down"):
            await models.get("a")

    assert run("a", Loader(), Residence(), work) == []


def test_two_models_of_one_name() -> None:
    with pytest.raises(ValueError, match="two models have the name 'a'"):
        Models([known("a"), known("a")])
