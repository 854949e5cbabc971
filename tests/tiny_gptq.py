"""Tiny models whose matrices GPTQ can pack: every width is a multiple of 32."""

from __future__ import annotations

from pathlib import Path

import tiny_models

GROUP_SIZE = 32
_WIDE = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1,
    # not the default, which a loader that overlooks it would take
    "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
}  # fmt: skip
_WIDE_BIGCODE = {"n_embd": 64, "n_inner": 128, "n_head": 2}
FAMILIES = ("llama", "qwen2", "starcoder", "starcoder2")


def write_packable(folder: Path, family: str, *, layers: int = 2) -> Path:
    """A Hugging Face folder of one of FAMILIES, in bfloat16: gptqmodel takes float32 weights down to that."""
    kind, options = tiny_models.CONFIGS[family]
    bigcode = family == "starcoder"
    wider = _WIDE_BIGCODE | {"n_layer": layers} if bigcode else _WIDE | {"num_hidden_layers": layers}
    name = f"packable-{family}-{layers}"
    tiny_models.CONFIGS[name] = (kind, options | wider)
    return tiny_models.write_hf(folder, name, dtype="bfloat16")
