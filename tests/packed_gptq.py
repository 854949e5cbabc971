"""A GPTQ folder of a tiny model, rounded to nearest and packed with numpy: real files, in milliseconds.

    folder = write_packed(tmp_path / "gptq", hf_folder, bits=8, group_size=16, shuffled=True)

`shuffled` gives every input a random group, as desc_act does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import weights

Array = np.ndarray[Any, Any]


def write_packed(
    folder: Path, model: Path, *, bits: int = 8, group_size: int = 16, shuffled: bool = False
) -> Path:
    from safetensors.numpy import save_file

    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    random = np.random.default_rng(0)
    tensors: dict[str, Array] = {}
    for name, value in weights(model).items():
        if not name.endswith("_proj.weight"):
            tensors[name] = value
            continue
        inputs = value.shape[1]
        groups = (np.arange(inputs) // group_size).astype(np.int32)
        if shuffled:
            random.shuffle(groups)
        stem = name.removesuffix(".weight")
        tensors |= {f"{stem}.{part}": each for part, each in _quantised(value, groups, bits).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    settings = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "desc_act": shuffled,
        "sym": True,
        "checkpoint_format": "gptq",
    }
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}), "utf-8")
    return folder


def _quantised(weight: Array, groups: Array, bits: int) -> dict[str, Array]:
    """qweight, qzeros, scales and g_idx of weight (outputs, inputs), symmetric."""
    count, levels = int(groups.max()) + 1, 2**bits
    largest = np.stack([np.abs(weight[:, groups == group]).max(axis=1) for group in range(count)])
    scales = (2 * largest / (levels - 1)).astype(np.float32)  # (groups, outputs)
    steps = np.rint(weight.T / scales[groups]) + levels // 2
    values = np.clip(steps, 0, levels - 1).astype(np.int64)  # (inputs, outputs)
    zeros = np.full(scales.shape, levels // 2 - 1, np.int64)  # stored less one
    return {
        "qweight": _pack(values, bits),
        "qzeros": np.ascontiguousarray(_pack(zeros.T, bits).T),
        "scales": scales,
        "g_idx": groups,
    }


def _pack(values: Array, bits: int) -> Array:
    """Along the first axis, lowest bits first; `bits` divides 32."""
    per_word = 32 // bits
    split = values.reshape(-1, per_word, *values.shape[1:])
    shifts = (np.arange(per_word) * bits).reshape(1, per_word, *(1,) * (values.ndim - 1))
    words = (split << shifts).sum(axis=1)
    return words.astype(np.uint32).view(np.int32)
