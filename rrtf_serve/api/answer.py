"""The way from a job to an HTTP answer, the same for completions and chat: streamed, or whole."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from rrtf_serve.api.generation import Generation, Job, Piece, Scored, mean_logprob
from rrtf_serve.api.settings import Served
from rrtf_serve.api.shapes import Shape, usage_record
from rrtf_serve.api.sse import EventStream, unless_gone


@dataclass(frozen=True)
class Echo:
    """A prompt that goes before each of its completions, with its tokens' log-probabilities if asked for."""

    text: str
    scored: tuple[Scored, ...] = ()


@dataclass(frozen=True)
class Plan:
    job: Job
    shape: Shape
    stream: bool = False
    include_usage: bool = False
    keep: int = 1  # of job.copies, the best by mean log-probability
    echoes: tuple[Echo, ...] = ()  # per prompt; none: no echo
    show_logprobs: bool = False  # those of a ranking stay inside
    dropped: tuple[str, ...] = ()

    @property
    def prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.job.prompts)


async def answer(request: HttpRequest, served: Served, plan: Plan) -> Response:
    """Raises ApiError, EngineError."""
    generation = Generation(served, plan.job, request.scope["rrtf.owner"])
    headers = {"x-rrtf-dropped": ", ".join(plan.dropped)} if plan.dropped else {}
    if plan.stream:
        return EventStream(_events(generation, plan), generation.cancel, headers, plan.shape)
    try:
        record = await unless_gone(request.receive, _whole(generation, plan))
    finally:
        generation.cancel()
    return Response(json.dumps(record), headers=headers, media_type="application/json")


async def _events(generation: Generation, plan: Plan) -> AsyncIterator[bytes]:
    shape, echoes, copies = plan.shape, plan.echoes, plan.job.copies
    opening = shape.opening(plan.job.rows)
    for prompt, echo in enumerate(echoes):
        for row in range(prompt * copies, (prompt + 1) * copies):
            opening += shape.chunk(Piece(row, echo.text, echo.scored))
    if opening:
        yield opening
    async for made in generation.pieces():
        pieces = (
            [_shifted(piece, len(echoes[piece.row // copies].text)) for piece in made] if echoes else made
        )
        chunks = b"".join(map(shape.chunk, pieces))
        if chunks:
            yield chunks
    if plan.include_usage:
        yield shape.usage(usage_record(plan.prompt_tokens, generation.completion_tokens))


async def _whole(generation: Generation, plan: Plan) -> object:
    job = plan.job
    texts: list[list[str]] = [[] for _ in range(job.rows)]
    scored: list[list[Scored]] = [[] for _ in range(job.rows)]
    finishes: list[Piece | None] = [None] * job.rows
    async for pieces in generation.pieces():
        for piece in pieces:
            texts[piece.row].append(piece.text)
            scored[piece.row] += piece.scored
            if piece.finish is not None:
                finishes[piece.row] = piece
    choices: list[Piece] = []
    for prompt in range(len(job.prompts)):
        rows = list(range(prompt * job.copies, (prompt + 1) * job.copies))
        if plan.keep < job.copies:
            rows.sort(key=lambda row: mean_logprob(scored[row]), reverse=True)
        for row in rows[: plan.keep]:
            last = finishes[row]
            assert last is not None, "the scheduler ended a stream before its rows"
            shown = tuple(scored[row]) if plan.show_logprobs else ()
            piece = Piece(len(choices), "".join(texts[row]), shown, last.finish, last.stop)
            choices.append(_with_echo(piece, plan.echoes[prompt]) if plan.echoes else piece)
    return plan.shape.whole(choices, usage_record(plan.prompt_tokens, generation.completion_tokens))


def _with_echo(piece: Piece, echo: Echo) -> Piece:
    shifted = _shifted(piece, len(echo.text))
    return replace(piece, text=echo.text + piece.text, scored=echo.scored + shifted.scored)


def _shifted(piece: Piece, characters: int) -> Piece:
    if not piece.scored:
        return piece
    scored = tuple(
        Scored(record.token, record.offset + characters, record.logprob, record.top)
        for record in piece.scored
    )
    return replace(piece, scored=scored)
