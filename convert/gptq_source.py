"""Tensors of a GPTQ folder, dequantised: what its weights are worth exactly, read without torch or any GPTQ
library.

The format is AutoGPTQ's (github.com/AutoGPTQ/AutoGPTQ, nn_modules/qlinear/qlinear_cuda.py). For a linear
layer of I inputs, O outputs, G groups and b bits:

    qweight  int32 (I * b / 32, O)   column o: I values of b bits, a stream of bits through 32-bit words
    qzeros   int32 (G, O * b / 32)   row g: O values of b bits, likewise
    scales   float (G, O)
    g_idx    int32 (I,)              the group of each input; absent where groups are consecutive inputs

    weight[o, i] = scales[g, o] * (qweight[i, o] - zero[g, o])   with g = g_idx[i]

Checkpoints of format "gptq" store zero - 1 (modulo 2**b), those of "gptq_v2" store zero.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.hf_config import read_config
from convert.safetensors_source import SafetensorsSource
from convert.sources import FloatArray, StoredType
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

IntArray = npt.NDArray[np.int32]
BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # checkpoint format -> what is added to a stored zero
_PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")


@dataclass(frozen=True)
class GptqSettings:
    """How a folder was quantised. `group_size` in inputs, -1: all; `offset` is added to stored zeros."""

    bits: int
    group_size: int
    offset: int


@dataclass(frozen=True, eq=False)
class Layer:
    """One quantised matrix as it is stored; shapes as in the module's docstring."""

    qweight: IntArray
    zeros: IntArray  # (G, O), unpacked, offset added
    scales: FloatArray
    groups: IntArray  # (I,)


def read_settings(folder: Path) -> GptqSettings:
    """From config.json or quantize_config.json. Raises ModelError, naming the key, on what is not read."""
    config = Record.read(folder / "config.json").record("quantization_config")
    record = config if config.values else Record.read(folder / "quantize_config.json")
    bits = record.count("bits")
    if bits not in BITS:
        raise ModelError(f"{record.path}: bits is {bits}; read are {', '.join(map(str, BITS))}")
    group_size = record.values.get("group_size", -1)
    if type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise ModelError(f"{record.path}: group_size is {group_size!r}; it should be -1 or more than 0")
    method, kind = record.text("quant_method", "gptq"), _format(record)
    if method != "gptq" or kind not in FORMATS:
        raise ModelError(
            f"{record.path}: quantised by {method} in the format {kind}; "
            f"read are gptq in {', '.join(FORMATS)}"
        )
    return GptqSettings(bits, group_size, FORMATS[kind])


def _format(record: Record) -> str:
    return record.text("checkpoint_format") or record.text("format", "gptq")


def unpack(words: IntArray, bits: int, count: int) -> IntArray:
    """The first `count` values of `bits` bits along the first axis of (W, ...) 32-bit words -> (count, ...).

    Values lie one after the other from the lowest bit on and may begin in one word and end in the next.
    """
    at = np.arange(count, dtype=np.int64).reshape(-1, *(1,) * (words.ndim - 1)) * bits
    word = at.reshape(-1) // 32
    low = words.view(np.uint32)[word].astype(np.uint64)
    high = words.view(np.uint32)[np.minimum(word + 1, len(words) - 1)].astype(np.uint64)
    stream = low | high << np.uint64(32)
    values: IntArray = (stream >> (at % 32).astype(np.uint64) & np.uint64(2**bits - 1)).astype(np.int32)
    return values


def dequantise(layer: Layer, bits: int, start: int, stop: int) -> FloatArray:
    """Outputs [start, stop) as float32 rows: (stop - start, I). One rounding, of the product."""
    inputs = len(layer.groups)
    values = unpack(np.ascontiguousarray(layer.qweight[:, start:stop]), bits, inputs)
    zeros, scales = layer.zeros[:, start:stop], layer.scales[:, start:stop]
    weight: FloatArray = (values - zeros[layer.groups]).astype(np.float32) * scales[layer.groups]
    return np.ascontiguousarray(weight.T)


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
        zeros = unpack(np.ascontiguousarray(qzeros.T), bits, outputs).T
        zeros = zeros + self.settings.offset & 2**bits - 1
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
            groups = np.arange(inputs, dtype=np.int32) // np.int32(inputs if size == -1 else size)
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
