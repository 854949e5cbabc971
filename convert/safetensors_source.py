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

from convert.hf_config import read_config
from convert.sources import DataFile, FloatArray, ModelConfig, StoredType, missing
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_HEADER = 100_000_000  # the format's own limit, bytes
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_STORED: dict[str, StoredType] = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}


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
        elements = int(np.prod(shape, dtype=object))
        if dtype in _WIDTHS:
            size = _WIDTHS[dtype] * elements
            if stop - start != size:
                raise self._damaged(f"{name} has {stop - start:,} bytes, its shape {shape} needs {size:,}")
        elif elements > 8 * (stop - start):  # a type that isn't known here has one bit at least
            raise self._damaged(f"{name} has {stop - start:,} bytes, too few for its shape {shape}")
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
    """A Hugging Face folder as a TensorSource. Raises ModelError on an absent, damaged or cut-short shard.

    `config` replaces what config.json says, for folders that it describes in another way.
    """

    def __init__(self, path: Path, config: ModelConfig | None = None) -> None:
        self.path = path
        self.config = config or read_config(Record.read(path / "config.json"))
        self._files: dict[Path, SafetensorsFile] = {}
        self._places: dict[str, SafetensorsFile] = {}
        try:
            self._open()
            self._check_layers()
        except ModelError:
            self.close()
            raise

    @property
    def names(self) -> Collection[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.entry(name).shape

    def stored_type(self, name: str) -> StoredType:
        return _STORED.get(self.entry(name).dtype, "float32")

    def precision(self, name: str) -> float:
        return float(8 * _WIDTHS.get(self.entry(name).dtype, 4))

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        self.entry(name)
        return self._places[name].rows(name, start, stop)

    def close(self) -> None:
        for file in self._files.values():
            file.file.close()

    def entry(self, name: str) -> Entry:
        """Type, shape and place of a tensor of any type. Raises ModelError when there is none."""
        if name not in self._places:
            raise missing(self, name)
        return self._places[name].entries[name]

    def _open(self) -> None:
        index = self.path / _INDEX
        single = self.path / _SINGLE
        # A single file comes before an index, as for transformers: shards beside it are an older save's.
        sharded = index.is_file() and not single.is_file()
        if not single.is_file() and len(found := list(self.path.glob("*.safetensors"))) == 1:
            single = found[0]  # AutoGPTQ names the file after its settings
        if sharded:
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
            seen = f" {', '.join(pickled)} can run code when loaded and is not read;" if pickled else ""
            raise ModelError(
                f"{self.path}: no model.safetensors and no model.safetensors.index.json;{seen} "
                "save the model as safetensors"
            )

    def _check_layers(self) -> None:
        if self.config.layers > len(self._places):
            key = "n_layer" if self.config.architecture == "starcoder" else "num_hidden_layers"
            raise ModelError(
                f"{self.path / 'config.json'}: {key} is {self.config.layers:,}, but there are only "
                f"{len(self._places):,} tensors"
            )

    def _file(self, path: Path) -> SafetensorsFile:
        if path not in self._files:
            self._files[path] = SafetensorsFile(path)
        return self._files[path]


def safetensors_files(folder: Path) -> list[SafetensorsFile]:
    """The weight files of a folder, opened: the single file, or the shards that its index names.

    Raises ModelError on one that is absent, damaged or cut short.
    """
    index = folder / _INDEX
    names = {_SINGLE}
    if index.is_file() and not (folder / _SINGLE).is_file():
        names = {str(name) for name in Record.read(index).record("weight_map").values.values()}
    if any(Path(name).name != name for name in names):
        raise ModelError(f"{index}: names files outside the folder")
    opened: list[SafetensorsFile] = []
    try:
        opened.extend(SafetensorsFile(folder / name) for name in sorted(names))
    except ModelError:
        for file in opened:
            file.file.close()
        raise
    return opened
