"""The GPTQ checkpoint format: what a folder says of itself, and its streams of bits. Needs numpy alone.

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

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

IntArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float32]
BITS = (2, 3, 4, 8)
FORMATS = {"gptq": 1, "gptq_v2": 0}  # checkpoint format -> what is added to a stored zero


@dataclass(frozen=True)
class GptqSettings:
    """How a folder was quantised. `group_size` in inputs, -1: all; `offset` is added to stored zeros;
    `shuffled`: groups need not be consecutive (desc_act), so g_idx must be there."""

    bits: int
    group_size: int
    offset: int
    shuffled: bool = False


@dataclass(frozen=True, eq=False)
class Layer:
    """One quantised matrix as it is stored; shapes as above."""

    qweight: IntArray
    zeros: IntArray  # (G, O), unpacked, offset added
    scales: FloatArray
    groups: IntArray  # (I,)


def read_settings(folder: Path) -> GptqSettings:
    """From config.json or quantize_config.json. Raises ModelError, naming the key, on what is not read."""
    config = Record.read(folder / "config.json").record("quantization_config")
    record = config if config.values else Record.read(folder / "quantize_config.json")
    method, kind = record.text("quant_method", "gptq"), _format(record)
    if method != "gptq" or kind not in FORMATS:
        raise ModelError(
            f"{record.path}: quantised by {method} in the format {kind}; "
            f"read are gptq in {', '.join(FORMATS)}"
        )
    bits = record.count("bits")
    if bits not in BITS:
        raise ModelError(f"{record.path}: bits is {bits}; read are {', '.join(map(str, BITS))}")
    group_size = record.values.get("group_size", -1)
    if type(group_size) is not int or (group_size < 1 and group_size != -1):
        raise ModelError(f"{record.path}: group_size is {group_size!r}; it should be -1 or more than 0")
    # gptqmodel's settings for some layers: those that leave a layer plain are seen from its tensors.
    for pattern, changed in record.record("dynamic").values.items():
        if isinstance(changed, dict) and {"bits", "group_size"} & changed.keys():
            raise ModelError(
                f"{record.path}: dynamic gives layers like {pattern!r:.100} other bits or groups; read are "
                "folders quantised alike throughout"
            )
    return GptqSettings(bits, group_size, FORMATS[kind], record.flag("desc_act", False))


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


def unpack_zeros(qzeros: IntArray, settings: GptqSettings, outputs: int) -> IntArray:
    """Zero points as they count, the format's offset added: (G, outputs)."""
    stored = unpack(np.ascontiguousarray(qzeros.T), settings.bits, outputs).T
    zeros: IntArray = stored + np.int32(settings.offset) & np.int32(2**settings.bits - 1)
    return zeros


def consecutive_groups(settings: GptqSettings, inputs: int) -> IntArray:
    """The group of each input where no g_idx is stored: (inputs,)."""
    size = inputs if settings.group_size == -1 else settings.group_size
    return np.arange(inputs, dtype=np.int32) // np.int32(size)


def dequantise(layer: Layer, bits: int, start: int, stop: int) -> FloatArray:
    """Outputs [start, stop) as float32 rows: (stop - start, I). One rounding, of the product."""
    inputs = len(layer.groups)
    values = unpack(np.ascontiguousarray(layer.qweight[:, start:stop]), bits, inputs)
    zeros, scales = layer.zeros[:, start:stop], layer.scales[:, start:stop]
    weight: FloatArray = (values - zeros[layer.groups]).astype(np.float32) * scales[layer.groups]
    return np.ascontiguousarray(weight.T)
