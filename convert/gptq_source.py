"""Tensors of a GPTQ folder, dequantised: what its weights are worth exactly, read without torch or any GPTQ
library. The format: rrtf_serve/models/gptq.py.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from pathlib import Path

from convert.hf_config import read_config
from convert.safetensors_source import SafetensorsSource
from convert.sources import FloatArray, StoredType
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.gptq import (
    IntArray,
    Layer,
    consecutive_groups,
    dequantise,
    read_settings,
    unpack_zeros,
)
from rrtf_serve.models.records import Record

_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


class GptqSource:
    """A GPTQ folder as a TensorSource under Hugging Face's names, every quantised matrix as `NAME.weight`.

    Raises ModelError on settings that are not read, and on parts that are missing or do not fit together.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = read_settings(path)
        record = Record.read(path / "config.json")
        plain = {key: value for key, value in record.values.items() if key != "quantization_config"}
        self.config = read_config(Record(record.path, plain))
        self._stored = SafetensorsSource(path, self.config)
        suffix = _PARTS[0]
        self.quantised = {
            f"{name.removesuffix(suffix)}.weight" for name in self._stored.names if name.endswith(suffix)
        }
        kept = [name for name in self._stored.names if not name.endswith(_PARTS)]
        self._names = self.quantised | set(kept)
        self._lock = threading.Lock()
        self._last: tuple[str, Layer] | None = None

    @property
    def names(self) -> Collection[str]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self.quantised:
            return self._stored.shape(name)
        return self._size(name)

    def stored_type(self, name: str) -> StoredType:
        return "float32" if name in self.quantised else self._stored.stored_type(name)

    def precision(self, name: str) -> float:
        return float(self.settings.bits) if name in self.quantised else self._stored.precision(name)

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        if name not in self.quantised:
            return self._stored.rows(name, start, stop)
        with self._lock:
            if self._last is None or self._last[0] != name:
                self._last = name, self.layer(name)
            layer = self._last[1]
        return dequantise(layer, self.settings.bits, start, stop)

    def close(self) -> None:
        self._stored.close()

    def layer(self, name: str) -> Layer:
        """The stored parts of the matrix `name` (ending in .weight), held against each other."""
        base, (outputs, inputs) = name.removesuffix(".weight"), self._size(name)
        bits, size = self.settings.bits, self.settings.group_size
        groups_count = 1 if size == -1 else math.ceil(inputs / size)
        qzeros = self._integers(f"{base}.qzeros", (groups_count, _words(outputs, bits)))
        zeros = unpack_zeros(qzeros, self.settings, outputs)
        scales = self._stored.rows(f"{base}.scales", 0, groups_count)
        if scales.shape != (groups_count, outputs):
            raise self._misshapen(f"{base}.scales", scales.shape, (groups_count, outputs))
        if f"{base}.g_idx" in self._stored.names:
            groups = self._integers(f"{base}.g_idx", (inputs,))
            if groups.size and not 0 <= groups.min() <= groups.max() < groups_count:
                raise ModelError(
                    f"{self.path}: tensor {base}.g_idx names groups from {groups.min()} to {groups.max()}, "
                    f"there are {groups_count}"
                )
        else:
            groups = consecutive_groups(self.settings, inputs)
        qweight = self._integers(f"{base}.qweight", (_words(inputs, bits), outputs))
        return Layer(qweight, zeros, scales, groups)

    def _size(self, name: str) -> tuple[int, int]:
        """(outputs, inputs) of a quantised matrix."""
        words, outputs = self._stored.shape(f"{name.removesuffix('weight')}qweight")
        return outputs, words * 32 // self.settings.bits

    def _integers(self, name: str, shape: tuple[int, ...]) -> IntArray:
        entry = self._stored.entry(name)
        if entry.dtype != "I32" or entry.shape != shape:
            raise self._misshapen(f"{name} ({entry.dtype})", entry.shape, shape)
        raw = entry.file.read(entry.offset, 4 * math.prod(shape), f"tensor {name}")
        return raw.view("<i4").reshape(shape)

    def _misshapen(self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> ModelError:
        return ModelError(
            f"{self.path}: tensor {name} has the shape {found}; int32 words or scales of {wanted} belong to "
            f"{self.settings.bits} bits and groups of {self.settings.group_size}"
        )


def _words(count: int, bits: int) -> int:
    return count * bits // 32
