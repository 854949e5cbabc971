"""Server-sent events: one HTTP answer that goes on, and that stops its work when the client has gone.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html, as OpenAI uses it: unnamed events,
each a JSON object, and `data: [DONE]` at the end; a dialect may end it in another way.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rrtf_serve.api.errors import ApiError, internal, note
from rrtf_serve.engine.protocol import EngineError

DONE = b"data: [DONE]\n\n"

log = logging.getLogger(__name__)

Result = TypeVar("Result")


class ClientGone(Exception):  # noqa: N818  # not an error of anybody's
    """The client closed the connection before its answer was ready."""


def event(record: Mapping[str, object]) -> bytes:
    # ASCII only: some clients split lines at U+2028 and its like, which JSON lets stand in strings.
    return b"data: " + json.dumps(record, separators=(",", ":")).encode() + b"\n\n"


class Ending(Protocol):
    """How a dialect's streams end."""

    media_type: str  # of the whole stream
    done: bytes  # after the last event

    def failure(self, error: ApiError) -> bytes:
        """In place of `done`, where the stream failed."""


class OpenAiEnding:
    """As OpenAI's SDKs read it: they raise an event {"error": ...} as APIError."""

    media_type = "text/event-stream"
    done = DONE

    def failure(self, error: ApiError) -> bytes:
        return event(error.body())


_OPENAI = OpenAiEnding()


class EventStream(Response):
    """Sends `events` as they come, ends as `ending` says, and calls `close` in every case.

    A failure after the first byte can't change the status any more: it goes out as the stream's last event.
    """

    def __init__(
        self,
        events: AsyncIterator[bytes],
        close: Callable[[], None],
        headers: Mapping[str, str],
        ending: Ending = _OPENAI,
    ) -> None:
        # x-accel-buffering: nginx holds back small writes otherwise.
        super().__init__(
            headers={**headers, "cache-control": "no-cache", "x-accel-buffering": "no"},
            media_type=ending.media_type,
        )
        del self.headers["content-length"]
        self._events = events
        self._close = close
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless_gone(receive, self._send_all(scope, send))
        except (ClientGone, OSError):
            pass  # nobody is left to tell
        finally:
            self._close()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        last = self._ending.done
        try:
            async for chunk in self._events:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ApiError as error:
            note(scope, error)
            last = self._ending.failure(error)
        except EngineError:
            request_id = scope.get("rrtf.request_id", "unknown")
            log.exception("request %s failed in mid-stream", request_id)
            problem = internal(request_id)
            note(scope, problem)
            last = self._ending.failure(problem)
        await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """The work's result. Once the client disconnects the work is cancelled; raises ClientGone."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        # Both must have ended before the answer does; what they raise now was raised above or is of no use.
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
