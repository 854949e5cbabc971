"""The JSON of answers: whole, and in chunks.

Chunks are put together from a prefix made once per request and the few parts that change, since one leaves
for every token. Shapes: https://platform.openai.com/docs/api-reference/{completions,chat}/object and
chat/streaming.
"""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Sequence
from typing import Any, Protocol

from rrtf_serve.api.generation import Piece, Scored
from rrtf_serve.api.sse import Ending, OpenAiEnding
from rrtf_serve.models.tokens import Tokenizer

Record = dict[str, Any]

# JSON has no infinity; far below every real log-probability.
IMPOSSIBLE = -9999.0


class Shape(Ending, Protocol):
    id: str

    def opening(self, rows: int, /) -> bytes:
        """Events before the first piece."""

    def chunk(self, piece: Piece) -> bytes: ...

    def usage(self, usage: Record, /) -> bytes:
        """The event of stream_options.include_usage."""

    def whole(self, choices: Sequence[Piece], usage: Record, /) -> Record | list[Record]:
        """The answer without streaming: one piece per choice, holding all of it."""


def usage_record(prompt: int, completion: int) -> Record:
    """Counts of tokens. Each prompt counts once, however many choices it has."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class CompletionShape(OpenAiEnding):
    def __init__(
        self, tokenizer: Tokenizer, model: str, created: int, *, logprobs: bool, include_usage: bool
    ) -> None:
        self.id = f"cmpl-{secrets.token_hex(12)}"
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._base: Record = {
            "id": self.id, "object": "text_completion", "created": created, "model": model,
        }  # fmt: skip
        self._head = _head(self._base)
        self._tail = _tail(include_usage)

    def opening(self, _rows: int, /) -> bytes:
        return b""

    def chunk(self, piece: Piece) -> bytes:
        text = json.dumps(piece.text)
        logprobs = json.dumps(self._logprobs_of(piece.scored))
        finish = json.dumps(piece.finish)
        choice = f'"index":{piece.row},"text":{text},"logprobs":{logprobs},"finish_reason":{finish}'
        return f"{self._head}{choice}{self._tail}".encode()

    def usage(self, usage: Record) -> bytes:
        return _usage_event(self._base, usage)

    def whole(self, choices: Sequence[Piece], usage: Record) -> Record:
        rendered = [
            {
                "index": piece.row,
                "text": piece.text,
                "logprobs": self._logprobs_of(piece.scored),
                "finish_reason": piece.finish,
            }
            for piece in choices
        ]
        return {**self._base, "choices": rendered, "usage": usage}

    def _logprobs_of(self, scored: Sequence[Scored]) -> Record | None:
        if not self._logprobs:
            return None
        return {
            "tokens": [self._name(record.token) for record in scored],
            "token_logprobs": [_finite(record.logprob) for record in scored],
            "top_logprobs": [self._alternatives(record) for record in scored],
            "text_offset": [record.offset for record in scored],
        }

    def _alternatives(self, record: Scored) -> Record | None:
        if record.logprob is None:
            return None
        alternatives: Record = {}
        # Different tokens may read alike; the likelier one comes first and stays.
        for token, logprob in (*record.top, (record.token, record.logprob)):
            alternatives.setdefault(self._name(token), _finite(logprob))
        return alternatives

    def _name(self, token: int) -> str:
        """The token's text; `bytes:\\xe2\\x80`, as OpenAI writes it, where it is part of a character."""
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


class ChatShape(OpenAiEnding):
    def __init__(
        self, tokenizer: Tokenizer, model: str, created: int, *, logprobs: bool, include_usage: bool
    ) -> None:
        self.id = f"chatcmpl-{secrets.token_hex(12)}"
        self._tokenizer = tokenizer
        self._logprobs = logprobs
        self._base: Record = {"id": self.id, "created": created, "model": model}
        self._head = _head({"object": "chat.completion.chunk", **self._base})
        self._tail = _tail(include_usage)

    def opening(self, rows: int) -> bytes:
        delta = '{"role":"assistant","content":""}'
        return b"".join(self._chunk(row, delta, "null", "null") for row in range(rows))

    def chunk(self, piece: Piece) -> bytes:
        chunks = b""
        if piece.text or piece.scored:
            delta = f'{{"content":{json.dumps(piece.text)}}}'
            chunks = self._chunk(piece.row, delta, json.dumps(self._logprobs_of(piece.scored)), "null")
        if piece.finish is not None:
            chunks += self._chunk(piece.row, "{}", "null", json.dumps(piece.finish))
        return chunks

    def _chunk(self, row: int, delta: str, logprobs: str, finish: str) -> bytes:
        choice = f'"index":{row},"delta":{delta},"logprobs":{logprobs},"finish_reason":{finish}'
        return f"{self._head}{choice}{self._tail}".encode()

    def usage(self, usage: Record) -> bytes:
        return _usage_event({"object": "chat.completion.chunk", **self._base}, usage)

    def whole(self, choices: Sequence[Piece], usage: Record) -> Record:
        rendered = [
            {
                "index": piece.row,
                "message": {"role": "assistant", "content": piece.text, "refusal": None},
                "logprobs": self._logprobs_of(piece.scored),
                "finish_reason": piece.finish,
            }
            for piece in choices
        ]
        return {"object": "chat.completion", **self._base, "choices": rendered, "usage": usage}

    def _logprobs_of(self, scored: Sequence[Scored]) -> Record | None:
        if not self._logprobs:
            return None
        content = []
        for record in scored:
            top = [self._token(token, logprob) for token, logprob in record.top]
            content.append({**self._token(record.token, record.logprob), "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _token(self, token: int, logprob: float | None) -> Record:
        raw = self._tokenizer.token_bytes(token)
        return {"token": raw.decode(errors="replace"), "logprob": _finite(logprob), "bytes": list(raw)}


def _head(base: Record) -> str:
    return f'data: {json.dumps(base, separators=(",", ":"))[:-1]},"choices":[{{'


def _tail(include_usage: bool) -> str:
    return '}],"usage":null}\n\n' if include_usage else "}]}\n\n"


def _usage_event(base: Record, usage: Record) -> bytes:
    return b"data: " + json.dumps({**base, "choices": [], "usage": usage}).encode() + b"\n\n"


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, IMPOSSIBLE) if math.isfinite(logprob) else IMPOSSIBLE
