"""One HTTP request on its way through the server: what it may use, and what became of it.

`current()` finds it from anywhere below the outermost layer, so that generation can keep count without every
endpoint handing it on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.limits import Account
from rrtf_serve.engine.ticket import Ticket


@dataclass(eq=False)
class Visit:
    """Times are of time.monotonic(), in seconds."""

    request_id: str = ""
    method: str = ""
    path: str = ""
    client: str = ""  # address
    started: float = field(default_factory=time.monotonic)
    # What it may use.
    deadline: float | None = None
    max_prompt_tokens: int | None = None
    receive_seconds: float | None = None  # see api/body
    account: Account | None = None
    keep_prompts: bool = False
    receive: Receive | None = None  # what its client sends; None: nobody can leave
    leaving: list[Callable[[], None]] = field(default_factory=list)  # called at its end: what it gives back
    # What became of it.
    key: str | None = None  # name, never the key
    owner: str | None = None  # the key's digest
    route: str = "unmatched"  # template, so that there are few
    status: int | None = None  # None: the client had gone before there was one
    complete: bool = False  # the answer went out to its end
    gone: bool = False  # the client went before that
    error: str | None = None  # code
    model: str | None = None
    rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reserved: int = 0  # tokens
    queue_seconds: float | None = None
    first_token_seconds: float | None = None  # from `started`
    finishes: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    ended: float = 0.0

    def ticket(self) -> Ticket:
        """For work that is no generation."""
        return Ticket(self.owner, deadline=self.deadline)

    def reserve(self, longest: int, tokens: int) -> None:
        """Before a generation of at most `tokens` in all, with prompts up to `longest`. Raises ApiError."""
        if self.max_prompt_tokens is not None and longest > self.max_prompt_tokens:
            raise ApiError(
                400,
                f"The prompt has {longest} tokens; this server takes at most {self.max_prompt_tokens}. "
                "Please send less context.",
                "context_length_exceeded",
                path=("prompt",),
                extra={"n_prompt_tokens": longest, "n_ctx": self.max_prompt_tokens},
            )
        if self.account is not None:
            self.account.reserve(tokens)
            self.reserved += tokens

    def accepted(self, model: str, rows: int, prompt_tokens: int, texts: Callable[[], list[str]]) -> None:
        """A generation was queued. texts: its prompts, made only where they are to be kept."""
        self.model = model
        self.rows += rows
        self.prompt_tokens += prompt_tokens
        if self.keep_prompts:
            self.prompts += texts()

    def token(self) -> None:
        """A token was made for it."""
        self.completion_tokens += 1
        if self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.started


_CURRENT: ContextVar[Visit] = ContextVar("rrtf_visit")


def current() -> Visit:
    """The request under way; outside of any, one that nobody looks at."""
    return _CURRENT.get(Visit())


@contextmanager
def under(visit: Visit) -> Iterator[None]:
    """What is done for it; at the end it gives back what it held."""
    token = _CURRENT.set(visit)
    try:
        yield
    finally:
        _CURRENT.reset(token)
        for give_back in visit.leaving:
            give_back()


class Visits:
    """The outermost layer: begins each visit, sees how it ends, and tells those who want to know.

    Plain ASGI: starlette's BaseHTTPMiddleware hides disconnects from streaming answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        begin: Callable[[Scope], Visit],
        find: Callable[[Scope], str],
        tell: tuple[Callable[[Visit], None], ...],
    ) -> None:
        """begin: makes the visit of a request. find: its route. tell: who is told once it has ended."""
        self._app = app
        self._begin = begin
        self._tell = tell
        self._find = find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = self._begin(scope)
        scope["rrtf.request_id"] = visit.request_id

        async def receive_noting() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not visit.complete:
                visit.gone = True
            return message

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                added = {"x-request-id": visit.request_id}
                if visit.account is not None:
                    added |= visit.account.headers()
                kept = [pair for pair in message["headers"] if pair[0].decode("latin-1").lower() not in added]
                more = [(name.encode(), value.encode("latin-1")) for name, value in added.items()]
                message = {**message, "headers": [*kept, *more]}
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                visit.complete = True

        visit.receive = receive_noting
        try:
            with under(visit):
                await self._app(scope, receive_noting, send_noting)
        finally:
            visit.receive = None  # which holds the visit
            visit.route = self._find(scope)
            visit.error = scope.get("rrtf.error")
            visit.ended = time.monotonic()
            for tell in self._tell:
                tell(visit)
