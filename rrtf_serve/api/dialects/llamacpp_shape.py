"""llama.cpp's answers: one completion's record, whole and in events, and its errors.

https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rrtf_serve.api.dialects.timed import Times
from rrtf_serve.api.errors import INVALID, ApiError
from rrtf_serve.api.generation import Scored
from rrtf_serve.api.kinds import Schema
from rrtf_serve.api.shapes import IMPOSSIBLE, Record
from rrtf_serve.api.sse import event
from rrtf_serve.models.tokens import Tokenizer

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "unavailable_error",
    500: "server_error",
    501: "not_supported_error",
    503: "unavailable_error",
    504: "unavailable_error",
}


ERROR: Schema = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "integer"},
                "message": {"type": "string"},
                "type": {"type": "string"},
                "n_prompt_tokens": {"type": "integer"},
                "n_ctx": {"type": "integer"},
            },
            "required": ["code", "message", "type"],
        }
    },
    "required": ["error"],
}


def error_body(error: ApiError) -> dict[str, object]:
    """{"error": {"code", "message", "type"}}; a context overflow says the two numbers, too."""
    kind = _TYPES.get(error.status, INVALID)
    if error.code == "context_length_exceeded":
        kind = "exceed_context_size_error"
    return {"error": {"code": error.status, "message": error.message, "type": kind, **error.extra}}


class Ending:
    """Streams end with the event that says "stop": true, without OpenAI's [DONE]."""

    media_type = "text/event-stream"
    done = b""

    def failure(self, error: ApiError) -> bytes:
        return event(error_body(error))


def timings(times: Times) -> Record:
    prompt, predicted = times.prompt_seconds * 1000, times.predicted_seconds * 1000
    return {
        "prompt_n": times.prompt_tokens,
        "prompt_ms": prompt,
        "prompt_per_token_ms": _ratio(prompt, times.prompt_tokens),
        "prompt_per_second": _ratio(1000 * times.prompt_tokens, prompt),
        "predicted_n": times.predicted_tokens,
        "predicted_ms": predicted,
        "predicted_per_token_ms": _ratio(predicted, times.predicted_tokens),
        "predicted_per_second": _ratio(1000 * times.predicted_tokens, predicted),
    }


def _ratio(dividend: float, divisor: float) -> float:
    return dividend / divisor if divisor else 0.0


@dataclass(frozen=True)
class Shape:
    """The records of one request."""

    model: str
    settings: Record  # generation_settings
    tokenizer: Tokenizer
    response_fields: Sequence[str] | None  # None: all
    probabilities: bool

    def partial(self, index: int, text: str, scored: Sequence[Scored], times: Times) -> Record:
        record = {
            "index": index,
            "content": text,
            "tokens": [],
            "stop": False,
            "id_slot": -1,
            "tokens_predicted": times.predicted_tokens,
            "tokens_evaluated": times.prompt_tokens,
        }
        return record | self._probabilities(scored)

    def final(self, index: int, text: str, scored: Sequence[Scored], times: Times) -> Record:
        record = {
            "index": index,
            "content": text,
            "tokens": [],
            "id_slot": -1,
            "stop": True,
            "model": self.model,
            "tokens_predicted": times.predicted_tokens,
            "tokens_evaluated": times.prompt_tokens,
            "generation_settings": self.settings,
            "has_new_line": "\n" in text,
            "truncated": False,
            "stop_type": times.stop,
            "stopping_word": times.word,
            "tokens_cached": 0,
            "timings": timings(times),
        }
        return chosen(record | self._probabilities(scored), self.response_fields)

    def _probabilities(self, scored: Sequence[Scored]) -> Record:
        if not self.probabilities:
            return {}
        return {
            "completion_probabilities": [
                {
                    **self._token(each.token, each.logprob),
                    "top_logprobs": [self._token(token, logprob) for token, logprob in each.top],
                }
                for each in scored
            ]
        }

    def _token(self, token: int, logprob: float | None) -> Record:
        raw = self.tokenizer.token_bytes(token)
        finite = logprob if logprob is not None and math.isfinite(logprob) else IMPOSSIBLE
        return {"id": token, "token": raw.decode(errors="replace"), "bytes": list(raw), "logprob": finite}


def chosen(record: Record, paths: Sequence[str] | None) -> Record:
    """What `response_fields` names: "a/b" takes b out of a and keeps the name "a/b"; what isn't there is left
    out. None or empty: all of the record."""
    if not paths:
        return record
    found: Record = {}
    for path in paths:
        value: object = record
        for part in path.split("/"):
            if not isinstance(value, dict) or part not in value:
                break
            value = value[part]
        else:
            found[path] = value
    return found
