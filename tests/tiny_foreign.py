"""Tiny random models of the families that go through CTranslate2's own converter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny_models import END, VOCABULARY, write_tokenizer

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END, "pad_token_id": 0}
_WIDE: dict[str, Any] = {"initializer_range": 0.3} | _IDS
_HF = _WIDE | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_LLAMA = _HF | {"intermediate_size": 64, "max_position_embeddings": 256}
_GPT = _WIDE | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
_OPT = _HF | {"ffn_dim": 64, "max_position_embeddings": 256, "init_std": 0.3}
_FALCON = _HF | {"bias": False, "alibi": False, "parallel_attn": True}
_GEMMA = _LLAMA | {"head_dim": 8, "num_key_value_heads": 2}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", _WIDE | {"hidden_size": 32, "n_layer": 2, "n_head": 4, "seq_length": 256}),
    "codegen": ("CodeGenConfig", _GPT | {"rotary_dim": 4, "tie_word_embeddings": False}),
    "falcon": ("FalconConfig", _FALCON | {"multi_query": True, "new_decoder_architecture": False}),
    "falcon-grouped": (
        "FalconConfig",
        _FALCON
        | {
            "multi_query": False,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
            "num_ln_in_parallel_attn": 2,
        },
    ),
    "gemma": ("GemmaConfig", _GEMMA),
    "gemma3_text": ("Gemma3TextConfig", _GEMMA | {"sliding_window": 32, "query_pre_attn_scalar": 8}),
    "gpt2": ("GPT2Config", _GPT),
    "gpt_neox": ("GPTNeoXConfig", _LLAMA),
    "gpt_neox-sequential": (
        "GPTNeoXConfig",
        _LLAMA | {"use_parallel_residual": False, "layer_norm_eps": 1e-3},
    ),
    "gptj": ("GPTJConfig", _GPT | {"rotary_dim": 4, "tie_word_embeddings": False}),
    "mpt": ("MptConfig", _WIDE | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "opt": ("OPTConfig", _OPT | {"word_embed_proj_dim": 32}),
    "opt-projected": ("OPTConfig", _OPT | {"word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "phi": ("PhiConfig", _LLAMA),
    "phi-grouped": ("PhiConfig", _LLAMA | {"num_key_value_heads": 2, "partial_rotary_factor": 0.25}),
}


def write_foreign(folder: Path, kind: str, options: dict[str, Any], *, shard: str = "5GB") -> Path:
    """A folder that transformers saved, with the tiny tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    causal: Any = transformers.AutoModelForCausalLM
    model = causal.from_config(getattr(transformers, kind)(**options))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start as ones and biases as zeros: those would hide mistakes
            parameter.data += torch.randn_like(parameter) * 0.1
    model.save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return folder
