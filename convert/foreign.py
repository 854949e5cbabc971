"""Families without a table here: CTranslate2's own converter takes them, where torch and transformers are.

Listed are the families whose float32 conversions were compared with transformers (tests/test_foreign.py);
that converter knows more, some of which it gets wrong. convert/whole_model runs it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

_DEFAULT_CONTEXT = 2048  # positions without a limit of their own (ALiBi): what these models were trained with


@dataclass(frozen=True)
class Foreign:
    """`context`: the key of config.json that holds its length in tokens. `only`: settings with the values
    under which CTranslate2 computes what transformers does; dots lead into nested ones, and one that is
    absent or null has such a value. `theta`: the base of rotary positions, None where any is right."""

    context: str = "max_position_embeddings"
    only: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    theta: float | None = None


_UNBENT = ("default",)  # rotary positions that are not stretched
_FULL, _LOCAL = "rope_parameters.full_attention", "rope_parameters.sliding_attention"
FOREIGN = {
    "bloom": Foreign("seq_length", {"apply_residual_connection_post_layernorm": (False,)}),
    "codegen": Foreign("n_positions"),
    "falcon": Foreign(only={"alibi": (False,), "activation": ("gelu",)}, theta=10_000.0),
    "gemma": Foreign(
        only={"attention_bias": (False,), "hidden_activation": ("gelu_pytorch_tanh",)}, theta=10_000.0
    ),
    "gemma3_text": Foreign(
        only={
            "final_logit_softcapping": (),
            "attn_logit_softcapping": (),
            "rope_theta": (1_000_000.0,),
            "rope_local_base_freq": (10_000.0,),
            "rope_scaling": (),
            f"{_FULL}.rope_theta": (1_000_000.0,),
            f"{_FULL}.rope_type": _UNBENT,
            f"{_LOCAL}.rope_theta": (10_000.0,),
            f"{_LOCAL}.rope_type": _UNBENT,
        }
    ),
    "gpt2": Foreign(
        "n_positions", {"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)}
    ),
    "gpt_neox": Foreign(),
    "gptj": Foreign("n_positions"),
    "mpt": Foreign(
        "max_seq_len",
        {"tie_word_embeddings": (True,), "attn_config.softmax_scale": (), "attn_config.clip_qkv": ()},
    ),
    "opt": Foreign(),
    "phi": Foreign(
        only={
            "qk_layernorm": (False,),
            "rope_parameters.rope_type": _UNBENT,
            "rope_scaling": (),
        }
    ),
}
# Known to CTranslate2's converter, and wrong after it.
REFUSED = {
    "gemma2": "CTranslate2 leaves out the soft capping of its attention scores and logits",
}


def known_types(streaming: Iterable[str]) -> str:
    """Both lists of model types, for an error."""
    return (
        f"known: {', '.join(sorted(streaming))}; with torch and transformers installed, to CTranslate2 only: "
        f"{', '.join(sorted(FOREIGN))}"
    )


def is_foreign(record: Record) -> bool:
    """Whether this config.json is a family that CTranslate2's own converter is to take.

    Raises ModelError on one that it gets wrong.
    """
    model_type = record.text("model_type")
    if model_type in REFUSED:
        raise ModelError(
            f"{record.path}: model_type {model_type!r} can't be converted: {REFUSED[model_type]}"
        )
    if model_type not in FOREIGN:
        return False
    family = FOREIGN[model_type]
    only = dict(family.only)
    if family.theta is not None:
        only |= {f"{place}rope_theta": (family.theta,) for place in ("", "rope_parameters.")}
        only |= {"rope_parameters.rope_type": _UNBENT, "rope_scaling": ()}
    for key, right in only.items():
        value = _nested(record, key)
        if value is not None and value not in right:
            raise ModelError(
                f"{record.path}: a {model_type} model with {key} {json.dumps(value):.80} can't be converted: "
                "CTranslate2 computes something else than transformers"
            )
    if model_type == "gemma3_text":
        _check_gemma3(record)
    return True


def _nested(record: Record, key: str) -> object:
    value: object = record.values
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _check_gemma3(record: Record) -> None:
    scale, head = record.number("query_pre_attn_scalar", 256), record.count("head_dim", 256)
    if scale != head:
        raise ModelError(
            f"{record.path}: a gemma3_text model with query_pre_attn_scalar {scale:g} and head_dim {head} "
            "can't be converted: CTranslate2 takes the latter for both"
        )


def context_length(record: Record) -> int:
    """Tokens that the model takes: its positions, or its sliding window where that is less."""
    length = record.count(FOREIGN[record.text("model_type")].context, _DEFAULT_CONTEXT)
    return min(length, record.optional_count("sliding_window") or length)
