"""Tensors of a Hugging Face folder: one safetensors file or shards with an index.

File format: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, the data). The
header is untrusted: each range is held against the file's size. Pickled weights (pytorch_model.bin) are never
read.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.records import Record
from convert.sources import DataFile, FloatArray, ModelConfig, RopeScaling, StoredType, missing
from rrtf_serve.models.errors import ModelError

_MAX_HEADER = 100_000_000  # the format's own limit, bytes
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_STORED: dict[str, StoredType] = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "gpt_bigcode": "starcoder",
    "starcoder2": "starcoder2",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a safetensors file; `offset` is in bytes from the start of the file."""

    file: DataFile
    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFile:
    """The tensors of one file. Raises ModelError on a damaged or truncated one."""

    def __init__(self, path: Path) -> None:
        self.file = DataFile(path)
        try:
            self.entries = self._read_header()
        except ModelError:
            self.file.close()
            raise

    def _damaged(self, what: str) -> ModelError:
        return ModelError(f"{self.file.path}: {what}; it is damaged or cut short, fetch it again")

    def _read_header(self) -> dict[str, Entry]:
        (length,) = struct.unpack("<Q", self.file.read(0, 8, "the header's length").data)
        if length > min(_MAX_HEADER, self.file.size - 8):
            raise self._damaged(f"its header claims {length:,} bytes")
        try:
            header = json.loads(self.file.read(8, length, "the header").tobytes())
        except (ValueError, RecursionError) as error:
            raise self._damaged(f"its header is not JSON ({error})") from error
        if not isinstance(header, dict):
            raise self._damaged("its header is not an object")
        return {
            name: self._entry(name, e, 8 + length) for name, e in header.items() if name != "__metadata__"
        }

    def _entry(self, name: str, record: object, base: int) -> Entry:
        match record:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(stop)]} if all(
                type(length) is int and length >= 0 for length in shape
            ):
                pass
            case _:
                raise self._damaged(f"the header's record of {name} is {record!r:.200}")
        if dtype in _WIDTHS:
            size = _WIDTHS[dtype] * int(np.prod(shape, dtype=object))
            if stop - start != size:
                raise self._damaged(f"{name} has {stop - start:,} bytes, its shape {shape} needs {size:,}")
        if not 0 <= start <= stop <= self.file.size - base:
            raise self._damaged(f"{name} lies at bytes {start:,} to {stop:,}, past the end")
        return Entry(self.file, dtype, tuple(shape), base + start)

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        entry = self.entries[name]
        if entry.dtype not in _WIDTHS:
            raise ModelError(
                f"{self.file.path}: tensor {name} has the type {entry.dtype}; "
                f"only {', '.join(sorted(_WIDTHS))} are read"
            )
        columns = int(np.prod(entry.shape[1:], dtype=np.int64))
        width = _WIDTHS[entry.dtype] * columns
        raw = self.file.read(entry.offset + start * width, (stop - start) * width, f"tensor {name}")
        if entry.dtype == "BF16":  # the upper half of a float32
            floats = (raw.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
        else:
            floats = raw.view(_DTYPES[entry.dtype]).astype(np.float32, copy=False)
        return floats.reshape(stop - start, *entry.shape[1:])


class SafetensorsSource:
    """A Hugging Face folder as a TensorSource. Raises ModelError on an absent, damaged or cut-short shard."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_config(path)
        self._files: dict[Path, SafetensorsFile] = {}
        self._places: dict[str, SafetensorsFile] = {}
        try:
            self._open()
        except ModelError:
            self.close()
            raise

    @property
    def names(self) -> Collection[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def stored_type(self, name: str) -> StoredType:
        return _STORED.get(self._entry(name).dtype, "float32")

    def precision(self, name: str) -> float:
        return float(8 * _WIDTHS.get(self._entry(name).dtype, 4))

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        self._entry(name)
        return self._places[name].rows(name, start, stop)

    def close(self) -> None:
        for file in self._files.values():
            file.file.close()

    def _entry(self, name: str) -> Entry:
        if name not in self._places:
            raise missing(self, name)
        return self._places[name].entries[name]

    def _open(self) -> None:
        index = self.path / "model.safetensors.index.json"
        single = self.path / "model.safetensors"
        if index.is_file():
            weight_map = Record.read(index).record("weight_map").values
            for name, shard in weight_map.items():
                if not isinstance(shard, str) or Path(shard).name != shard:
                    raise ModelError(f"{index}: {name} lies in {shard!r}, which is not a plain file name")
                file = self._file(self.path / shard)
                if name not in file.entries:
                    raise ModelError(
                        f"{file.file.path}: tensor {name} is missing, though {index.name} names it"
                    )
                self._places[name] = file
        elif single.is_file():
            file = self._file(single)
            self._places = dict.fromkeys(file.entries, file)
        else:
            pickled = sorted(path.name for path in self.path.glob("*.bin"))
            found = f" {', '.join(pickled)} can run code when loaded and is not read;" if pickled else ""
            raise ModelError(
                f"{self.path}: no model.safetensors and no model.safetensors.index.json;{found} "
                "save the model as safetensors"
            )

    def _file(self, path: Path) -> SafetensorsFile:
        if path not in self._files:
            self._files[path] = SafetensorsFile(path)
        return self._files[path]


def read_config(folder: Path) -> ModelConfig:
    """Facts from config.json. Raises ModelError on an unknown or quantised model and on wrong values."""
    record = Record.read(folder / "config.json")
    model_type = record.text("model_type")
    if model_type not in _ARCHITECTURES:
        raise ModelError(
            f"{record.path}: model_type {model_type!r} can't be converted; "
            f"known: {', '.join(sorted(_ARCHITECTURES))}"
        )
    if record.values.get("quantization_config"):
        method = record.record("quantization_config").text("quant_method", "unknown")
        raise ModelError(f"{folder}: is quantised already ({method}); convert the model it was made from")
    return _bigcode_config(record) if model_type == "gpt_bigcode" else _rotary_config(record, model_type)


def _bigcode_config(record: Record) -> ModelConfig:
    heads, hidden = record.count("n_head"), record.count("n_embd")
    multi_query = record.flag("multi_query", True)
    return ModelConfig(
        architecture="starcoder",
        naming="hf",
        layers=record.count("n_layer"),
        heads=heads,
        kv_heads=1 if multi_query else heads,
        head_dim=hidden // heads,
        hidden=hidden,
        ffn=record.count("n_inner", 4 * hidden),
        context_length=record.count("n_positions"),
        norm_epsilon=record.number("layer_norm_epsilon", 1e-5),
        activation=record.text("activation_function", "gelu_pytorch_tanh"),
        tied=record.flag("tie_word_embeddings", True),
        multi_query=multi_query,
    )


def _rotary_config(record: Record, model_type: str) -> ModelConfig:
    heads, hidden = record.count("num_attention_heads"), record.count("hidden_size")
    starcoder2 = model_type == "starcoder2"
    windowed = starcoder2 or (model_type == "qwen2" and record.flag("use_sliding_window", False))
    # transformers 5 writes rope_parameters, older ones rope_theta and rope_scaling.
    rope = record.record("rope_parameters")
    scaling = rope if rope.values else record.record("rope_scaling")
    return ModelConfig(
        architecture=_ARCHITECTURES[model_type],
        naming="hf",
        layers=record.count("num_hidden_layers"),
        heads=heads,
        kv_heads=record.count("num_key_value_heads", 2 if starcoder2 else heads),
        head_dim=record.count("head_dim", hidden // heads),
        hidden=hidden,
        ffn=record.count("intermediate_size"),
        context_length=record.count("max_position_embeddings"),
        norm_epsilon=record.number("norm_epsilon", 1e-5)
        if starcoder2
        else record.number("rms_norm_eps", 1e-6),
        activation=record.text("hidden_act", "gelu_pytorch_tanh" if starcoder2 else "silu"),
        rope_theta=scaling.number("rope_theta", record.number("rope_theta", 10_000.0)),
        rope_scaling=_rope_scaling(scaling),
        sliding_window=record.optional_count("sliding_window") if windowed else None,
        tied=record.flag("tie_word_embeddings", starcoder2),
    )


def _rope_scaling(record: Record) -> RopeScaling | None:
    kind = record.text("rope_type") or record.text("type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling("linear", record.number("factor", 1.0))
    raise ModelError(f"{record.path}: rotary scaling {kind!r} can't be converted; known: default, linear")
