"""Writes safetensors shards tensor by tensor: memory is bounded by a few blocks of rows.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data); the index
is that of transformers' sharded checkpoints.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from convert.architectures import Weight
from convert.blocks import ENCODERS, block_pool, map_blocks
from convert.sources import TensorSource

SHARD_BYTES = 5_000_000_000
_DTYPES = {"float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2)}
DTYPES = tuple(_DTYPES)


@dataclass(frozen=True)
class Shard:
    """One file: its tensors in order, and the bytes of their data."""

    weights: dict[str, Weight]
    data_bytes: int


def weight_bytes(weight: Weight, dtype: str) -> int:
    """Bytes of a tensor written as `dtype`."""
    return int(np.prod(weight.shape, dtype=np.int64)) * _DTYPES[dtype][1]


def shards(weights: Mapping[str, Weight], dtype: str, shard_bytes: int = SHARD_BYTES) -> list[Shard]:
    """Spread tensors over files of at most `shard_bytes` of data, in order; a larger tensor gets its own."""
    made: list[Shard] = []
    current: dict[str, Weight] = {}
    size = 0
    for name, weight in weights.items():
        count = weight_bytes(weight, dtype)
        if current and size + count > shard_bytes:
            made.append(Shard(current, size))
            current, size = {}, 0
        current[name] = weight
        size += count
    return [*made, Shard(current, size)]


def write_shards(
    folder: Path,
    parts: list[Shard],
    source: TensorSource,
    dtype: str,
    *,
    on_progress: Callable[[str, int], None] | None = None,
) -> None:
    """Write model.safetensors, or model-00001-of-0000N.safetensors with their index, into `folder`.

    `on_progress(tensor, bytes)` is called after each tensor. Raises ModelError on weights that are not finite
    or do not fit `dtype`, and whatever the source raises; the files are then incomplete.
    """
    single = len(parts) == 1
    places: dict[str, str] = {}
    with block_pool() as pool:
        for number, part in enumerate(parts, 1):
            name = "model.safetensors" if single else f"model-{number:05}-of-{len(parts):05}.safetensors"
            with (folder / name).open("wb") as file:
                _write_head(file, part, dtype)
                for tensor, weight in part.weights.items():
                    for block in map_blocks(pool, source, weight, ENCODERS[dtype], purpose=name):
                        file.write(block.data)
                    places[tensor] = name
                    if on_progress:
                        on_progress(tensor, weight_bytes(weight, dtype))
                file.flush()
                os.fsync(file.fileno())
    if not single:
        total = sum(part.data_bytes for part in parts)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")


def _write_head(file: BinaryIO, part: Shard, dtype: str) -> None:
    code, offset = _DTYPES[dtype][0], 0
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for name, weight in part.weights.items():
        end = offset + weight_bytes(weight, dtype)
        header[name] = {"dtype": code, "shape": list(weight.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # readers may map the data, which then begins at a whole word
    file.write(struct.pack("<Q", len(text)) + text)
