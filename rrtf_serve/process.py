"""The serving process: its address, its start and its orderly end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

import uvicorn
from fastapi import FastAPI

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
    many seconds the process must be gone. SIGHUP calls `hang_up`, where there is one, and stops nothing.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        work: Work,
        ending: Ending,
        *,
        greet: Callable[[], None],
        hang_up: Callable[[], None] | None,
        at_last: Callable[[float], None],
    ) -> None:
        super().__init__(config)
        self._work = work
        self._ending = ending
        self._greet = greet
        self._hang_up = hang_up
        self._at_last = at_last
        self._stopping = False
        self._hurried = asyncio.Event()
        self._closing: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Not before: whoever reads the address may use it at once.
        self._greet()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """In place of uvicorn's, which raises the signal again, ending the process before its clean-up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        if self._hang_up is not None:
            loop.add_signal_handler(signal.SIGHUP, self._hang_up)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self._stopping:
            self.should_exit = True
            self._hurried.set()
            self._at_last(HASTY_END_SECONDS)
            return
        self._stopping = True
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "readiness"):
            app.state.readiness.draining = True
        if self._ending.delay_seconds:
            log.warning("stopping in %g s; a second signal stops now", self._ending.delay_seconds)
            asyncio.get_running_loop().call_later(self._ending.delay_seconds, self._leave)
        else:
            self._leave()

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
        self._at_last(END_SECONDS)
        await asyncio.gather(self._work.close(0), *self._closing)

    async def _cut(self) -> None:
        """End what outlasts its time: by word first, then by cutting connections."""
        await self._hurried_within(self._ending.drain_seconds)
        self._at_last(END_SECONDS)
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


async def run(
    app: FastAPI,
    listener: socket.socket,
    work: Work,
    ending: Ending,
    *,
    greet: Callable[[], None],
    hang_up: Callable[[], None] | None = None,
    at_last: Callable[[float], None] = lambda _: None,
    trusted_proxies: Sequence[str] = (),
) -> None:
    """Serve until a signal says stop. trusted_proxies: addresses or networks whose word on the client's
    address and scheme (X-Forwarded-For, X-Forwarded-Proto) is taken. at_last: see Server."""
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
            backlog=LISTEN_BACKLOG,
        ),
        work,
        ending,
        greet=greet,
        hang_up=hang_up,
        at_last=at_last,
    )
    await server.serve(sockets=[listener])


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


def leave_within(seconds: float, before: Callable[[], None]) -> None:
    """End this process in so many seconds, whatever still runs: a prompt that is being read by native code
    and a model that is being loaded can't be stopped. before: called then, in another thread."""

    def leave() -> None:
        log.warning("ended without waiting for what can't be stopped")
        before()
        os._exit(0)

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
