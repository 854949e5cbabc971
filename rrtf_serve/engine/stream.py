"""What a submitter gets from the scheduler: the deltas of its rows, on its own event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from rrtf_serve.engine.observer import Ending
from rrtf_serve.engine.protocol import Delta


class QueueFull(Exception):  # noqa: N818 - named like the standard library's queues name it
    """Too much waits. `waiting`: what does, in words. `retry_after_s`: seconds after which there is likely to
    be room."""

    def __init__(self, waiting: str, retry_after_s: float) -> None:
        super().__init__(f"{waiting} already; try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class SchedulerClosed(Exception):  # noqa: N818 - a state, as QueueFull is
    """Nothing is accepted any more: the server is shutting down."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class DeadlineExceeded(Exception):  # noqa: N818 - as QueueFull
    """The job's deadline passed before all of its rows had ended."""

    def __init__(self) -> None:
        super().__init__("the time limit of this request passed before its answer was complete")


class Replaced(Exception):  # noqa: N818 - as QueueFull
    """The same editor has asked for something newer."""

    def __init__(self) -> None:
        super().__init__("a newer request of the same editor replaced this one")


class Stream:
    """The deltas of one `submit`, for one consumer on the event loop that submitted it.

    Ends once every row has. Raises EngineError where the batch failed, ValueError where the engine refused
    the requests, DeadlineExceeded, Replaced.
    """

    # How long it waited for its batch, in seconds; None while it does.
    queue_seconds: float | None = None

    def __init__(self, rows: int, cancel: Callable[[int, Ending], None]) -> None:
        self.loop = asyncio.get_running_loop()
        self._open = set(range(rows))
        self._ready: list[Delta] = []
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._cancel = cancel
        self._timer: asyncio.TimerHandle | None = None

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> list[Delta]:
        """All deltas since the last call; waits for at least one."""
        while not self._ready:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if not self._open:
                raise StopAsyncIteration
            self._waiter = self.loop.create_future()
            await self._waiter
        deltas, self._ready = self._ready, []
        return deltas

    def cancel(self, row: int | None = None, how: Ending = "cancelled") -> None:
        """End one row or all; on the event loop only. They end for the reader at once, with "cancelled".

        how: what the scheduler's observer is told, such as "stop" where the reader has all that it wanted.
        """
        for number in sorted(self._open) if row is None else [row]:
            if number in self._open:
                self._cancel(number, how)
                self.push([Delta(number, None, "cancelled")])

    def call_at(self, deadline: float, function: Callable[[], None]) -> None:
        """Call it on the event loop at `deadline` (time.monotonic() seconds), unless every row has ended."""
        # From now: an event loop may have a clock of its own.
        self._timer = self.loop.call_later(max(0.0, deadline - time.monotonic()), function)

    def push(self, deltas: list[Delta]) -> None:
        """The scheduler's side, on the event loop: what a row does after its end is dropped."""
        for delta in deltas:
            if delta.row in self._open:
                self._ready.append(delta)
                if delta.finish is not None:
                    self._open.discard(delta.row)
        self._wake()

    def fail(self, error: Exception) -> None:
        """The scheduler's side, on the event loop: end with `error`, unless every row has ended already."""
        if self._open:
            self._error = error
            self._open.clear()
        self._wake()

    def _wake(self) -> None:
        if self._timer is not None and not self._open:
            self._timer.cancel()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def call(loop: asyncio.AbstractEventLoop, function: Callable[[], None]) -> bool:
    """Run it on the loop, from any thread. False where the loop is gone, and with it whoever would listen."""
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        if loop.is_closed():
            return False
        raise
    return True
