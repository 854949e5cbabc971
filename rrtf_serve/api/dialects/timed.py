"""A generation that keeps time: for clients that read how long things took, or that limit it.

generation = TimedGeneration(served, job, owner, predict_seconds=1.0)
async for pieces in generation.pieces(): ...
generation.times[0].predicted_seconds       # of row 0; whole once the row has finished
generation.cancel()                         # always, as with Generation
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Literal

from rrtf_serve.api.generation import Generation, Job, Piece, Scored
from rrtf_serve.api.settings import Served
from rrtf_serve.engine.protocol import Delta
from rrtf_serve.engine.scheduler import Stream

StopType = Literal["none", "eos", "word", "limit"]


@dataclass
class Times:
    """Of one row, in time.monotonic() seconds and tokens."""

    accepted: float
    prompt_tokens: int
    first: float | None = None  # when its first token came
    last: float | None = None
    predicted_tokens: int = 0
    stop: StopType = "none"  # eos: an end token, or where an editor's completion ends
    word: str = ""  # the stop string that ended it

    @property
    def prompt_seconds(self) -> float:
        """Until the first token; waiting for others is part of it."""
        return 0.0 if self.first is None else self.first - self.accepted

    @property
    def predicted_seconds(self) -> float:
        """From the first token to the last one."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first


@dataclass
class Made:
    """What one row came to."""

    text: str = ""
    scored: tuple[Scored, ...] = ()


class TimedGeneration(Generation):
    """`predict_seconds`: a row ends so long after its first token, though never within its first line; None:
    no limit."""

    def __init__(
        self, served: Served, job: Job, owner: str | None, *, predict_seconds: float | None = None
    ) -> None:
        super().__init__(served, job, owner)
        now = time.monotonic()
        self.times = [Times(now, len(job.prompts[row // job.copies])) for row in range(job.rows)]
        self._limit = predict_seconds
        self._in_first_line = set(range(job.rows))

    async def pieces(self) -> AsyncIterator[list[Piece]]:
        """As Generation's. Rows that the limit ends finish with "length" and what was made until then."""
        left = set(range(self.job.rows))
        made = super().pieces()
        while left:
            seconds = self._seconds_left(left)
            if seconds is not None and seconds <= 0:
                break
            try:
                async with asyncio.timeout(seconds):
                    pieces = await anext(made)
            except TimeoutError:
                break
            for piece in pieces:
                if "\n" in piece.text:
                    self._in_first_line.discard(piece.row)
                if piece.finish is not None:
                    left.discard(piece.row)
                    times = self.times[piece.row]
                    times.stop = "limit" if times.stop == "none" else times.stop
            yield pieces
        if left:
            self.cancel()
            for row in left:
                self.times[row].stop = "limit"
            yield [Piece(row, "", (), "length") for row in sorted(left)]

    async def whole(self) -> list[Made]:
        """Every row's text, once all have finished."""
        made = [Made() for _ in range(self.job.rows)]
        async for pieces in self.pieces():
            for piece in pieces:
                made[piece.row].text += piece.text
                made[piece.row].scored += piece.scored
        return made

    def _seconds_left(self, rows: set[int]) -> float | None:
        """None: no limit, or not yet. llama.cpp, too, lets the first line be finished."""
        if self._limit is None or rows & self._in_first_line:
            return None
        begun = [first for row in rows if (first := self.times[row].first) is not None]
        return max(begun) + self._limit - time.monotonic()

    def _piece(self, stream: Stream, delta: Delta) -> Piece | None:
        piece = super()._piece(stream, delta)
        times = self.times[delta.row]
        if times.stop == "none":
            if delta.token is not None:
                times.last = time.monotonic()
                times.first = times.last if times.first is None else times.first
                times.predicted_tokens += 1
            if piece is not None and piece.finish is not None:
                times.stop, times.word = _stop_type(piece), piece.stop
        return piece


def _stop_type(piece: Piece) -> StopType:
    if piece.finish == "length":
        return "limit"
    return "word" if piece.stop else "eos"
