"""The fields of Ollama's requests, and the sampling that their options ask for.

Names and defaults: https://github.com/ollama/ollama/blob/main/docs/api.md and docs/modelfile.mdx. Two
defaults are our own: code is not penalised for repeating itself, and an editor's request (a suffix, or a
prompt made of fill-in-the-middle markers) that gives no temperature is greedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rrtf_serve.api import fields
from rrtf_serve.api.dialects.anything import Anything, refused_unless_empty
from rrtf_serve.api.fields import Asked, Field, Parsed, Values, Verdict, parse
from rrtf_serve.api.kinds import Array, Boolean, Integer, Number, Object, Stops, Text
from rrtf_serve.engine.protocol import Capabilities, Sampling

TEMPERATURE, TOP_K, TOP_P = 0.8, 40, 0.9


def seed(asked: Asked) -> Verdict:
    return fields.NEUTRAL if asked.value < 0 else fields.seed(asked)


OPTION_FIELDS = (
    Field("temperature", Number(-100, 100)),
    Field("num_predict", Integer(-2, fields.MAX_TOKENS), note="Less than 0: to the end of the context."),
    Field("top_k", Integer(-1, 2**31), default=TOP_K),
    Field("top_p", Number(0, 1), default=TOP_P),
    Field("min_p", Number(0, 1), fields.min_p, default=0.0),
    Field("seed", Integer(-(2**63), 2**64 - 1), seed),
    Field("stop", Stops(fields.MAX_STOPS, fields.MAX_STOP_CHARACTERS), default=()),
    Field("repeat_penalty", Number(0.01, 10), default=1.0),
    Field("presence_penalty", Number(-2, 2), fields.penalty, default=0.0),
    Field("frequency_penalty", Number(-2, 2), fields.penalty, default=0.0),
    Field("typical_p", Number(), fields.dropped_unless(1.0)),
    Field("mirostat", Integer(), fields.dropped_unless(0)),
    # How Ollama uses the machine, which is settled when this server starts.
    Field("num_ctx", Anything(), fields.neutral),
    Field("num_keep", Anything(), fields.neutral),
)

_NO_JSON = refused_unless_empty("This server can't force JSON; leave it out and ask for JSON in the prompt.")
_NO_IMAGES = refused_unless_empty("This model reads text only; leave it out.")
_NO_THOUGHTS = refused_unless_empty("This model does not support thinking; leave it out.")

SHARED = (
    Field("model", Text(), required=True, note="A name of /api/tags; tags as in Ollama's library are read."),
    Field("options", Object(), default={}),
    Field("stream", Boolean(), default=True, note="Lines of JSON; false: one object."),
    Field("format", Anything(), _NO_JSON),
    Field("think", Anything(), _NO_THOUGHTS),
    Field("keep_alive", Anything(), fields.neutral),
    Field("logprobs", Boolean(), fields.dropped_unless(False)),
)

GENERATE_FIELDS = (
    *SHARED,
    Field("prompt", Text(), default="", note="With no suffix beside it, empty: nothing is generated."),
    Field("suffix", Text(), default="", note="The text after the cursor: the model fills in the middle."),
    Field("raw", Boolean(), default=False, note="The prompt as it is, not as a message."),
    Field("system", Text(), default=""),
    Field("template", Text(), fields.dropped_unless()),
    Field("context", Anything(), fields.dropped_unless()),
    Field("images", Anything(), _NO_IMAGES),
)

_NO_TOOLS = refused_unless_empty("This model does not support tools; leave it out.")

CHAT_FIELDS = (
    *SHARED,
    Field("messages", Array(Object(), fields.MAX_MESSAGES), default=()),
    Field("tools", Anything(), _NO_TOOLS),
)

SHOW_FIELDS = (
    Field("model", Text(), note="A name of /api/tags."),
    Field("name", Text(), note="The same, as older clients call it."),
    Field("verbose", Boolean(), fields.neutral),
)


def parse_options(options: Mapping[str, Any], engine: Capabilities) -> Parsed:
    """Raises ApiError 400 naming the option."""
    parsed = parse(OPTION_FIELDS, options, engine)
    return Parsed(parsed.values, tuple(f"options.{name}" for name in parsed.dropped))


def sampling(options: Values, *, likeliest: bool) -> Sampling:
    """`likeliest`: greedy where no temperature is given."""
    temperature = options["temperature"]
    if temperature is None:
        temperature = 0.0 if likeliest else TEMPERATURE
    penalties = {
        "repetition_penalty": options["repeat_penalty"],
        "presence_penalty": options["presence_penalty"],
        "frequency_penalty": options["frequency_penalty"],
    }
    if temperature <= 0 or options["top_p"] == 0:
        return Sampling(temperature=0.0, **penalties)
    given = options["seed"]
    return Sampling(
        temperature=temperature,
        top_p=options["top_p"],
        top_k=max(0, options["top_k"]),
        min_p=options["min_p"],
        seed=None if given is None or given < 0 else given,
        **penalties,
    )
