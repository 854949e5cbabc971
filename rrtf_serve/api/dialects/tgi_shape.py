"""TGI's answers: whole, in events, and errors."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from rrtf_serve.api.errors import ApiError
from rrtf_serve.api.generation import Piece, Scored
from rrtf_serve.api.kinds import Schema
from rrtf_serve.api.shapes import IMPOSSIBLE, Record
from rrtf_serve.api.sse import event
from rrtf_serve.models.tokens import Tokenizer

ERROR: Schema = {
    "type": "object",
    "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
    "required": ["error", "error_type"],
}

_TYPES = {429: "overloaded", 500: "generation", 503: "overloaded"}


def error_body(error: ApiError) -> dict[str, object]:
    """`error_type` is one of those that TGI's clients tell apart."""
    return {"error": error.message, "error_type": _TYPES.get(error.status, "validation")}


class TgiShape:
    """before: what goes before the whole text in the end. stops: the client's own stop strings. keeps_stop:
    whether the one that was reached stays at the text's end, as it does at TGI. listed: a whole answer is a
    list of one."""

    media_type = "text/event-stream"
    done = b""

    def __init__(
        self,
        tokenizer: Tokenizer,
        before: str,
        *,
        details: bool,
        seed: int | None,
        stops: tuple[str, ...],
        keeps_stop: bool,
        listed: bool,
    ) -> None:
        self.id = secrets.token_hex(12)
        self._tokenizer = tokenizer
        self._before = before
        self._details = details
        self._seed = seed
        self._stops = stops
        self._keeps_stop = keeps_stop
        self._listed = listed
        self._text = ""
        self._events = 0
        self._tokens = 0

    def failure(self, error: ApiError) -> bytes:
        return event(error_body(error))

    def opening(self, _rows: int, /) -> bytes:
        return b""

    def chunk(self, piece: Piece) -> bytes:
        text = self._with_stop(piece)
        self._text += text
        self._tokens += len(piece.scored)
        self._events += 1
        last = piece.scored[-1] if piece.scored else None
        token: Record = {
            "id": last.token if last else 0,
            "text": text,
            "logprob": _finite(last),
            "special": not text,
        }
        ended = piece.finish is not None
        record: Record = {
            "index": self._events,
            "token": token,
            "generated_text": self._before + self._text if ended else None,
            "details": self._ending(piece, self._tokens) if ended and self._details else None,
        }
        return event(record)

    def usage(self, _: Record, /) -> bytes:
        return b""

    def whole(self, choices: Sequence[Piece], usage: Record) -> Record | list[Record]:
        (piece,) = choices
        record: Record = {"generated_text": self._before + self._with_stop(piece)}
        if self._details:
            tokens = [self._token(scored) for scored in piece.scored]
            record["details"] = {
                **self._ending(piece, usage["completion_tokens"]),
                "prefill": [],
                "tokens": tokens,
            }
        return [record] if self._listed else record

    def _ending(self, piece: Piece, tokens: int) -> Record:
        stopped = "stop_sequence" if piece.stop in self._stops else "eos_token"
        reason = "length" if piece.finish == "length" else stopped
        return {"finish_reason": reason, "generated_tokens": tokens, "seed": self._seed}

    def _with_stop(self, piece: Piece) -> str:
        return piece.text + piece.stop if self._keeps_stop and piece.stop in self._stops else piece.text

    def _token(self, scored: Scored) -> Record:
        return {
            "id": scored.token,
            "text": self._tokenizer.token_bytes(scored.token).decode(errors="replace"),
            "logprob": _finite(scored),
            "special": scored.token in self._tokenizer.special_ids,
        }


def _finite(scored: Scored | None) -> float | None:
    if scored is None or scored.logprob is None:
        return None
    return max(scored.logprob, IMPOSSIBLE)
