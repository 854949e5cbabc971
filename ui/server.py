"""The page's view of the server: the same public HTTP API that every other client uses."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import openai
from openai.types import Completion, CompletionChoice
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from rrtf_serve.api.completions import INTERACTIVE

# A request may wait long in the server's queue; a server that takes no connection is gone.
TIMEOUT = openai.Timeout(600.0, connect=5.0)


class AnswerError(Exception):
    """The server did not answer, or refused; the text is for the user."""


@dataclass(frozen=True)
class Options:
    """Sampling options of one request; `max_tokens` counts new tokens."""

    max_tokens: int
    temperature: float
    top_p: float = 1.0


@dataclass(frozen=True)
class Progress:
    """An answer so far. Times are seconds since the request was sent; `tokens` is known at the end only."""

    text: str = ""
    finish: str | None = None
    tokens: int | None = None
    first_after: float | None = None
    elapsed: float = 0.0


class Server:
    """The API at `base_url` (it ends in /v1). One connection pool; made for one event loop.

    `key` in its methods: the API key with which they ask; None or "": none.
    """

    def __init__(self, base_url: str) -> None:
        self.base_url = base_url
        # The page sits beside its server: a proxy from the environment would only get in the way. No silent
        # retries: a busy server is said to be busy at once, and the user decides.
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key="none",
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(timeout=TIMEOUT, trust_env=False),
        )
        self._model: str | None = None
        self.infill = True  # what the model's last seen record says

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next request."""
        await self._client.close()

    async def card(self, *, key: str | None) -> dict[str, Any]:
        """The served model's record in GET /v1/models. Raises AnswerError."""
        try:
            page = await self._as(key).models.list()
        except openai.OpenAIError as error:
            raise AnswerError(explain(error)) from error
        if not page.data:
            raise AnswerError("The server lists no model. Start it again with --model NAME.")
        record: dict[str, Any] = page.data[0].model_dump()
        self._model = record["id"]
        self.infill = bool(record.get("infill", True))
        return record

    async def chat(
        self, messages: Iterable[ChatCompletionMessageParam], options: Options, *, key: str | None
    ) -> AsyncGenerator[Progress]:
        """Stream an answer. Closing the iterator closes the connection, which stops the engine.

        Raises AnswerError.
        """
        started = time.monotonic()
        try:
            stream = await self._as(key).chat.completions.create(
                model=self._model or (await self.card(key=key))["id"],
                messages=list(messages),
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with aclosing(_follow(stream, started)) as progresses:
                async for progress in progresses:
                    yield progress
        except openai.OpenAIError as error:
            raise AnswerError(self._explained(error)) from error

    async def complete(
        self, prompt: str, suffix: str | None, options: Options, *, key: str | None
    ) -> AsyncGenerator[Progress]:
        """Stream what belongs after `prompt`, and before `suffix` where one is given; closes as `chat` does.

        Raises AnswerError.
        """
        started = time.monotonic()
        try:
            stream = await self._as(key).completions.create(
                model=self._model or (await self.card(key=key))["id"],
                prompt=prompt,
                suffix=openai.omit if suffix is None else suffix,
                # The page's own limits hold; an editor's answer would end with the block.
                extra_headers={INTERACTIVE: "false"},
                # Small chat models end code as they would in a chat: with a fence, and prose after it.
                stop=openai.omit if "```" in prompt + (suffix or "") else ["\n```"],
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                stream=True,
                stream_options={"include_usage": True},
            )
            async with aclosing(_follow(stream, started)) as progresses:
                async for progress in progresses:
                    yield progress
        except openai.OpenAIError as error:
            raise AnswerError(self._explained(error)) from error

    def _as(self, key: str | None) -> openai.AsyncOpenAI:
        """A client with this key, on the same connections."""
        return self._client.with_options(api_key=key) if key else self._client

    def _explained(self, error: openai.OpenAIError) -> str:
        if isinstance(error, openai.NotFoundError):
            self._model = None  # another model is served by now: ask for its name again
        return explain(error)


async def _follow(
    stream: openai.AsyncStream[ChatCompletionChunk] | openai.AsyncStream[Completion], started: float
) -> AsyncGenerator[Progress]:
    progress = Progress()
    async with stream:
        async for chunk in stream:
            progress = replace(progress, elapsed=time.monotonic() - started)
            if chunk.usage is not None:
                progress = replace(progress, tokens=chunk.usage.completion_tokens)
            for choice in chunk.choices:
                piece = choice.text if isinstance(choice, CompletionChoice) else choice.delta.content
                if piece and progress.first_after is None:
                    progress = replace(progress, first_after=progress.elapsed)
                progress = replace(
                    progress,
                    text=progress.text + (piece or ""),
                    finish=choice.finish_reason or progress.finish,
                )
            yield progress


def explain(error: openai.OpenAIError) -> str:
    """One or two sentences for the user; the server's own words wherever it said something."""
    match error:
        case openai.RateLimitError():
            wait = error.response.headers.get("retry-after", "")
            again = f"in {wait} s" if wait.isdecimal() else "in a moment"
            text = f"The server is busy: every place in its queue is taken. Try again {again}."
        case openai.APITimeoutError():
            text = "The server took too long to answer. It may be busy; try again, or ask for fewer tokens."
        case openai.APIConnectionError():
            text = "The connection to the server is gone. Is it still running? Start it again, then resend."
        case openai.AuthenticationError():
            text = f"The server did not accept the page's key: {_said(error)}"
        case openai.APIStatusError() if error.status_code >= 500:
            text = f"The server failed ({error.status_code}): {_said(error)}"
        case openai.APIError():
            text = _said(error)
        case _:
            text = str(error)
    return text


def _said(error: openai.APIError) -> str:
    """The message of the error object, without the SDK's "Error code: 400 - {...}" around it."""
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str):
        return str(body["message"])
    return error.message
