"""A client's connection: how long a request may take to arrive, and how many connections may be open.

    uvicorn.Config(app, http=protocol(Lobby(30.0)))

A connection waits while nothing of a request is under way, or while its request is not all there. One that
waits too long is closed. So is the one that has waited longest where more are open than may be: whoever sends
a whole request at once is served, however many others hold connections open. Requests that are being answered
are not touched, however slowly their answers are read.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from dataclasses import dataclass, field

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rrtf_serve.api.body import PROGRESS_BYTES

# A body that comes too slowly is answered by who reads it (api/body); this is for what nobody reads.
GRACE_SECONDS = 5.0
WARN_SECONDS = 60.0

log = logging.getLogger(__name__)


def most_connections() -> int:
    """Half of the files that this process may open: the page, too, opens a connection for each request."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (2**20 if files == resource.RLIM_INFINITY else files) // 2)


@dataclass
class Lobby:
    """The connections of a server that wait. seconds: for a request's line and headers, and for each
    PROGRESS_BYTES of its body."""

    seconds: float
    waiting: dict[Connection, None] = field(default_factory=dict)  # the longest first
    warned: float = float("-inf")

    def make_room(self) -> None:
        """One connection has come too many."""
        longest = next(iter(self.waiting), None)  # the new one, where all others are at work
        if longest is not None:  # else even that has gone already
            longest.leave()
        now = time.monotonic()
        if now - self.warned > WARN_SECONDS:
            self.warned = now
            log.warning(
                "%d connections are open, as many as may be: those that wait are closed, the longest first; "
                "a higher limit on open files (ulimit -n, LimitNOFILE) allows more",
                most_connections(),
            )


class Connection(H11Protocol):
    """uvicorn's, with an eye on the clock. Of its own there is no limit on how long a request may take."""

    lobby: Lobby
    _timer: asyncio.TimerHandle | None = None
    _timed: type[h11.IDLE] | type[h11.SEND_BODY] | None = None  # which part of the request the timer is for
    _received = 0  # bytes since the timer was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        super().connection_made(transport)
        self.lobby.waiting[self] = None
        self._watch()
        if len(self.connections) > most_connections():
            self.lobby.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._received += len(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.IDLE:  # until something comes uvicorn's own timer runs
            self.lobby.waiting[self] = None
        else:
            self._watch()

    def leave(self) -> None:
        self._forget()
        self.transport.close()

    def _forget(self) -> None:
        self.lobby.waiting.pop(self, None)
        self._set(None)

    def _watch(self) -> None:
        """See what is missing of the request."""
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            self._forget()  # the latter: it is a WebSocket's now
            return
        part = self.conn.their_state
        if part is h11.IDLE or part is h11.SEND_BODY:
            self.lobby.waiting.setdefault(self)
            if part is not self._timed:
                self._set(part)
        else:
            self._forget()

    def _set(self, part: type[h11.IDLE] | type[h11.SEND_BODY] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timed, self._received = None, part, 0
        if part is not None:
            grace = GRACE_SECONDS if part is h11.SEND_BODY else 0.0
            self._timer = self.loop.call_later(self.lobby.seconds + grace, self._expire)

    def _expire(self) -> None:
        # A body that isn't read comes no further, and that isn't the client's doing.
        goes_on = self._received >= PROGRESS_BYTES or self.flow.read_paused
        if self._timed is h11.SEND_BODY and goes_on:
            self._set(self._timed)
        else:
            self.leave()


def protocol(lobby: Lobby) -> type[Connection]:
    """What uvicorn makes of each connection."""

    class Client(Connection):
        pass

    Client.lobby = lobby
    return Client
