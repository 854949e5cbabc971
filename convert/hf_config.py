"""The facts of a model out of a Hugging Face config.json."""

from __future__ import annotations

from convert.foreign import FOREIGN, known_types
from convert.rope import read_rope_scaling
from convert.sources import MAX_HEADS, ModelConfig
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

# model_type -> key into families.FAMILIES
ARCHITECTURES = {
    "llama": "llama",
    "mistral": "mistral",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gpt_bigcode": "starcoder",
    "starcoder2": "starcoder2",
}
_ATTENTION = ("q", "k", "v", "o")
_BIGCODE_BIASED = frozenset(("qkv", "o", "up", "down"))
_MISTRAL_WINDOW = 4096  # what a config.json without the key means
_WINDOWED = ("mistral", "phi3", "starcoder2")  # where sliding_window counts without a switch of its own


def read_config(record: Record) -> ModelConfig:
    """Raises ModelError on an unknown or quantised model and on wrong values."""
    model_type = record.text("model_type")
    if model_type not in ARCHITECTURES:
        if model_type in FOREIGN:
            raise ModelError(
                f"{record.path}: a {model_type} model can only be converted whole to CTranslate2 "
                "(`rrtf-convert ct2`), merged and in no other format"
            )
        raise ModelError(
            f"{record.path}: model_type {model_type!r} can't be converted; {known_types(ARCHITECTURES)}"
        )
    refuse_quantised(record)
    return _bigcode_config(record) if model_type == "gpt_bigcode" else _rotary_config(record, model_type)


def refuse_quantised(record: Record) -> None:
    """Raises ModelError where config.json says that the weights were quantised."""
    if record.values.get("quantization_config"):
        method = record.record("quantization_config").text("quant_method", "unknown")
        raise ModelError(
            f"{record.path.parent}: is quantised already ({method}); convert the model it was made from"
        )


def _bigcode_config(record: Record) -> ModelConfig:
    heads, hidden = record.count("n_head", most=MAX_HEADS), record.count("n_embd")
    multi_query = record.flag("multi_query", True)
    if not record.flag("scale_attn_weights", True):
        raise ModelError(
            f"{record.path}: attention scores that are not scaled (scale_attn_weights) can't be converted"
        )
    return ModelConfig(
        architecture="starcoder",
        naming="hf",
        layers=record.count("n_layer"),
        heads=heads,
        kv_heads=1 if multi_query else heads,
        head_dim=hidden // heads,
        hidden=hidden,
        ffn=record.count("n_inner", 4 * hidden),
        context_length=record.count("n_positions"),
        norm_epsilon=record.number("layer_norm_epsilon", 1e-5),
        activation=record.text("activation_function", "gelu_pytorch_tanh"),
        tied=record.flag("tie_word_embeddings", True),
        multi_query=multi_query,
        biased=_BIGCODE_BIASED,
    )


def _rotary_config(record: Record, model_type: str) -> ModelConfig:
    heads = record.count("num_attention_heads", most=MAX_HEADS)
    hidden = record.count("hidden_size")
    starcoder2 = model_type == "starcoder2"
    windowed = model_type in _WINDOWED or (
        model_type.startswith("qwen") and record.flag("use_sliding_window", False)
    )
    head_dim = record.count("head_dim", 128 if model_type == "qwen3" else hidden // heads)
    context_length = record.count("max_position_embeddings")
    # transformers 5 writes rope_parameters, older ones rope_theta and rope_scaling. Where both stand, the
    # latter counts: it is what vendors tell people to add.
    rope = record.record("rope_scaling")
    scaling = rope if rope.values else record.record("rope_parameters")
    theta = scaling.number("rope_theta", record.number("rope_theta", 10_000.0))
    partial = scaling.number("partial_rotary_factor", record.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ModelError(
            f"{record.path}: rotary positions on {partial:.0%} of each head (partial_rotary_factor) can't be "
            "converted"
        )
    if "original_max_position_embeddings" in record.values:  # Phi-3 keeps it beside the scaling
        original = {"original_max_position_embeddings": record.values["original_max_position_embeddings"]}
        scaling = Record(scaling.path, original | scaling.values)
    return ModelConfig(
        architecture=ARCHITECTURES[model_type],
        naming="hf",
        layers=record.count("num_hidden_layers"),
        heads=heads,
        kv_heads=record.count("num_key_value_heads", 2 if starcoder2 else heads),
        head_dim=head_dim,
        hidden=hidden,
        ffn=record.count("intermediate_size"),
        context_length=context_length,
        norm_epsilon=record.number("norm_epsilon", 1e-5)
        if starcoder2
        else record.number("rms_norm_eps", 1e-5 if model_type == "phi3" else 1e-6),
        activation=record.text("hidden_act", "gelu_pytorch_tanh" if starcoder2 else "silu"),
        rope_theta=theta,
        rope_scaling=read_rope_scaling(
            scaling, head_dim=head_dim, theta=theta, context_length=context_length
        ),
        sliding_window=_window(record, model_type) if windowed else None,
        tied=record.flag("tie_word_embeddings", starcoder2),
        biased=_biased(record, model_type),
    )


def _window(record: Record, model_type: str) -> int | None:
    if model_type == "mistral" and "sliding_window" not in record.values:
        return _MISTRAL_WINDOW
    return record.optional_count("sliding_window")


def _biased(record: Record, model_type: str) -> frozenset[str]:
    """Roles of the linear layers that have a bias, as transformers' models of this type make them."""
    found: set[str] = set()
    if model_type == "qwen2":
        found |= {"q", "k", "v"}
    if model_type == "starcoder2" and record.flag("use_bias", True):
        found |= {*_ATTENTION, "up", "down"}
    if model_type in ("llama", "qwen3") and record.flag("attention_bias", False):
        found |= set(_ATTENTION)
    if model_type == "llama" and record.flag("mlp_bias", False):
        found |= {"gate", "up", "down"}
    return frozenset(found)
