"""The serving process: its address, its start and its orderly end."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from rrtf_serve.engine.scheduler import Scheduler

LAST_WORDS_SECONDS = 5  # for clients to hear that their request was ended
LISTEN_BACKLOG = 2048  # connections that wait while the event loop is busy

log = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """Stops in order: open pages' endless streams, then accepted requests, then the rest.

    The first SIGINT or SIGTERM gives accepted requests `drain_seconds`; a second one ends them at once.
    Either way the scheduler ends them, so that clients hear of it, before uvicorn cuts their connections.
    """

    def __init__(
        self, config: uvicorn.Config, scheduler: Scheduler, drain_seconds: float, greet: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._scheduler = scheduler
        self._drain_seconds = drain_seconds
        self._greet = greet
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
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        if self.should_exit:
            self._closing.append(asyncio.create_task(self._scheduler.close(0)))
            return
        self.should_exit = True
        running = self._scheduler.rows_running + self._scheduler.queue_depth
        if running:
            log.warning(
                "stopping: up to %g s for %d answers under way; a second Ctrl-C ends them now",
                self._drain_seconds,
                running,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "close_page"):  # no page, no streams
            app.state.close_page()
        self._closing.append(asyncio.create_task(self._scheduler.close(self._drain_seconds)))
        await super().shutdown(sockets)
        await asyncio.gather(*self._closing)


async def run(
    app: FastAPI,
    listener: socket.socket,
    scheduler: Scheduler,
    drain_seconds: float,
    *,
    greet: Callable[[], None],
) -> None:
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
            timeout_graceful_shutdown=round(drain_seconds) + LAST_WORDS_SECONDS,
            # Behind TLS or a proxy of the user's own; never trusted by default.
            proxy_headers=False,
            server_header=False,
            backlog=LISTEN_BACKLOG,
        ),
        scheduler,
        drain_seconds,
        greet,
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
