"""Tensors of a GGUF file, dequantised by blocks of rows with gguf's own numpy code.

Key names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from convert.gguf_metadata import GgufMetadata, TensorInfo, read_metadata
from convert.rope import RopeScaling
from convert.sources import MAX_HEADS, DataFile, FloatArray, ModelConfig, StoredType, missing
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import MAX_COUNT

# What each architecture leaves unsaid in its fields.
_ACTIVATIONS = {
    "llama": "silu",
    "qwen2": "silu",
    "qwen3": "silu",
    "starcoder": "gelu_pytorch_tanh",
    "starcoder2": "gelu_pytorch_tanh",
}
# StarCoder2 was trained with this window at every size (arXiv 2402.19173, section 6.1); GGUF files omit it.
_STARCODER2_WINDOW = 4096

# Biases that these always have; of the others the file doesn't say.
_BIASED = {
    "qwen2": frozenset(("q", "k", "v")),
    "starcoder": frozenset(("qkv", "o", "up", "down")),
}
_DIVISORS = "rope_freqs.weight"

# gguf works through 16 rows at a time; rows are regrouped so that 16 fill about this many bytes of float32.
_CACHE_BYTES = 1 << 20
_GGUF_GROUP = 16


class GgufSource:
    """A GGUF file as a TensorSource; `metadata` may be given where it was read already.

    Raises ModelError on a damaged file, an unknown architecture, or a tensor type that can't be dequantised.
    """

    def __init__(self, path: Path, metadata: GgufMetadata | None = None) -> None:
        self.path = path
        self.metadata = metadata or read_metadata(path)
        self.config = read_config(self.metadata)
        self._tensors = {tensor.name: tensor for tensor in self.metadata.tensors}
        for tensor in self.metadata.tensors:
            self._check(tensor)
        self._file = DataFile(path)
        if _DIVISORS in self._tensors:  # Llama 3.1's scaling, worked out already
            divisors = self.rows(_DIVISORS, 0, self.shape(_DIVISORS)[0])
            scaling = RopeScaling(divisors=tuple(map(float, divisors.reshape(-1))))
            self.config = replace(self.config, rope_scaling=scaling)

    @property
    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._tensor(name).shape

    def stored_type(self, name: str) -> StoredType:
        kind = GGMLQuantizationType(self._tensor(name).ggml_type)
        if kind is GGMLQuantizationType.F16:
            return "float16"
        # A dequantised weight is a product of a float16 scale and an integer: exact in float32 only.
        return "bfloat16" if kind is GGMLQuantizationType.BF16 else "float32"

    def precision(self, name: str) -> float:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(self._tensor(name).ggml_type)]
        return float(8 * size / block)

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        tensor = self._tensor(name)
        columns = tensor.shape[-1] if len(tensor.shape) > 1 else 1
        kind = GGMLQuantizationType(tensor.ggml_type)
        block = GGML_QUANT_SIZES[kind][0]
        if len(tensor.shape) == 1 and block > 1:
            values = self._values(tensor, kind, 0, tensor.shape[0])
            return values[start:stop]
        values = self._values(tensor, kind, start * columns, stop * columns)
        return values.reshape(stop - start, columns) if len(tensor.shape) > 1 else values

    def close(self) -> None:
        self._file.close()

    def _values(self, tensor: TensorInfo, kind: GGMLQuantizationType, first: int, last: int) -> FloatArray:
        block, size = GGML_QUANT_SIZES[kind]
        offset = self.metadata.data_offset + tensor.offset + first // block * size
        count = (last - first) // block
        raw = self._file.read(offset, count * size, f"tensor {tensor.name}")
        per_group = max(1, _CACHE_BYTES // (4 * block * _GGUF_GROUP))
        regular = count - count % per_group
        parts = [
            dequantize(part.reshape(-1, width * size), kind).reshape(-1)
            for part, width in ((raw[: regular * size], per_group), (raw[regular * size :], 1))
            if part.size
        ]
        values: FloatArray = np.concatenate(parts) if len(parts) > 1 else parts[0]
        return values

    def _tensor(self, name: str) -> TensorInfo:
        try:
            return self._tensors[name]
        except KeyError:
            raise missing(self, name) from None

    def _check(self, tensor: TensorInfo) -> None:
        try:
            kind = GGMLQuantizationType(tensor.ggml_type)
            dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
        except (ValueError, NotImplementedError):
            name = getattr(_known(tensor.ggml_type), "name", f"number {tensor.ggml_type}")
            raise ModelError(
                f"{self.path}: tensor {tensor.name} has the type {name}, which can't be dequantised here; "
                "take another quantisation of the model, such as Q8_0 or Q4_K_M"
            ) from None
        block, size = GGML_QUANT_SIZES[kind]
        elements = int(np.prod(tensor.shape, dtype=object))
        end = self.metadata.data_offset + tensor.offset + elements // block * size
        if tensor.shape[-1] % block or end > self.metadata.file_size:
            raise ModelError(
                f"{self.path}: tensor {tensor.name} of shape {tensor.shape} does not fit into the file; "
                "it is cut short or damaged, fetch it again"
            )


def _known(number: int) -> GGMLQuantizationType | None:
    return GGMLQuantizationType(number) if number in list(GGMLQuantizationType) else None


def read_config(metadata: GgufMetadata) -> ModelConfig:
    """Raises ModelError on an architecture outside `families.FAMILIES` and on fields that are absent."""
    architecture = metadata.text("general.architecture")
    if architecture not in _ACTIVATIONS:
        raise ModelError(
            f"{metadata.path}: architecture {architecture!r} can't be converted; "
            f"known: {', '.join(sorted(_ACTIVATIONS))}"
        )

    def integer(key: str, default: int | None = None, most: int = MAX_COUNT) -> int:
        value = metadata.integer(f"{architecture}.{key}")
        if value is None:
            value = default
        if value is None or not 0 < value <= most:
            raise ModelError(
                f"{metadata.path}: {architecture}.{key} is {value}; it should be from 1 to {most:,}"
            )
        return value

    heads = integer("attention.head_count", most=MAX_HEADS)
    hidden = integer("embedding_length")
    kv_heads = integer("attention.head_count_kv", heads)
    head_dim = integer("attention.key_length", hidden // heads)
    norm = "layer_norm_rms_epsilon" if architecture in ("llama", "qwen2", "qwen3") else "layer_norm_epsilon"
    rotary = metadata.integer(f"{architecture}.rope.dimension_count")
    if rotary not in (None, head_dim) and architecture != "starcoder":
        raise ModelError(
            f"{metadata.path}: rotary positions on {rotary} of {head_dim} dimensions can't be converted"
        )
    window = metadata.integer(f"{architecture}.attention.sliding_window")
    return ModelConfig(
        architecture=architecture,
        naming="gguf",
        layers=integer("block_count", most=len(metadata.tensors)),  # each has several
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        hidden=hidden,
        ffn=integer("feed_forward_length"),
        context_length=integer("context_length"),
        norm_epsilon=metadata.number(f"{architecture}.attention.{norm}") or 1e-5,
        activation=_ACTIVATIONS[architecture],
        rope_theta=metadata.number(f"{architecture}.rope.freq_base") or 10_000.0,
        rope_scaling=_rope_scaling(metadata, architecture),
        sliding_window=window or (_STARCODER2_WINDOW if architecture == "starcoder2" else None),
        multi_query=architecture == "starcoder" and kv_heads == 1,
        biased=_BIASED.get(architecture),
    )


def _rope_scaling(metadata: GgufMetadata, architecture: str) -> RopeScaling | None:
    # Files of 2023 have the factor alone, under its first name or its present one: linear, says the format.
    factor = metadata.number(f"{architecture}.rope.scaling.factor")
    if factor is None:
        factor = metadata.number(f"{architecture}.rope.scale_linear")
    kind = metadata.text(f"{architecture}.rope.scaling.type", "none" if factor is None else "linear")
    if kind == "none":
        return None
    if kind != "linear":
        raise ModelError(f"{metadata.path}: rotary scaling {kind!r} can't be converted; known: linear")
    return RopeScaling(factor or 1.0)
