"""One table per family: where each part of a decoder lies in a GGUF file and in a Hugging Face folder."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """`norm_bias`: LayerNorm with bias, else RMSNorm. `rotary`: rotary positions, else learned ones.

    `names`: naming -> role -> tensor name without .weight/.bias; {} is the layer. A role "qkv" or "gate_up"
    is one stored matrix with the rows of its parts one after another.
    """

    names: dict[str, dict[str, str]]
    gated: bool
    norm_bias: bool
    rotary: bool
    interleaved_in_gguf: bool = False  # query and key rows stored for interleaved rotary positions
    head_norms: bool = False  # RMSNorm of every head's query and key
    head_dim_stated: bool = False  # the size of a head is written even where it follows from the others


_GGUF_NAMES = {
    "embedding": "token_embd",
    "positions": "position_embd",
    "final_norm": "output_norm",
    "output": "output",
    "attention_norm": "blk.{}.attn_norm",
    "q": "blk.{}.attn_q",
    "k": "blk.{}.attn_k",
    "v": "blk.{}.attn_v",
    "qkv": "blk.{}.attn_qkv",
    "q_norm": "blk.{}.attn_q_norm",
    "k_norm": "blk.{}.attn_k_norm",
    "o": "blk.{}.attn_output",
    "ffn_norm": "blk.{}.ffn_norm",
    "gate": "blk.{}.ffn_gate",
    "up": "blk.{}.ffn_up",
    "down": "blk.{}.ffn_down",
}
_LLAMA_NAMES = {
    "embedding": "model.embed_tokens",
    "final_norm": "model.norm",
    "output": "lm_head",
    "attention_norm": "model.layers.{}.input_layernorm",
    "q": "model.layers.{}.self_attn.q_proj",
    "k": "model.layers.{}.self_attn.k_proj",
    "v": "model.layers.{}.self_attn.v_proj",
    "o": "model.layers.{}.self_attn.o_proj",
    "ffn_norm": "model.layers.{}.post_attention_layernorm",
    "gate": "model.layers.{}.mlp.gate_proj",
    "up": "model.layers.{}.mlp.up_proj",
    "down": "model.layers.{}.mlp.down_proj",
}
_QWEN3_NAMES = _LLAMA_NAMES | {
    "q_norm": "model.layers.{}.self_attn.q_norm",
    "k_norm": "model.layers.{}.self_attn.k_norm",
}
_PHI3_NAMES = _LLAMA_NAMES | {
    "qkv": "model.layers.{}.self_attn.qkv_proj",
    "gate_up": "model.layers.{}.mlp.gate_up_proj",
}
_STARCODER2_NAMES = _LLAMA_NAMES | {
    "up": "model.layers.{}.mlp.c_fc",
    "down": "model.layers.{}.mlp.c_proj",
}
_BIGCODE_NAMES = {
    "embedding": "transformer.wte",
    "positions": "transformer.wpe",
    "final_norm": "transformer.ln_f",
    "output": "lm_head",
    "attention_norm": "transformer.h.{}.ln_1",
    "qkv": "transformer.h.{}.attn.c_attn",
    "o": "transformer.h.{}.attn.c_proj",
    "ffn_norm": "transformer.h.{}.ln_2",
    "up": "transformer.h.{}.mlp.c_fc",
    "down": "transformer.h.{}.mlp.c_proj",
}

FAMILIES = {
    "llama": Family(
        {"gguf": _GGUF_NAMES, "hf": _LLAMA_NAMES},
        gated=True,
        norm_bias=False,
        rotary=True,
        interleaved_in_gguf=True,
    ),
    # GGUF files of Mistral call themselves llama.
    "mistral": Family({"hf": _LLAMA_NAMES}, gated=True, norm_bias=False, rotary=True, head_dim_stated=True),
    "phi3": Family({"hf": _PHI3_NAMES}, gated=True, norm_bias=False, rotary=True),
    "qwen2": Family({"gguf": _GGUF_NAMES, "hf": _LLAMA_NAMES}, gated=True, norm_bias=False, rotary=True),
    "qwen3": Family(
        {"gguf": _GGUF_NAMES, "hf": _QWEN3_NAMES},
        gated=True,
        norm_bias=False,
        rotary=True,
        head_norms=True,
        head_dim_stated=True,
    ),
    "starcoder": Family(
        {"gguf": _GGUF_NAMES, "hf": _BIGCODE_NAMES}, gated=False, norm_bias=True, rotary=False
    ),
    "starcoder2": Family(
        {"gguf": _GGUF_NAMES, "hf": _STARCODER2_NAMES}, gated=False, norm_bias=True, rotary=True
    ),
}
