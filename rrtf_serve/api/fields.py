"""Every field that OpenAI documents for the two endpoints, and what this server does with it.

One table per endpoint. A field is checked by its kind, then its rule decides from the value and the engine's
capabilities:

honoured   it does what OpenAI documents
neutral    accepted, and the answer is what it would be without it
dropped    the engine can't; the answer is still useful, and the header `x-rrtf-dropped` names the field
refused    400, because the answer would mean something else than was asked for

Null is the same as absent. Fields in no table are ignored: editors send many of their own.
Source: https://platform.openai.com/docs/api-reference/{completions,chat}/create and, for top_k, min_p and
repetition_penalty, what vLLM and llama.cpp take.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rrtf_serve.api.errors import invalid_value, missing, unsupported
from rrtf_serve.api.kinds import (
    Array,
    Biases,
    Boolean,
    Integer,
    Kind,
    Number,
    Object,
    Prompt,
    Schema,
    Stops,
    Text,
    TextOrObject,
    nullable,
)
from rrtf_serve.engine.protocol import Capabilities

MAX_STOPS = 256  # each is looked for in every piece of text
MAX_STOP_CHARACTERS = 4096
MAX_MESSAGES = 4096
MAX_PROMPTS = 128  # in one request
MAX_CHOICES = 128  # n and best_of; ApiSettings.max_rows bounds their product with the prompts

MAX_TOKENS = 2**31 - 1  # beyond any context; keeps sums and messages short

Values = Mapping[str, Any]


class Decision(StrEnum):
    HONOURED = "honoured"
    NEUTRAL = "neutral"
    DROPPED = "dropped"
    REFUSED = "refused"


@dataclass(frozen=True)
class Verdict:
    decision: Decision
    reason: str = ""  # of a refusal: what to do instead
    mistaken: bool = False  # the refused value makes no sense beside the others, here or anywhere


@dataclass(frozen=True)
class Asked:
    value: Any  # of the field; checked, never null
    values: Values  # of all fields
    engine: Capabilities


Rule = Callable[[Asked], Verdict]

HONOURED = Verdict(Decision.HONOURED)
NEUTRAL = Verdict(Decision.NEUTRAL)
DROPPED = Verdict(Decision.DROPPED)


def honoured(_: Asked) -> Verdict:
    return HONOURED


def neutral(_: Asked) -> Verdict:
    return NEUTRAL


def dropped_unless(*harmless: object) -> Rule:
    """Dropped, but neutral for values that ask for nothing. Empty containers always ask for nothing."""

    def rule(asked: Asked) -> Verdict:
        empty = asked.value is False or asked.value in harmless or asked.value in ((), {}, "")
        return NEUTRAL if empty else DROPPED

    return rule


def penalty(asked: Asked) -> Verdict:
    if asked.value == 0:
        return NEUTRAL
    return HONOURED if asked.engine.penalties else DROPPED


def min_p(asked: Asked) -> Verdict:
    if asked.value == 0:
        return NEUTRAL
    return HONOURED if asked.engine.min_p else DROPPED


def seed(asked: Asked) -> Verdict:
    if asked.values["temperature"] == 0:
        return NEUTRAL  # greedy decoding gives the same answer for every seed
    return HONOURED if asked.engine.seed else DROPPED


def logit_bias(asked: Asked) -> Verdict:
    if not asked.value:
        return NEUTRAL
    if asked.engine.logit_bias:
        return HONOURED
    return _refused("This engine can't bias tokens; leave logit_bias out.")


def best_of(asked: Asked) -> Verdict:
    if asked.value < asked.values["n"]:
        return _wrong(f"it must be at least n ({asked.values['n']}).")
    if asked.value == asked.values["n"]:
        return NEUTRAL
    if asked.values["stream"]:
        return _wrong("it can't be streamed: ranking needs whole completions.")
    if not asked.engine.max_logprobs:
        return _refused("This engine gives no log-probabilities to rank by; leave best_of out.")
    return HONOURED


def completion_logprobs(asked: Asked) -> Verdict:
    if asked.value > asked.engine.max_logprobs or not asked.engine.max_logprobs:
        return _too_many_logprobs(asked.engine)
    return HONOURED


def chat_logprobs(asked: Asked) -> Verdict:
    if not asked.value:
        return NEUTRAL
    return HONOURED if asked.engine.max_logprobs else _too_many_logprobs(asked.engine)


def top_logprobs(asked: Asked) -> Verdict:
    if not asked.values["logprobs"]:
        return _wrong("it needs 'logprobs': true beside it.")
    return HONOURED if asked.value <= asked.engine.max_logprobs else _too_many_logprobs(asked.engine)


def _too_many_logprobs(engine: Capabilities) -> Verdict:
    if not engine.max_logprobs:
        return _refused("This engine gives no log-probabilities; leave it out.")
    return _wrong(f"this engine gives at most {engine.max_logprobs} alternatives per token.")


def _refused(reason: str) -> Verdict:
    return Verdict(Decision.REFUSED, reason)


def _wrong(reason: str) -> Verdict:
    return Verdict(Decision.REFUSED, reason, mistaken=True)


def stream_options(asked: Asked) -> Verdict:
    if asked.values["stream"]:
        return HONOURED
    return _wrong("it is only allowed with 'stream': true.")


def tool_choice(asked: Asked) -> Verdict:
    if asked.value == "none":
        return NEUTRAL
    if asked.value == "auto":
        return DROPPED if asked.values.get("tools") or asked.values.get("functions") else NEUTRAL
    return _refused('This server doesn\'t call tools; use "auto", "none" or leave it out.')


def response_format(asked: Asked) -> Verdict:
    if asked.value["type"] == "text":
        return NEUTRAL
    return _refused("This server can't force JSON; leave it out and ask for JSON in the messages.")


def modalities(asked: Asked) -> Verdict:
    if "audio" in asked.value:
        return _refused('This server answers in text; use ["text"] or leave it out.')
    return NEUTRAL


@dataclass(frozen=True)
class Field:
    name: str
    kind: Kind
    rule: Rule = honoured
    default: object = None
    required: bool = False
    note: str = ""


_OBJECTS = Array(Object())
_STREAM_OPTIONS = Object((("include_usage", Boolean()), ("include_obfuscation", Boolean())))

SHARED = (
    Field("model", Text(), note="A served name or alias; absent: the served model."),
    # Before the rules that look at them.
    Field("temperature", Number(0, 2), default=1.0, note="0 is greedy decoding."),
    Field("n", Integer(1, MAX_CHOICES), default=1),
    Field("stream", Boolean(), default=False),
    Field("top_p", Number(0, 1), default=1.0, note="0 is greedy decoding."),
    Field("top_k", Integer(-1), default=0, note="0 and -1: no limit. Not an OpenAI field."),
    Field("min_p", Number(0, 1), min_p, default=0.0, note="Not an OpenAI field."),
    Field("repetition_penalty", Number(0.01, 10), default=1.0, note="1: none. Not an OpenAI field."),
    Field(
        "stop",
        Stops(MAX_STOPS, MAX_STOP_CHARACTERS),
        default=(),
        note="Any number; the stop itself isn't returned.",
    ),
    Field("stream_options", _STREAM_OPTIONS, stream_options),
    Field("seed", Integer(-(2**63), 2**64 - 1), seed, note="Neutral with temperature 0."),
    Field("presence_penalty", Number(-2, 2), penalty, default=0.0),
    Field("frequency_penalty", Number(-2, 2), penalty, default=0.0),
    Field("logit_bias", Biases(), logit_bias, default=()),
    Field("user", Text(), neutral),
)

COMPLETION_FIELDS = (
    *SHARED,
    Field("prompt", Prompt(MAX_PROMPTS), required=True, note="Text or token ids, one or several."),
    Field("suffix", Text(), note="Text after the cursor: the server fills in the middle. Empty: none."),
    Field("max_tokens", Integer(0, MAX_TOKENS), note="Absent: 16, or what the context leaves."),
    Field("echo", Boolean(), default=False),
    Field("logprobs", Integer(0), completion_logprobs, note="Alternatives per token."),
    Field("best_of", Integer(1, MAX_CHOICES), best_of, note="Ranked by mean log-probability."),
)

CHAT_FIELDS = (
    *SHARED,
    Field("messages", Array(Object(), MAX_MESSAGES), required=True),
    Field("max_completion_tokens", Integer(1, MAX_TOKENS), note="Wins over max_tokens."),
    Field("max_tokens", Integer(1, MAX_TOKENS)),
    Field(
        "n_predict",
        Integer(-1, MAX_TOKENS),
        note="llama.cpp's name, where max_tokens is absent. 0: answers at once; -1: no limit of its own.",
    ),
    Field("logprobs", Boolean(), chat_logprobs, default=False),
    Field("top_logprobs", Integer(0, 20), top_logprobs),
    Field("response_format", Object((("type", Text()),), ("type",)), response_format),
    Field("tools", _OBJECTS, dropped_unless()),
    Field("tool_choice", TextOrObject(("none", "auto", "required")), tool_choice),
    Field("functions", _OBJECTS, dropped_unless()),
    Field("function_call", TextOrObject(("none", "auto")), tool_choice),
    Field("parallel_tool_calls", Boolean(), neutral),
    Field("modalities", Array(Text()), modalities),
    Field("audio", Object(), dropped_unless()),
    Field("web_search_options", Object(), dropped_unless({"search_context_size": "medium"})),
    Field("moderation", Object(), dropped_unless()),
    Field("reasoning_effort", Text(), dropped_unless("none")),
    Field("verbosity", Text(), dropped_unless("medium")),
    Field("service_tier", Text(), dropped_unless("auto", "default")),
    # Hints about cost, speed and book-keeping that leave the answer alone.
    Field("prediction", Object(), neutral),
    Field("prompt_cache_key", Text(), neutral),
    Field("prompt_cache_options", Object(), neutral),
    Field("prompt_cache_retention", Text(), neutral),
    Field("metadata", Object(), neutral),
    Field("safety_identifier", Text(), neutral),
    Field("store", Boolean(), neutral),
)


@dataclass(frozen=True)
class Parsed:
    values: dict[str, Any]  # every field of the table, with its default where absent
    dropped: tuple[str, ...]


def parse(table: tuple[Field, ...], body: Mapping[str, object], engine: Capabilities) -> Parsed:
    """Check and decide every field. Raises ApiError (400) on the first that can't be taken."""
    values: dict[str, Any] = {}
    given = []
    for field in table:
        raw = body.get(field.name)
        if raw is None:
            if field.required:
                raise missing((field.name,), f"Give '{field.name}' in the JSON body.")
            values[field.name] = field.default
        else:
            values[field.name] = field.kind.check(raw, (field.name,))
            given.append(field)
    dropped = []
    for field in given:
        verdict = field.rule(Asked(values[field.name], values, engine))
        if verdict.decision is Decision.REFUSED:
            error = invalid_value if verdict.mistaken else unsupported
            raise error((field.name,), verdict.reason)
        if verdict.decision is Decision.DROPPED:
            dropped.append(field)
    # Only now: until here the rules look at what was asked for.
    values.update((field.name, field.default) for field in dropped)
    return Parsed(values, tuple(field.name for field in dropped))


def schema(table: tuple[Field, ...]) -> Schema:
    """JSON Schema of a request body; unknown members are allowed, as the server ignores them."""
    properties = {}
    for field in table:
        described = field.kind.schema() if field.required else nullable(field.kind.schema())
        if field.default not in (None, ()):
            described["default"] = field.default
        if field.note:
            described["description"] = field.note
        properties[field.name] = described
    required = [field.name for field in table if field.required]
    return {"type": "object", "properties": properties, "required": required}
