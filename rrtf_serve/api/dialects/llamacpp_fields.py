"""The fields of llama.cpp's requests, and the sampling that they ask for.

Names and defaults: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md. Where an
editor's request (/infill, or a prompt made of fill-in-the-middle markers) names no temperature it is greedy
as long as one completion is asked for: llama.cpp's `infill` sampler, which editors put last, leaves little
more than the likeliest token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from rrtf_serve.api import fields
from rrtf_serve.api.dialects.anything import Anything, refused_unless_empty
from rrtf_serve.api.errors import FieldPath, unsupported
from rrtf_serve.api.fields import Asked, Field, Values, Verdict
from rrtf_serve.api.kinds import Array, Boolean, Integer, Kind, Number, Object, Prompt, Schema, Stops, Text
from rrtf_serve.engine.protocol import Capabilities, Sampling

TEMPERATURE, TOP_K, TOP_P, MIN_P = 0.8, 40, 0.95, 0.05
RANDOM_SEED = 2**32 - 1  # llama.cpp's number for "any"; -1 is the same
MAX_EXTRA = 256  # pieces of other files
MAX_RESPONSE_FIELDS = 256


def seed(asked: Asked) -> Verdict:
    if asked.value < 0 or asked.value == RANDOM_SEED:
        return fields.NEUTRAL
    return fields.seed(asked)


def n_probs(asked: Asked) -> Verdict:
    return fields.completion_logprobs(asked) if asked.value else fields.NEUTRAL


@dataclass(frozen=True)
class WholePrompt:
    """As Prompt, or llama.cpp's object of a text and of images, without images."""

    most: int

    def check(self, value: object, path: FieldPath) -> object:
        if isinstance(value, dict):
            if value.get("multimodal_data"):
                raise unsupported((*path, "multimodal_data"), "This model reads text only; leave it out.")
            return (Text().check(value.get("prompt_string"), (*path, "prompt_string")),)
        return Prompt(self.most).check(value, path)

    def schema(self) -> Schema:
        described = Object((("prompt_string", Text()),), ("prompt_string",)).schema()
        return {"anyOf": [*Prompt(self.most).schema()["anyOf"], described]}


_TEXTS: Kind = Array(Text(), MAX_RESPONSE_FIELDS)

SHARED = (
    Field("model", Text(), note="A served name or alias; with one model served, any name is that model."),
    Field("temperature", Number(-100, 100), note="0 and less is greedy decoding."),
    Field("n_cmpl", Integer(1, fields.MAX_CHOICES), note="More than one: the answer is an array."),
    Field("n", Integer(1, fields.MAX_CHOICES), note="The same as n_cmpl."),
    Field("stream", Boolean(), default=False),
    Field("n_predict", Integer(-2, fields.MAX_TOKENS), note="Less than 0: to the end of the context."),
    Field("top_k", Integer(-1, 2**31), default=TOP_K, note="0 and less: no limit."),
    Field("top_p", Number(0, 1), default=TOP_P),
    Field("min_p", Number(0, 1), fields.min_p),
    Field("seed", Integer(-(2**63), 2**64 - 1), seed),
    Field("repeat_penalty", Number(0.01, 10), default=1.0),
    Field("presence_penalty", Number(-2, 2), fields.penalty, default=0.0),
    Field("frequency_penalty", Number(-2, 2), fields.penalty, default=0.0),
    Field("samplers", _TEXTS, note="Absent: all; else top_k, top_p, min_p and penalties where named."),
    Field("stop", Stops(fields.MAX_STOPS, fields.MAX_STOP_CHARACTERS), default=()),
    Field(
        "t_max_predict_ms",
        Number(0),
        default=0.0,
        note="From the first token on; the first line is finished in any case. 0: no limit.",
    ),
    Field("response_fields", _TEXTS, note="a/b: the member b of a, at the root, by the name a/b."),
    Field("n_probs", Integer(0), n_probs, default=0),
    Field("ignore_eos", Boolean(), default=False),
    Field("grammar", Text(), refused_unless_empty("This server can't force a grammar; leave it out.")),
    Field("json_schema", Object(), refused_unless_empty("This server can't force JSON; leave it out.")),
    Field("lora", Array(Object()), refused_unless_empty("Adapters are chosen when the server starts.")),
    Field("logit_bias", Anything(), refused_unless_empty("Use /v1/completions for biased tokens.")),
    Field("mirostat", Integer(), fields.dropped_unless(0)),
    Field("typical_p", Number(), fields.dropped_unless(1.0)),
    Field("dry_multiplier", Number(), fields.dropped_unless(0.0)),
    Field("xtc_probability", Number(), fields.dropped_unless(0.0)),
    Field("dynatemp_range", Number(), fields.dropped_unless(0.0)),
    Field("return_tokens", Boolean(), fields.dropped_unless(False)),
    # Hints about speed and memory that leave the answer alone.
    Field("cache_prompt", Boolean(), fields.neutral),
    Field("id_slot", Integer(), fields.neutral),
)

COMPLETION_FIELDS = (
    *SHARED,
    Field(
        "prompt", WholePrompt(fields.MAX_PROMPTS), required=True, note="Text or token ids, one or several."
    ),
)

_EXTRA = Object((("text", Text()), ("filename", Text())))

INFILL_FIELDS = (
    *SHARED,
    Field("input_prefix", Text(), default="", note="The text above the cursor's line."),
    Field("input_suffix", Text(), default="", note="The text after the cursor."),
    Field("prompt", Text(), default="", note="The cursor's line, up to the cursor."),
    Field("input_extra", Array(_EXTRA, MAX_EXTRA), default=(), note="Pieces of other files."),
    Field("t_max_prompt_ms", Number(0), default=0.0, note="To read the prompt, which is cut to that."),
    Field("n_indent", Integer(), fields.neutral, note="A completion ends with its block anyway."),
)

TOKENIZE_FIELDS = (
    Field("model", Text()),
    Field("content", Text(), required=True),
    Field("add_special", Boolean(), default=False, note="Begin with BOS, where the model has one."),
    Field("parse_special", Boolean(), default=True),
    Field("with_pieces", Boolean(), default=False),
)
DETOKENIZE_FIELDS = (
    Field("model", Text()),
    Field("tokens", Array(Integer(0, 2**31 - 1)), required=True),
)
TEMPLATE_FIELDS = (
    Field("model", Text()),
    Field("messages", Array(Object(), fields.MAX_MESSAGES), required=True),
)


def copies(values: Values) -> int:
    return int(values["n_cmpl"] or values["n"] or 1)


def sampling(values: Values, engine: Capabilities, *, likeliest: bool) -> Sampling:
    """`likeliest`: greedy where no temperature is given."""
    chain: tuple[str, ...] | None = values["samplers"]

    def on(sampler: str) -> bool:
        return chain is None or sampler in chain

    temperature = values["temperature"]
    if temperature is None:
        temperature = 0.0 if likeliest and copies(values) == 1 else TEMPERATURE
    top_p = values["top_p"] if on("top_p") else 1.0
    greedy = Sampling(
        temperature=0.0,
        repetition_penalty=values["repeat_penalty"] if on("penalties") else 1.0,
        logprobs=values["n_probs"] or None,
        presence_penalty=values["presence_penalty"] if on("penalties") else 0.0,
        frequency_penalty=values["frequency_penalty"] if on("penalties") else 0.0,
    )
    if temperature <= 0 or top_p == 0:
        return greedy
    given = values["seed"]
    min_p = MIN_P if values["min_p"] is None else values["min_p"]
    return Sampling(
        temperature=temperature,
        top_p=top_p,
        top_k=max(0, values["top_k"]) if on("top_k") else 0,
        min_p=min_p if on("min_p") and engine.min_p else 0.0,
        seed=None if given is None or given < 0 or given == RANDOM_SEED else given,
        repetition_penalty=greedy.repetition_penalty,
        logprobs=greedy.logprobs,
        presence_penalty=greedy.presence_penalty,
        frequency_penalty=greedy.frequency_penalty,
    )


def in_effect(sampling: Sampling) -> Values:
    """How tokens are chosen, by llama.cpp's names."""
    return {
        "seed": RANDOM_SEED if sampling.seed is None else sampling.seed,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


def seconds(milliseconds: float) -> float | None:
    """None for 0: no limit."""
    return milliseconds / 1000 if milliseconds and math.isfinite(milliseconds) else None
