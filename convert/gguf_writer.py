"""A model -> one GGUF file, for llama.cpp and what is built on it.

    write_gguf(source, Path("model.gguf"), "q8_0")

The head is written by the gguf package; tensors are read, encoded and written by blocks of rows, so that
memory is bounded by a block. Fields: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGUFWriter, LlamaFileType
from gguf import GGMLQuantizationType as Type
from gguf.quants import quantize
from tqdm import tqdm

from convert.checkpoint import open_checkpoint
from convert.families import FAMILIES
from convert.gguf_layout import TYPES, Target, architecture_name, targets
from convert.gguf_vocabulary import Fields, tokenizer_fields
from convert.new_file import new_file
from convert.sources import FloatArray, ModelConfig, TensorSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Source

_BLOCK_BYTES = 8 << 20  # of float32
_HEAD_BYTES = 32 << 20  # more than any known vocabulary and tensor list take
_FILE_TYPES = {
    Type.F32: LlamaFileType.ALL_F32,
    Type.F16: LlamaFileType.MOSTLY_F16,
    Type.BF16: LlamaFileType.MOSTLY_BF16,
    Type.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}
_LARGEST_FLOAT16 = 65504.0


def write_gguf(
    source: Source, destination: Path, kind: str, *, progress: bool = True, force: bool = False
) -> int:
    """Write `source` as the GGUF file `destination` and return its size in bytes.

    `kind` is a key of gguf_layout.TYPES. Raises ValueError on another, ModelError for what the user can mend:
    a model, tokenizer or weight that GGUF can't hold, an existing file without `force`, too little disk.
    """
    if kind not in TYPES:
        raise ValueError(f"type {kind!r} is unknown; known: {', '.join(TYPES)}")
    if destination.exists() and destination.samefile(source.path):
        raise ModelError(f"{destination}: is the source itself; take another name")
    checkpoint = open_checkpoint(source)
    try:
        tensors = checkpoint.tensors
        planned = targets(tensors, TYPES[kind])
        rows = next(target.shape[0] for target in planned if target.name == "token_embd.weight")
        fields = {
            "general.name": source.name,
            **({"general.license": checkpoint.licence} if checkpoint.licence else {}),
            "general.file_type": int(_FILE_TYPES[TYPES[kind]]),
            "general.quantization_version": 2,
            **config_fields(tensors.config),
            **tokenizer_fields(checkpoint, rows, source.path),
        }
        needed = _HEAD_BYTES + sum(_bytes(target) + 32 for target in planned)
        with new_file(destination, needed_bytes=needed, force=force) as file:
            _write(file, tensors, fields, planned, progress)
    finally:
        checkpoint.tensors.close()
    return destination.stat().st_size


def config_fields(config: ModelConfig) -> Fields:
    """The `<architecture>.` fields that say how the tensors are run."""
    rms = not FAMILIES[config.architecture].norm_bias
    facts: Fields = {
        "block_count": config.layers,
        "context_length": config.context_length,
        "embedding_length": config.hidden,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        f"attention.layer_norm_{'rms_' if rms else ''}epsilon": float(config.norm_epsilon),
    }
    if config.architecture != "starcoder":
        facts["rope.freq_base"] = float(config.rope_theta)
        facts["rope.dimension_count"] = config.head_dim
    if config.head_dim * config.heads != config.hidden:
        facts |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if config.rope_scaling:
        facts |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(config.rope_scaling.factor)}
    if config.sliding_window:
        facts["attention.sliding_window"] = config.sliding_window
    return {f"{architecture_name(config)}.{key}": value for key, value in facts.items()}


def _write(file: Path, source: TensorSource, fields: Fields, planned: list[Target], progress: bool) -> None:
    writer = GGUFWriter(file, architecture_name(source.config))
    try:
        for key, value in fields.items():
            _put(writer, key, value)
        for target in planned:
            writer.add_tensor_info(
                target.name, target.shape, np.dtype(np.float32), _bytes(target), raw_dtype=target.kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (output,) = writer.fout or []
        writer.write_padding(output, output.tell())
        total = sum(map(_bytes, planned))
        with tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True) as bar:
            for target in planned:
                bar.set_description_str(target.name, refresh=False)
                for start in range(0, target.shape[0], step := _block_rows(target)):
                    stop = min(start + step, target.shape[0])
                    encoded = _encode(source, target, target.part.read(source, start, stop))
                    output.write(encoded.data)
                    bar.update(encoded.nbytes)
                writer.write_padding(output, _bytes(target))
    finally:
        writer.close()


def _put(writer: Any, key: str, value: object) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            (writer.add_uint32 if 0 <= value < 1 << 32 else writer.add_int64)(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(f"{key} is a {type(value).__name__}, which a GGUF field can't be")


def _bytes(target: Target) -> int:
    block, size = GGML_QUANT_SIZES[target.kind]
    return int(np.prod(target.shape, dtype=np.int64)) // int(block) * int(size)


def _block_rows(target: Target) -> int:
    return max(1, int(_BLOCK_BYTES // (4 * target.columns)))


def _encode(source: TensorSource, target: Target, rows: FloatArray) -> np.ndarray[Any, Any]:
    largest = float(np.abs(rows).max())
    if not np.isfinite(largest):
        raise ModelError(
            f"{source.path}: tensor {target.part.name} holds values that are not finite numbers; the file is "
            "damaged"
        )
    if target.kind is Type.F16 and largest > _LARGEST_FLOAT16:
        raise ModelError(
            f"{source.path}: tensor {target.part.name} holds {largest:g}, beyond float16's 65504; take bf16, "
            "f32 or q8_0"
        )
    encoded: np.ndarray[Any, Any] = np.ascontiguousarray(quantize(np.ascontiguousarray(rows), target.kind))
    return encoded
