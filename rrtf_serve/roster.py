"""Several models behind one port: loaded when they are asked for, unloaded when memory is short.

    roster = Roster(known, load, Residence())
    models = Models(roster.known, roster)
    await roster.begin()
    ...
    await roster.close(drain_seconds)

The first is loaded when the server starts, and until then every request for a model hears that it is; the
others are loaded at their first request. A model is unloaded only while no request holds it and nothing of it
waits or runs, the one that was used longest ago first.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from rrtf_serve.api.errors import ApiError, queue_full, shutting_down
from rrtf_serve.api.settings import Known, Served
from rrtf_serve.engine.protocol import Engine, EngineError
from rrtf_serve.memory import available_memory
from rrtf_serve.models.errors import ModelError

log = logging.getLogger(__name__)

# What a model takes beside its weights while it works: keys, values and activations of a full batch.
WORK_SHARE = 0.25
WORK_BYTES = 256 * 2**20
WAIT_SECONDS = 30.0  # for a model that works to become idle, so that another fits
FAILED_SECONDS = 60.0  # for which a model that couldn't be loaded isn't tried again
RETRY_SECONDS = 10.0  # what who can't wait any more is told
PATIENCE_SECONDS = 5.0  # after which who waits for room goes before new requests for the models at work
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Opened:
    """A model in memory."""

    served: Served
    engine: Engine


@dataclass(frozen=True)
class Residence:
    """How many models may be in memory at once (None: as many as fit), and after how many seconds without a
    request one is unloaded (0: never). reserve: bytes that are left free. waiting: requests that may wait for
    models to be loaded. Raises ValueError naming the flag.
    """

    most: int | None = None
    idle_seconds: float = 0.0
    reserve: int = 256 * 2**20
    waiting: int = 64

    def __post_init__(self) -> None:
        if self.most is not None and self.most < 1:
            raise ValueError(f"--max-loaded must be at least 1, not {self.most}")
        if not 0 <= self.idle_seconds < float("inf"):
            raise ValueError(f"--unload-after must be 0 (never) or more, not {self.idle_seconds}")


@dataclass(eq=False)
class _Place:
    known: Known
    opened: Opened | None = None
    opening: asyncio.Future[None] | None = None  # while it is loaded, or room is made for it
    holders: int = 0  # requests that use it, or wait for it
    used: float = field(default_factory=time.monotonic)  # when it was last
    failed: float | None = None  # when it couldn't be loaded

    @property
    def idle(self) -> bool:
        assert self.opened is not None
        scheduler = self.opened.served.scheduler
        return not (self.holders or scheduler.rows_running or scheduler.queue_depth)

    @property
    def bytes(self) -> int:
        """What it takes once it is loaded, by a rule of thumb."""
        weights = self.known.card.size_bytes
        return weights + max(WORK_BYTES, int(WORK_SHARE * weights))


class Roster:
    """load: makes a model's engine and scheduler, in a thread; raises ModelError, ValueError. free: bytes of
    memory that are available, None where nobody knows: then only `most` limits."""

    def __init__(
        self,
        known: Sequence[Known],
        load: Callable[[Known], Opened],
        residence: Residence,
        free: Callable[[], int | None] = available_memory,
    ) -> None:
        self.known = list(known)
        self._places = {each.name: _Place(each) for each in known}
        self._load = load
        self._residence = residence
        self._free = free
        self._changing = asyncio.Lock()  # one load or unload at a time
        self._loads: set[asyncio.Task[None]] = set()
        self._waiting = 0  # requests, for models to be loaded
        self._short_since: float | None = None  # when it was found that a model at work takes another's room
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = False
        self.beginning = False  # while `begin` goes on; and after it failed

    @property
    def rows_running(self) -> int:
        return sum(each.scheduler.rows_running for each in self.loaded)

    @property
    def queue_depth(self) -> int:
        return self._waiting + sum(each.scheduler.queue_depth for each in self.loaded)

    @property
    def loaded(self) -> list[Served]:
        return [each.opened.served for each in self._places.values() if each.opened is not None]

    def is_open(self, known: Known) -> bool:
        return self._places[known.name].opened is not None and not self._gives_way(known)

    def _gives_way(self, known: Known) -> bool:
        """Whether new requests for it wait, so that it becomes idle: without that a model that is asked for
        all the time would keep the others out."""
        since = self._short_since
        if since is None or self._places[known.name].opened is None:
            return False
        return time.monotonic() - since > PATIENCE_SECONDS

    async def begin(self) -> None:
        """Load the first model, and start to unload what nobody asks for. Raises what `load` raises; the
        roster is of no use then."""
        self.beginning = True
        async with self._changing:
            place = self._places[self.known[0].name]
            place.opened = await self._loaded(place)
            place.used = time.monotonic()
        self.beginning = False
        self.start()

    async def open(self, known: Known) -> Served:
        """Raises ApiError 503 where there is no room, where it can't be loaded, and while `begin` goes on;
        429 where too many wait."""
        if self.beginning:
            raise _not_now(f"The model '{self.known[0].name}' is being loaded. Try again shortly.", 5)
        place = self._places[known.name]
        if place.failed is not None and time.monotonic() - place.failed < FAILED_SECONDS:
            raise _failed(place)  # trying again at once would only unload others for it
        while self._gives_way(known):  # not yet one of its holders, or it would never be idle
            with self._one_more_waits():
                await asyncio.sleep(POLL_SECONDS)
        place.holders += 1
        try:
            while place.opened is None:
                await self._wait_for(place)
        except BaseException:
            self.leave(known)
            raise
        return place.opened.served

    def leave(self, known: Known) -> None:
        place = self._places[known.name]
        place.holders -= 1
        place.used = time.monotonic()

    async def _wait_for(self, place: _Place) -> None:
        with self._one_more_waits():
            if place.opening is None:
                place.opening = asyncio.get_running_loop().create_future()
                # A task of its own: who asked may go, and others wait for the same model by then.
                load = asyncio.create_task(self._bring(place, place.opening))
                self._loads.add(load)
                load.add_done_callback(self._loads.discard)
            await asyncio.shield(place.opening)

    @contextmanager
    def _one_more_waits(self) -> Iterator[None]:
        if self._closed:
            raise shutting_down()
        if self._waiting >= self._residence.waiting:
            raise queue_full(RETRY_SECONDS)
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    async def _bring(self, place: _Place, opening: asyncio.Future[None]) -> None:
        """Load it, unless by then nobody waits for it any more."""
        problem: Exception | None = None
        end = time.monotonic() + WAIT_SECONDS  # also for the loads of others that come before
        try:
            async with self._changing:
                try:
                    room = await self._make_room(place, end)
                finally:
                    self._short_since = None
                if room:
                    place.opened = await self._opened(place)
        except Exception as error:  # whatever it is, those who wait must hear of it
            problem = error
        place.opening = None
        _settle(opening, problem)

    async def _opened(self, place: _Place) -> Opened:
        known = place.known
        began = time.monotonic()
        try:
            opened = await self._loaded(place)
        except (ModelError, EngineError, ValueError, MemoryError, OSError) as error:
            log.error("%s can't be loaded: %s", known.name, error)
            place.failed = time.monotonic()
            raise _failed(place) from error
        log.info("%s loaded in %.1f s", known.name, time.monotonic() - began)
        return opened

    async def _loaded(self, place: _Place) -> Opened:
        task = asyncio.ensure_future(asyncio.to_thread(self._load, place.known))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The lock is held until it is done: two models must not be loaded at once.
            place.opened = await task
            raise

    async def _make_room(self, place: _Place, end: float) -> bool:
        """Unload others until this one fits. False: nobody waits for it any more. Raises ApiError 503."""
        if why := self._never_fits(place):
            raise _no_room(place, why)
        while place.holders and not self._closed:
            why = self._lacking(place)
            if not why:
                return True
            idle = [each for each in self._places.values() if each.opened is not None and each.idle]
            if idle:
                await self._unload(min(idle, key=lambda each: each.used))
            elif not self.loaded or time.monotonic() > end:
                raise _no_room(place, why)
            else:
                self._short_since = self._short_since or time.monotonic()
                await asyncio.sleep(POLL_SECONDS)
        return False

    def _never_fits(self, place: _Place) -> str:
        """Why unloading all others wouldn't make room for it either; "" where it would."""
        others = sum(each.bytes for each in self._places.values() if each.opened is not None)
        why = self._short_of_memory(place, others)
        return why and f"{why} without the others"

    def _lacking(self, place: _Place) -> str:
        """Why the model doesn't fit beside those that are loaded; "" where it does."""
        most = self._residence.most
        if most is not None and len(self.loaded) >= most:
            return f"{len(self.loaded)} are loaded and at work, and --max-loaded is {most}"
        return self._short_of_memory(place)

    def _short_of_memory(self, place: _Place, unloaded: int = 0) -> str:
        """`unloaded`: bytes that will be free besides."""
        free = self._free()
        needed = place.bytes + self._residence.reserve
        if free is None or needed <= free + unloaded:
            return ""
        return f"it needs about {needed >> 20} MiB of memory, and {free + unloaded >> 20} MiB are free"

    async def _unload(self, place: _Place) -> None:
        opened, place.opened = place.opened, None
        assert opened is not None
        await opened.served.scheduler.close(0)
        await asyncio.to_thread(opened.engine.close)
        log.info("%s unloaded", place.known.name)

    def start(self) -> None:
        """Begin to unload what nobody asks for; on the event loop."""
        if self._residence.idle_seconds:
            self._sweeper = asyncio.create_task(self._sweep())

    async def _sweep(self) -> None:
        idle_seconds = self._residence.idle_seconds
        while True:
            await asyncio.sleep(max(POLL_SECONDS, min(idle_seconds / 4, 60.0)))
            async with self._changing:
                limit = time.monotonic() - idle_seconds
                for place in self._places.values():
                    if place.opened is not None and place.used < limit and place.idle:
                        await self._unload(place)

    async def close(self, drain_seconds: float) -> None:
        """Accept nothing more, give accepted work its time, and free every model. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        for place in self._places.values():
            if place.opening is not None:
                _settle(place.opening, shutting_down())
        async with asyncio.TaskGroup() as group:
            for served in self.loaded:
                group.create_task(served.scheduler.close(drain_seconds))

    async def release(self) -> None:
        """After `close`: free the memory. Idempotent."""
        async with self._changing:
            for place in self._places.values():
                if place.opened is not None:
                    await self._unload(place)


def _settle(opening: asyncio.Future[None], problem: Exception | None) -> None:
    if opening.done():
        return
    if problem is None:
        opening.set_result(None)
    else:
        opening.set_exception(problem)
        opening.exception()  # seen, even if nobody waits any more


def _no_room(place: _Place, why: str) -> ApiError:
    log.error("%s can't be loaded: %s", place.known.name, why)
    return _not_now(f"The model '{place.known.name}' can't be loaded now: {why}.", 10)


def _failed(place: _Place) -> ApiError:
    return _not_now(
        f"The model '{place.known.name}' can't be loaded here; the server's log says why.",
        int(FAILED_SECONDS),
    )


def _not_now(message: str, retry_seconds: int) -> ApiError:
    return ApiError(
        503,
        message,
        "model_not_loaded",
        type="service_unavailable_error",
        headers={"retry-after": str(retry_seconds)},
    )
