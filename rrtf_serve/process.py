"""The serving process: its address, its start and its orderly end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from rrtf_serve.connection import Lobby, most_connections, protocol

LAST_WORDS_SECONDS = 5  # from the end of the drain to that of the process, what supervisors are told
END_SECONDS = 4  # the same, as it is kept
HEARING_SECONDS = 3  # of these: for clients to read that their request was ended
HASTE_SECONDS = 1  # for the same after a second signal
HASTY_END_SECONDS = 3  # from the second signal to the end of the process
LISTEN_BACKLOG = 2048  # connections that wait while the event loop is busy

log = logging.getLogger(__name__)


class Work(Protocol):
    """What is to be finished before the end: a scheduler, or several."""

    @property
    def queue_depth(self) -> int: ...

    @property
    def rows_running(self) -> int: ...

    async def close(self, drain_seconds: float) -> None: ...


@dataclass(frozen=True)
class Ending:
    """delay_seconds: how long new requests are still taken while /ready says not to send them, so that load
    balancers notice. drain_seconds: what accepted requests then get to finish."""

    drain_seconds: float
    delay_seconds: float = 0.0


class Server(uvicorn.Server):
    """Stops in order: open pages' endless streams, then accepted requests, then the rest.

    The first SIGINT or SIGTERM gives accepted requests the time of `ending`; a second one ends them at once.
    Until then all they ask of the scheduler is accepted: one request may need several steps. Either way the
    scheduler ends them, so that clients hear of it, before their connections are cut. at_last: is told in how
    many seconds the process must be gone, and with which status. SIGHUP calls `hang_up`, where there is one,
    and stops nothing.

    The port is open while `begin` goes on; `greet` is called after it. Where it fails the server ends, and
    `begun` raises what it raised.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        work: Work,
        ending: Ending,
        *,
        begin: Callable[[], Awaitable[None]],
        greet: Callable[[], None],
        hang_up: Callable[[], None] | None,
        at_last: Callable[[float, int], None],
    ) -> None:
        super().__init__(config)
        self._work = work
        self._ending = ending
        self._begin = begin
        self._greet = greet
        self._beginning: asyncio.Task[None] | None = None
        self.interrupted = False  # by SIGINT, before all had begun
        self._failed = False
        self._hang_up = hang_up
        self._at_last = at_last
        self._stopping = False
        self._hurried = asyncio.Event()
        self._closing: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or []:
            sock.listen(LISTEN_BACKLOG)  # asyncio has one number for what waits and what is accepted at once
        self._beginning = asyncio.create_task(self._start())

    async def _start(self) -> None:
        try:
            await self._begin()
        except BaseException:
            self._failed = True
            self.should_exit = True
            self._hurried.set()  # there is no work
            raise
        # Not before: whoever reads the address may use it at once.
        if not self._stopping:
            self._greet()

    async def begun(self) -> None:
        """After `serve`. What is being loaded can't be stopped; a signal now ends the process."""
        assert self._beginning is not None
        if not self._beginning.done():
            log.warning("stopping; the model is still being loaded; a second signal stops now")
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
        await self._beginning

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again, ending the process before its clean-up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop, number)
        if self._hang_up is not None:
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        if self._stopping:
            self.should_exit = True
            self._hurried.set()
            self._at_last(HASTY_END_SECONDS, self.status)
            return
        self._stopping = True
        begun = self._beginning is not None and self._beginning.done()
        self.interrupted = number == signal.SIGINT and not begun
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "readiness"):
            app.state.readiness.draining = True
        if begun and self._ending.delay_seconds:
            log.warning("stopping in %g s; a second signal stops now", self._ending.delay_seconds)
            asyncio.get_running_loop().call_later(self._ending.delay_seconds, self._leave)
        else:
            self._leave()

    @property
    def status(self) -> int:
        """Of the process."""
        return 1 if self._failed else 130 if self.interrupted else 0

    def _leave(self) -> None:
        self.should_exit = True
        running = self._work.rows_running + self._work.queue_depth
        if running:
            log.warning(
                "stopping: up to %g s for %d answers under way; a second Ctrl-C ends them now",
                self._ending.drain_seconds,
                running,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "close_page"):  # no page, no streams
            app.state.close_page()
        cutting = asyncio.create_task(self._cut())
        await super().shutdown(sockets)  # waits until no connection is left
        cutting.cancel()
        with suppress(asyncio.CancelledError):
            await cutting
        self._at_last(END_SECONDS, self.status)
        await asyncio.gather(self._work.close(0), *self._closing)

    async def _cut(self) -> None:
        """End what outlasts its time: by word first, then by cutting connections."""
        await self._hurried_within(self._ending.drain_seconds)
        self._at_last(END_SECONDS, self.status)
        self._closing.append(asyncio.create_task(self._work.close(0)))
        if self._hurried.is_set():
            await asyncio.sleep(HASTE_SECONDS)
        else:
            await self._hurried_within(HEARING_SECONDS)
        # Their handlers hear that the client has gone and end in order; cancelled ones would log a traceback.
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(HASTE_SECONDS)
        self.force_exit = True

    async def _hurried_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurried.wait(), seconds)


async def _nothing() -> None:
    pass


async def run(
    app: FastAPI,
    listener: socket.socket,
    work: Work,
    ending: Ending,
    *,
    begin: Callable[[], Awaitable[None]] = _nothing,
    greet: Callable[[], None],
    hang_up: Callable[[], None] | None = None,
    at_last: Callable[[float, int], None] = lambda _seconds, _status: None,
    trusted_proxies: Sequence[str] = (),
    receive_seconds: float = 30.0,
) -> bool:
    """Serve until a signal says stop; False where SIGINT said so while `begin` still went on. Raises what
    `begin` raises, once the port is closed. trusted_proxies: addresses or networks whose word on the client's
    address and scheme (X-Forwarded-For, X-Forwarded-Proto) is taken. at_last: see Server. receive_seconds:
    see Lobby."""
    try:
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:  # another server that was still loading took the port first
        host, port = listener.getsockname()[:2]
        raise _taken(host, port, error) from error
    server = Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            # Anybody can send these headers: only those that were named are believed.
            proxy_headers=bool(trusted_proxies),
            forwarded_allow_ips=list(trusted_proxies),
            server_header=False,
            # So many are accepted at once: each needs a file before any of them is looked at, and one that
            # has to make room gives its own back some turns of the loop later.
            backlog=max(1, min(LISTEN_BACKLOG, most_connections() // 8)),
            http=protocol(Lobby(receive_seconds)),
        ),
        work,
        ending,
        begin=begin,
        greet=greet,
        hang_up=hang_up,
        at_last=at_last,
    )
    await server.serve(sockets=[listener])
    await server.begun()
    return not server.interrupted


def reserve(host: str, port: int) -> socket.socket:
    """Bind host:port without listening yet. Raises ValueError naming --host or --port."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from error
    return listener


def leave_within(seconds: float, status: int, before: Callable[[], None]) -> None:
    """End this process in so many seconds with this status, whatever still runs: a prompt that is being read
    by native code and a model that is being loaded can't be stopped. before: called then, in another thread.
    """

    def leave() -> None:
        log.warning("ended without waiting for what can't be stopped")
        before()
        os._exit(status)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True  # what ends in time isn't held up by it
    timer.start()


def _taken(host: str, port: int, error: OSError) -> ValueError:
    if error.errno == errno.EADDRNOTAVAIL:
        return ValueError(f"--host {host}: not an address of this machine")
    return ValueError(
        f"--port {port}: can't listen on {host}:{port} ({error.strerror}); is another server running? "
        "Choose another with --port"
    )


def address_of(listener: socket.socket) -> str:
    """The URL a client on this machine uses; a wildcard address is reached through loopback."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
