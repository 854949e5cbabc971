"""From a checked request to pieces of text: what every dialect of the API shares.

    generation = Generation(served, job, owner)      # submitted; ApiError 429 when the queue is full
    async for pieces in generation.pieces(): ...     # text, log-probabilities, finish reasons, per row
    generation.cancel()                              # always: stops whatever still runs

Row p * copies + c is copy c of prompt p, as OpenAI numbers its choices.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from rrtf_serve.api.errors import (
    ApiError,
    FieldPath,
    context_length_exceeded,
    deadline_exceeded,
    queue_full,
    replaced,
    shutting_down,
)
from rrtf_serve.api.settings import Served
from rrtf_serve.api.trimming import Cursor, Trim
from rrtf_serve.api.visit import current
from rrtf_serve.engine.protocol import Delta, Request, Sampling, TokenLogprob
from rrtf_serve.engine.scheduler import QueueFull, SchedulerClosed, Stream
from rrtf_serve.engine.stream import DeadlineExceeded, Replaced
from rrtf_serve.engine.ticket import Editing, Ticket
from rrtf_serve.models.tokens import TextStream, Tokenizer

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Job:
    prompts: tuple[tuple[int, ...], ...]  # token ids, none empty
    copies: int  # rows per prompt
    max_tokens: tuple[int, ...]  # per prompt
    sampling: Sampling
    end_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    interactive: bool = False  # as in Ticket, and so is editor
    editor: Editing | None = None
    cursor: Cursor | None = None  # ends each row as editors expect
    min_tokens: int = 0  # before an end token may end a row

    @property
    def rows(self) -> int:
        return len(self.prompts) * self.copies


@dataclass(frozen=True, slots=True)
class Scored:
    """A token, its log-probability (None: nothing stood before it), and where in the row its text begins."""

    token: int
    offset: int  # characters
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    row: int
    text: str
    scored: tuple[Scored, ...] = ()
    finish: Finish | None = None
    stop: str = ""  # the stop string that ended it, which isn't part of the text


def _of_copy(sampling: Sampling, copy: int) -> Sampling:
    """One seed for all would give the same text for all: each choice has its own, the first the one given."""
    if sampling.seed is None or not copy:
        return sampling
    return replace(sampling, seed=sampling.seed + copy)


def room(context: int, prompt: int, asked: int | None, default: int, path: FieldPath) -> int:
    """How many tokens may be generated after `prompt` tokens: as many as are asked for, or as the context
    leaves where that is less. Raises ApiError context_length_exceeded where it leaves none."""
    wanted = default if asked is None else asked
    least = min(wanted, 1)  # none: the prompt alone is asked about, and may fill the context
    if prompt + least > context:
        raise context_length_exceeded(prompt, least, context, path)
    return min(wanted, context - prompt)


def reserve(served: Served, job: Job) -> None:
    """Before any of it is read: its tokens count for its client's limits. Raises ApiError 400 or 429."""
    visit = current()
    prompts = [len(prompt) for prompt in job.prompts]
    # An engine that admits reads in pieces: it stops in time, and may remember what a prompt begins with.
    if served.prefill_speed is not None and not served.scheduler.capabilities.admission:
        visit.check_reading(job.copies * sum(prompts), served.prefill_speed)
    visit.reserve(max(prompts), sum(prompts) + job.copies * sum(job.max_tokens))


class Generation:
    def __init__(self, served: Served, job: Job, owner: str | None) -> None:
        self.job = job
        self.completion_tokens = 0
        scored = job.sampling.logprobs is not None
        self._rows = [_Row(row, served.tokenizer, job, scored) for row in range(job.rows)]
        self._running = job.rows
        self._visit = current()
        self._stream: Stream | None = None
        if not any(job.max_tokens):  # nothing to generate: echo alone
            return
        requests = [
            Request(prompt, tokens, job.end_ids, _of_copy(job.sampling, copy), job.min_tokens, owner)
            for prompt, tokens in zip(job.prompts, job.max_tokens, strict=True)
            for copy in range(job.copies)
        ]
        reserve(served, job)
        with refusals(("prompt",)):
            ticket = Ticket(owner, job.interactive, job.editor, self._visit.deadline)
            self._stream = served.scheduler.submit(requests, ticket)
        self._visit.accepted(
            served.name, job.rows, sum(map(len, job.prompts)), partial(_texts, served.tokenizer, job)
        )

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """Ends once every row has finished. Raises EngineError, ApiError when the server stops meanwhile."""
        if self._stream is None:
            yield [Piece(row.number, "", (), "length") for row in self._rows]
            return
        stream = self._stream
        while self._running:
            with refusals(("prompt",)):
                deltas = await anext(stream)
            if self._visit.queue_seconds is None:
                self._visit.queue_seconds = stream.queue_seconds
            pieces = [piece for delta in deltas if (piece := self._piece(stream, delta)) is not None]
            if pieces:
                yield pieces

    def _piece(self, stream: Stream, delta: Delta) -> Piece | None:
        row = self._rows[delta.row]
        if row.finished:  # what the engine made before it heard of the stop
            return None
        if delta.token is not None:
            self.completion_tokens += 1
            self._visit.token()
        piece = row.push(delta)
        if row.finished:
            self._running -= 1
            if piece is not None and piece.finish is not None:
                self._visit.finishes.append(piece.finish)
            if delta.finish is None:
                stream.cancel(delta.row, "stop")
        return piece

    def cancel(self) -> None:
        if self._stream is not None and self._running:
            self._stream.cancel()


def _texts(tokenizer: Tokenizer, job: Job) -> list[str]:
    return [tokenizer.decode(prompt, skip_specials=False) for prompt in job.prompts]


class _Row:
    __slots__ = ("_emitted", "_ledger", "_stream", "_trim", "finished", "number")

    def __init__(self, number: int, tokenizer: Tokenizer, job: Job, scored: bool) -> None:
        self.number = number
        self.finished = False
        self._stream = TextStream(tokenizer, job.stops)
        self._trim = None if job.cursor is None else Trim(job.cursor)
        self._ledger = _Ledger() if scored else None
        self._emitted = 0  # characters

    def push(self, delta: Delta) -> Piece | None:
        """None while there is nothing to tell: the text is held back for a character or a stop string."""
        if delta.finish == "cancelled":
            raise shutting_down()  # no other than the scheduler's closing cancels a row that still counts
        text, stopped = "", False
        if delta.token is not None:
            text, stopped = self._stream.push(delta.token)
            if self._ledger is not None and delta.logprob is not None:
                self._ledger.add(self._stream.offset, delta.logprob)
        finish: Finish | None = "stop" if stopped else delta.finish
        if finish is not None and not stopped:
            text += self._stream.flush()
        cut, stop = stopped, self._stream.stop
        if self._trim is not None:
            text, ended = self._trim.push(text)
            if finish is not None:
                text += self._trim.flush()
            finish, cut, stop = "stop" if ended else finish, True, "" if ended else stop
        self.finished = finish is not None
        self._emitted += len(text)
        whole = self.finished and not cut
        scored = self._ledger.take(math.inf if whole else self._emitted) if self._ledger is not None else ()
        if not (text or scored or self.finished):
            return None
        return Piece(self.number, text, scored, finish, stop)


class _Ledger:
    """Hands out log-probabilities together with the text they belong to.

    Text may come out later than its token (half a character, half a stop string) or never (cut by a stop
    string); a record leaves once text beyond its token's beginning has. Tokens without text of their own, as
    the first bytes of a character, so go with the token that completes it.
    """

    def __init__(self) -> None:
        self._waiting: list[Scored] = []

    def add(self, offset: int, record: TokenLogprob) -> None:
        self._waiting.append(Scored(record.token, offset, record.logprob, record.top))

    def take(self, emitted: float) -> tuple[Scored, ...]:
        """Records of the tokens that begin within the first `emitted` characters."""
        count = sum(record.offset < emitted for record in self._waiting)  # offsets never fall
        taken = tuple(self._waiting[:count])
        del self._waiting[:count]
        return taken


def mean_logprob(scored: list[Scored]) -> float:
    """Per token, natural log; minus infinity for an empty completion, so that it ranks last."""
    values = [record.logprob for record in scored if record.logprob is not None]
    return sum(values) / len(values) if values else -math.inf


@contextmanager
def refusals(path: FieldPath) -> Iterator[None]:
    """Turn what the scheduler and the engine refuse into the client's error."""
    try:
        yield
    except QueueFull as error:
        raise queue_full(error.retry_after_s) from error
    except SchedulerClosed as error:
        raise shutting_down() from error
    except DeadlineExceeded as error:
        raise deadline_exceeded() from error
    except Replaced as error:
        raise replaced() from error
    except ValueError as error:
        raise ApiError(400, str(error), "invalid_value", path=path) from error
