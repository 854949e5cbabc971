"""Rotary scaling: the divisors and the attention factor that transformers computes, for real models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.rope import read_rope_scaling
from rrtf_serve.models.records import Record

# What the vendors' config.json files say, or their model cards tell to add.
LLAMA_3_1 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192, "rope_theta": 500000.0,
}  # fmt: skip
LLAMA_3_2 = LLAMA_3_1 | {"factor": 32.0}
QWEN_2_5 = {
    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1000000.0,
}  # fmt: skip
DEEPSEEK = QWEN_2_5 | {"mscale": 0.8, "mscale_all_dim": 0.5, "beta_fast": 16, "factor": 40.0}
UNTRUNCATED = QWEN_2_5 | {"truncate": False, "attention_factor": 1.3}
LONG = {
    "rope_type": "longrope", "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
    "short_factor": [1 + n / 50 for n in range(48)], "long_factor": [1 + n for n in range(48)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "head_dim"),
    [(LLAMA_3_1, 128), (LLAMA_3_2, 64), (QWEN_2_5, 128), (DEEPSEEK, 64), (UNTRUNCATED, 128), (LONG, 96)],
)
def test_frequencies_equal_those_of_transformers(settings: dict[str, Any], head_dim: int) -> None:
    import torch
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = LlamaConfig(
        hidden_size=head_dim * 2, num_attention_heads=2, head_dim=head_dim, max_position_embeddings=131072,
        rope_parameters=settings,
    )  # fmt: skip
    frequencies, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"))
    theta = settings["rope_theta"]
    ours = read_rope_scaling(
        Record(Path("config.json"), settings), head_dim=head_dim, theta=theta, context_length=131072
    )
    assert ours is not None
    plain = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    assert plain / np.array(ours.divisors) == pytest.approx(frequencies.numpy(), rel=2e-6)
    assert math.sqrt(ours.attention_scale) == pytest.approx(factor, rel=1e-9)
    assert ours.longest == (4096 if settings is LONG else 0)
