"""The fields of TGI's requests, and the sampling that they ask for.

https://huggingface.github.io/text-generation-inference; names of older releases, such as stop_sequences,
are left out: nobody sends them any more.
"""

from __future__ import annotations

from rrtf_serve.api import fields
from rrtf_serve.api.dialects.anything import Anything, refused_unless_empty
from rrtf_serve.api.fields import Field, Values
from rrtf_serve.api.kinds import Boolean, Integer, Number, Object, Stops, Text
from rrtf_serve.engine.protocol import Capabilities, Sampling

FIELDS = (
    Field("inputs", Text(), required=True, note="The text to go on with; may hold markers."),
    Field("parameters", Object(), note="See https://huggingface.github.io/text-generation-inference."),
    Field("stream", Boolean(), default=False, note="POST /models/{id} only: events."),
)

PARAMETERS = (
    Field("temperature", Number(0, 100)),
    Field("do_sample", Boolean(), default=False),
    Field("max_new_tokens", Integer(1, fields.MAX_TOKENS)),
    Field("top_p", Number(0, 1)),
    Field("top_k", Integer(0, fields.MAX_TOKENS)),
    Field("repetition_penalty", Number(0.01, 10), default=1.0),
    Field("frequency_penalty", Number(-2, 2), fields.penalty, default=0.0),
    Field("stop", Stops(fields.MAX_STOPS, fields.MAX_STOP_CHARACTERS), default=()),
    Field("seed", Integer(0, 2**64 - 1), fields.seed),
    Field("best_of", Integer(1, fields.MAX_CHOICES), default=1),
    Field("return_full_text", Boolean(), default=False),
    Field("truncate", Integer(1, fields.MAX_TOKENS), note="Tokens of the end of inputs that stay."),
    Field("details", Boolean(), default=False),
    Field("decoder_input_details", Boolean(), fields.dropped_unless()),
    Field("typical_p", Number(0, 1), fields.dropped_unless(1.0)),
    Field("watermark", Boolean(), fields.dropped_unless()),
    Field("top_n_tokens", Integer(0), fields.dropped_unless(0)),
    Field("adapter_id", Text(), fields.dropped_unless()),
    Field(
        "grammar",
        Anything(),
        refused_unless_empty("This server can't force a grammar; leave it out and ask for it in the inputs."),
    ),
)


def sampling(values: Values, engine: Capabilities, *, scored: bool) -> Sampling:
    """Greedy, unless something is set that tells how to draw. `scored`: log-probabilities, too."""
    drawn = values["do_sample"] or any(values[name] is not None for name in ("temperature", "top_k", "top_p"))
    temperature = 1.0 if values["temperature"] is None else values["temperature"]
    common = {
        "repetition_penalty": values["repetition_penalty"],
        "frequency_penalty": values["frequency_penalty"],
    }
    logprobs = 0 if scored and engine.max_logprobs else None
    if not drawn or temperature == 0 or values["top_p"] == 0:
        return Sampling(temperature=0.0, logprobs=logprobs, **common)
    return Sampling(
        temperature=temperature,
        top_p=1.0 if values["top_p"] is None else values["top_p"],
        top_k=values["top_k"] or 0,
        seed=values["seed"],
        logprobs=logprobs,
        **common,
    )
