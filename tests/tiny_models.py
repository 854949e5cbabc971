"""Tiny random models for the conversion tests: Hugging Face folders, and GGUF files of the same weights.

folder = write_hf(tmp_path / "llama", "llama")          # made by transformers itself
file = write_gguf(tmp_path / "llama.gguf", folder)       # llama.cpp's names and row order, float32
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 128  # rows of the embedding
TOKENS = 120  # tokens of the tokenizer; the rest is padding
END = 2
_SPREAD = 0.3  # wide enough that greedy answers differ from prompt to prompt

_IDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": END}
_SHAPE: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": _SPREAD,
} | _IDS  # fmt: skip
_BIGCODE: dict[str, Any] = {"n_embd": 32, "n_inner": 64, "n_layer": 2, "n_head": 4, "n_positions": 256} | _IDS
_BIGCODE["initializer_range"] = _SPREAD
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SHAPE),
    "llama-biased": (
        "LlamaConfig",
        _SHAPE | {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True, "rms_norm_eps": 1e-3},
    ),
    "llama-wide-heads": ("LlamaConfig", _SHAPE | {"head_dim": 16, "tie_word_embeddings": True}),
    "llama-linear-rope": (
        "LlamaConfig",
        _SHAPE | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5000.0}},
    ),
    "llama-llama3-rope": (
        "LlamaConfig",
        _SHAPE
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
                "rope_theta": 1000.0,
            }
        },
    ),
    "mistral": ("MistralConfig", _SHAPE | {"sliding_window": None, "head_dim": 8}),
    "mistral-windowed": ("MistralConfig", _SHAPE | {"sliding_window": 16, "head_dim": 8}),
    "phi3": (
        "Phi3Config",
        _SHAPE
        | {
            "pad_token_id": 0,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1000.0,
                "original_max_position_embeddings": 64,
                "short_factor": [1.0, 1.1, 1.3, 2.0],
                "long_factor": [1.0, 2.0, 4.0, 8.0],
            },
        },
    ),
    "qwen2": ("Qwen2Config", _SHAPE | {"tie_word_embeddings": True}),
    "qwen2-yarn": (
        "Qwen2Config",
        _SHAPE
        | {
            "rope_parameters": {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 1000.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "qwen3": ("Qwen3Config", _SHAPE | {"head_dim": 16}),
    "starcoder": ("GPTBigCodeConfig", _BIGCODE),
    "starcoder-multi-head": (
        "GPTBigCodeConfig",
        _BIGCODE | {"multi_query": False, "layer_norm_epsilon": 1e-3},
    ),
    "starcoder2": ("Starcoder2Config", _SHAPE | {"sliding_window": 16}),
    "starcoder2-unwindowed": ("Starcoder2Config", _SHAPE | {"sliding_window": None, "norm_epsilon": 1e-3}),
}


def write_hf(folder: Path, name: str, *, dtype: str = "float32", shard: str = "5GB", seed: int = 0) -> Path:
    """A folder that transformers saved: config, (sharded) safetensors, tokenizer."""
    import torch
    import transformers

    kind, options = CONFIGS[name]
    torch.manual_seed(seed)
    causal: Any = transformers.AutoModelForCausalLM
    model = causal.from_config(getattr(transformers, kind)(**options))
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms start as ones and biases as zeros: those would hide mistakes
            parameter.data += torch.randn_like(parameter) * 0.1
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    write_tokenizer(folder)
    return folder


def write_small(folder: Path) -> Path:
    """Twenty million weights: a step takes long enough to be told from the next."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=256, vocab_size=128, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    causal: Any = transformers.AutoModelForCausalLM
    causal.from_config(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def tokens(size: int = TOKENS) -> list[str]:
    return ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())[: size - 3]]


def write_tokenizer(folder: Path, size: int = TOKENS) -> None:
    """A byte-level tokenizer without merges, with its settings and a chat template."""
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens(size))}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>", "special": True},
        "unk_token": "<unk>",
        "chat_template": "{{ messages[0].content }}",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")


def weights(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor of a folder as float32, read by the safetensors library."""
    from safetensors.torch import load_file

    found: dict[str, np.ndarray[Any, Any]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {name: tensor.float().numpy() for name, tensor in load_file(path).items()}
    return found


def write_gguf(
    path: Path,
    folder: Path,
    *,
    types: dict[str, Type] | None = None,
    extra: dict[str, Any] | None = None,
    add_bos: bool = False,
) -> Path:
    """The GGUF file of a folder. `types` quantises tensors by GGUF name; `extra` adds or replaces some."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    architecture = {"gpt_bigcode": "starcoder", "mistral": "llama"}.get(
        config["model_type"], config["model_type"]
    )
    writer = gguf.GGUFWriter(path, architecture)
    _write_fields(writer, config, architecture)
    writer.add_add_bos_token(add_bos)
    tensors = {_gguf_name(name): value for name, value in weights(folder).items()} | (extra or {})
    for name, value in tensors.items():
        kind = (types or {}).get(name, Type.F32)
        ordered = value
        if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
            heads = config["num_attention_heads" if ".attn_q." in name else "num_key_value_heads"]
            ordered = _interleaved(value, heads)
        data = gguf.quants.quantize(np.ascontiguousarray(ordered), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(value: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp's order of query and key rows: the two halves of a head alternate."""
    return value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)


# Hugging Face's part of a tensor name -> GGUF's
_NAME_PARTS = {
    "model.embed_tokens": "token_embd", "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
    "model.norm": "output_norm", "transformer.ln_f": "output_norm", "lm_head": "output",
    "model.layers": "blk", "transformer.h": "blk",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "input_layernorm": "attn_norm", "ln_1": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "ln_2": "ffn_norm", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip


def _gguf_name(name: str) -> str:
    for long, short in _NAME_PARTS.items():
        name = name.replace(long, short)
    return name


def _write_fields(writer: gguf.GGUFWriter, config: dict[str, Any], architecture: str) -> None:
    bigcode = architecture == "starcoder"
    heads = config["n_head"] if bigcode else config["num_attention_heads"]
    writer.add_block_count(config["n_layer"] if bigcode else config["num_hidden_layers"])
    writer.add_context_length(config["n_positions"] if bigcode else config["max_position_embeddings"])
    writer.add_embedding_length(config["n_embd"] if bigcode else config["hidden_size"])
    writer.add_feed_forward_length(config["n_inner"] if bigcode else config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(1 if bigcode else config["num_key_value_heads"])
    if architecture == "qwen3":
        writer.add_key_length(config["head_dim"])
    if architecture in ("llama", "qwen2", "qwen3"):
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    else:
        writer.add_layer_norm_eps(config["layer_norm_epsilon" if bigcode else "norm_epsilon"])
    if not bigcode:
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("starcoder")
    names = tokens()
    names += [f"[PAD{index}]" for index in range(len(names), VOCABULARY)]
    writer.add_token_list(names)
    writer.add_token_types([2, 3, 3] + [1] * (TOKENS - 3) + [5] * (VOCABULARY - TOKENS))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(END)
