"""config.json, generation_config.json and the tokenizer's settings for a model that came without them (GGUF).

Key names are those that transformers 4 and 5 both read.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from convert.checkpoint import TokenizerFacts
from convert.sources import ModelConfig

_CLASSES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "starcoder": ("gpt_bigcode", "GPTBigCodeForCausalLM"),
    "starcoder2": ("starcoder2", "Starcoder2ForCausalLM"),
}
_UNLIMITED = int(1e30)  # how transformers writes "no limit known"


def config_record(
    config: ModelConfig, names: Collection[str], facts: TokenizerFacts, vocabulary_size: int, dtype: str
) -> dict[str, Any]:
    """config.json of a model whose tensors are called `names` (Hugging Face's); `dtype` as in torch."""
    # GGUF calls Mistral a Llama with a window.
    windowed = config.architecture == "llama" and config.sliding_window
    model_type, model_class = _CLASSES["mistral" if windowed else config.architecture]
    shape = _bigcode(config) if config.architecture == "starcoder" else _rotary(config, names)
    return {
        "architectures": [model_class],
        "model_type": model_type,
        "vocab_size": vocabulary_size,
        **shape,
        "tie_word_embeddings": bool(config.tied),
        **_special_ids(facts),
        "torch_dtype": dtype,
        "use_cache": True,
    }


def _bigcode(config: ModelConfig) -> dict[str, Any]:
    return {
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_embd": config.hidden,
        "n_inner": config.ffn,
        "n_positions": config.context_length,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": config.activation,
        "multi_query": config.multi_query,
    }


def _rotary(config: ModelConfig, names: Collection[str]) -> dict[str, Any]:
    record: dict[str, Any] = {
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "hidden_act": config.activation,
        "max_position_embeddings": config.context_length,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_scaling(config),
        "sliding_window": config.sliding_window,
    }
    if config.architecture == "starcoder2":
        biased = "model.layers.0.self_attn.q_proj.bias" in names
        return record | {"norm_epsilon": config.norm_epsilon, "use_bias": biased}
    record["rms_norm_eps"] = config.norm_epsilon
    if config.architecture == "llama":
        record["attention_bias"] = "model.layers.0.self_attn.q_proj.bias" in names
        record["mlp_bias"] = "model.layers.0.mlp.up_proj.bias" in names
    else:
        record["use_sliding_window"] = False
    return record


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    scaling = config.rope_scaling
    if scaling is None:
        return None
    if not scaling.divisors:
        return {"rope_type": "linear", "factor": scaling.factor}
    # A table of divisors, whatever it was made by, is what LongRoPE is.
    table = list(scaling.divisors)
    return {
        "rope_type": "longrope",
        "short_factor": table,
        "long_factor": table,
        "factor": 1.0,
        "attention_factor": scaling.attention_scale**0.5,
        "original_max_position_embeddings": scaling.longest or config.context_length,
    }


def _special_ids(facts: TokenizerFacts) -> dict[str, Any]:
    ids = {token: index for index, token in enumerate(facts.tokens) if token}
    named = {"bos": facts.bos_token, "eos": facts.eos_token, "pad": facts.pad_token}
    return {f"{key}_token_id": ids[token] for key, token in named.items() if token in ids}


def generation_record(facts: TokenizerFacts) -> dict[str, Any]:
    """generation_config.json: the special tokens, and every end of a text."""
    ids = {token: index for index, token in enumerate(facts.tokens) if token}
    ends = [ids[token] for token in facts.end_tokens if token in ids]
    return _special_ids(facts) | ({"eos_token_id": ends} if ends else {})


def tokenizer_record(facts: TokenizerFacts) -> dict[str, Any]:
    """tokenizer_config.json beside a tokenizer.json."""
    named = {"bos": facts.bos_token, "eos": facts.eos_token, "unk": facts.unk_token, "pad": facts.pad_token}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": facts.add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _UNLIMITED,
        **{f"{key}_token": token for key, token in named.items() if token},
    }
