"""Writes CTranslate2's model.bin: weights are read, quantised and written by blocks of rows.

Byte for byte what ctranslate2.specs.ModelSpec.save writes for the same weights (binary version 6). That keeps
every tensor in memory; here a few blocks are. Order, aliases and quantisation follow its model_spec.py:
- variables in alphabetical order; one whose values equal an earlier one's becomes an alias of it;
- int8: one scale per row, 127 / max |w|;  int16: one scale per tensor, 1024 / max |w|;
- the other variables (norms, biases, positions) in the type that goes with the quantisation; with plain
  "int8" they stay in the type they were stored in.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from ctranslate2.specs import model_spec

from convert.architectures import Specification, Weight
from convert.blocks import ENCODERS, block_pool, check_finite, largest_value, map_blocks
from convert.sources import FloatArray, TensorSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import QUANTIZATIONS

T = TypeVar("T")
Array = np.ndarray[Any, Any]

_TYPE_IDS = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4, "bfloat16": 5}
_WIDTHS = {"float32": 4, "int8": 1, "int16": 2, "int32": 4, "float16": 2, "bfloat16": 2}
# What variables without a scale are written as; plain int8 keeps the stored type.
_COMPANIONS = {
    "int8_float32": "float32", "int8_float16": "float16", "int8_bfloat16": "bfloat16", "int16": "float32",
    "float16": "float16", "bfloat16": "bfloat16", "float32": "float32",
}  # fmt: skip
_MAX_VARIABLE = (1 << 32) - 1  # model.bin counts a variable's bytes in 32 bits


@dataclass(eq=False)
class Variable:
    """One entry of model.bin: a `Weight` to be read, or a small array that is written as it is."""

    name: str
    value: Weight | Array
    target: str  # type of the written values
    alias: str = ""  # name of the equal variable that is written in its place
    digest: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the values and of their scale."""
        values = int(np.prod(self.value.shape, dtype=np.int64)) * _WIDTHS[self.target]
        return values + {"int8": 4 * self.value.shape[0] if self.value.shape else 0, "int16": 4}.get(
            self.target if isinstance(self.value, Weight) else "", 0
        )


def check_quantization(quantization: str) -> None:
    """Raises ValueError on an unknown one, listing the known."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization {quantization!r} is unknown; known: {', '.join(QUANTIZATIONS)}")


def plan(specification: Specification, quantization: str) -> list[Variable]:
    """The variables in the order of the file; a source tensor that is used twice is an alias already.

    Raises ValueError on an unknown quantisation, ModelError on a variable that model.bin can't hold.
    """
    check_quantization(quantization)
    variables: list[Variable] = []

    def add(spec: Any, name: str, value: Any) -> None:
        if isinstance(value, Weight):
            quantizable = hasattr(spec, f"{name.rsplit('/', 1)[-1]}_scale")
            variables.append(Variable(name, value, _target(value, quantization, quantizable)))
        elif not (isinstance(value, str) and value == model_spec.OPTIONAL):
            constant = _constant(name, value)
            variables.append(Variable(name, constant, constant.dtype.name))

    model_spec.visit_spec(specification.spec, add)
    variables.sort(key=lambda variable: variable.name)
    _alias_same_tensor(variables)
    for variable in variables:
        if not variable.alias and variable.size > _MAX_VARIABLE:
            raise ModelError(
                f"{variable.name} takes {variable.size:,} bytes as {variable.target}; CTranslate2 files hold "
                "at most 4 GiB per tensor. Take a smaller quantisation, such as int8."
            )
    return variables


def planned_size(variables: list[Variable]) -> int:
    """Upper bound of model.bin in bytes: equal tensors that are found only while writing make it smaller."""
    return sum(256 + (0 if variable.alias else variable.size) for variable in variables)


def _target(weight: Weight, quantization: str, quantizable: bool) -> str:
    if quantizable and quantization.startswith("int8"):
        return "int8"
    if quantizable and quantization == "int16":
        return "int16"
    return _COMPANIONS.get(quantization, weight.stored_type)


def _constant(name: str, value: Any) -> Array:
    if value is None:
        raise ValueError(f"{name} of the specification is not set")
    if isinstance(value, bool):
        return np.asarray(value, np.int8)
    if isinstance(value, float):
        return np.asarray(value, np.float32)
    return np.asarray(value)


def _alias_same_tensor(variables: list[Variable]) -> None:
    seen: dict[str, Variable] = {}
    for variable in variables:
        if isinstance(variable.value, Weight) and (name := variable.value.only_tensor()):
            first = seen.setdefault(name, variable)
            if first is not variable:
                variable.alias = first.name


def write_model(
    path: Path,
    specification: Specification,
    source: TensorSource,
    quantization: str,
    *,
    on_progress: Callable[[str, int], None] | None = None,
) -> int:
    """Write model.bin to `path` and return its size in bytes.

    `on_progress(variable, bytes)` is called after each variable. Raises ModelError on weights that are not
    finite or do not fit the type, and whatever the source raises; the file is then incomplete and to be
    removed by the caller.
    """
    variables = plan(specification, quantization)
    with path.open("wb") as file, block_pool() as pool:
        writer = _Writer(file, source, pool)
        writer.head(specification.spec.name, specification.spec.revision)
        for variable in variables:
            writer.variable(variable)
            if on_progress:
                on_progress(variable.name, variable.size)
        writer.tail([(variable.name, variable.alias) for variable in variables if variable.alias])
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


class _Writer:
    def __init__(self, file: BinaryIO, source: TensorSource, pool: ThreadPoolExecutor) -> None:
        self.file, self.source, self.pool = file, source, pool
        self.count = self.count_at = 0
        self.firsts: dict[tuple[object, ...], list[Variable]] = {}

    def head(self, name: str, revision: int) -> None:
        self._pack("I", model_spec.CURRENT_BINARY_VERSION)
        self._string(name)
        self._pack("I", revision)
        self.count_at = self.file.tell()
        self._pack("I", 0)

    def tail(self, aliases: list[tuple[str, str]]) -> None:
        self._pack("I", len(aliases))
        for alias, name in aliases:
            self._string(alias)
            self._string(name)
        end = self.file.tell()
        self.file.seek(self.count_at)
        self._pack("I", self.count)
        self.file.seek(end)

    def variable(self, variable: Variable) -> None:
        """Write one variable, or make it an alias of an equal one that was written before."""
        if variable.alias:
            return
        if isinstance(variable.value, Weight):
            self._weight(variable, variable.value)
        else:
            self._entry(variable.name, variable.value.shape, variable.target)
            self.file.write(variable.value.tobytes())

    def _weight(self, variable: Variable, weight: Weight) -> None:
        first_row = weight.parts[0].read(self.source, 0, 1) + np.float32(0)
        alike = self.firsts.setdefault((weight.shape, weight.stored_type, first_row.tobytes()), [])
        # Few tensors share their first row; only of those every value is compared.
        for earlier in alike:
            if self._digest(earlier) == self._digest(variable):
                variable.alias = earlier.name
                return
        alike.append(variable)
        if variable.target == "int16":
            self._write_int16(variable.name, weight)
        elif variable.target == "int8":
            self._write_int8(variable.name, weight)
        else:
            self._entry(variable.name, weight.shape, variable.target)
            for values in self._map(variable.name, weight, ENCODERS[variable.target]):
                self.file.write(values.data)

    def _write_int8(self, name: str, weight: Weight) -> None:
        scales = []
        self._entry(name, weight.shape, "int8")
        for values, scale in self._map(name, weight, _to_int8):
            self.file.write(values.data)
            scales.append(scale)
        self._entry(f"{name}_scale", weight.shape[:1], "float32")
        self.file.write(np.concatenate(scales).data)

    def _write_int16(self, name: str, weight: Weight) -> None:
        largest = max(self._map(name, weight, largest_value))
        # A tensor of zeros has no scale; 1 keeps it zeros, where dividing would give NaN.
        scale = np.float32(2**10 / largest) if largest else np.float32(1)
        self._entry(name, weight.shape, "int16")
        for values in self._map(name, weight, lambda block: _to_int16(block, scale)):
            self.file.write(values.data)
        self._entry(f"{name}_scale", (), "float32")
        self.file.write(scale.tobytes())

    def _digest(self, variable: Variable) -> bytes:
        if not variable.digest and isinstance(variable.value, Weight):
            digest = hashlib.blake2b()
            # + 0 turns -0.0 into 0.0, which it equals.
            for block in self._map(variable.name, variable.value, lambda block: block + np.float32(0)):
                digest.update(block.data)
            variable.digest = digest.digest()
        return variable.digest

    def _map(self, name: str, weight: Weight, function: Callable[[FloatArray], T]) -> Iterator[T]:
        return map_blocks(self.pool, self.source, weight, function, purpose=name)

    def _entry(self, name: str, shape: tuple[int, ...], kind: str) -> None:
        self.count += 1
        self._string(name)
        self._pack("B", len(shape))
        for length in shape:
            self._pack("I", length)
        self._pack("B", _TYPE_IDS[kind])
        self._pack("I", int(np.prod(shape, dtype=np.int64)) * _WIDTHS[kind])

    def _string(self, text: str) -> None:
        encoded = text.encode("utf-8")
        self._pack("H", len(encoded) + 1)
        self.file.write(encoded + b"\0")

    def _pack(self, code: str, value: int) -> None:
        self.file.write(struct.pack(f"<{code}", value))


def _to_int8(block: FloatArray) -> tuple[npt.NDArray[np.int8], FloatArray]:
    largest = np.amax(np.absolute(block), axis=1)
    check_finite(largest)
    largest[largest == 0] = 127
    # A scale that float32 can hold even for rows of nearly nothing.
    scale: FloatArray = np.float32(127) / np.maximum(largest, np.float32(127) / np.finfo(np.float32).max)
    return np.rint(block * scale[:, np.newaxis]).astype(np.int8), scale


def _to_int16(block: FloatArray, scale: np.float32) -> npt.NDArray[np.int16]:
    limits = np.iinfo(np.int16)
    clipped: FloatArray = np.clip(np.rint(block * scale), limits.min, limits.max)
    return clipped.astype(np.int16)
