"""The head of a GGUF file: its key/value fields and its list of tensors, without the tensors' data.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
gguf.GGUFReader keeps several numpy views per vocabulary string; for 300,000 strings that costs seconds and
half a gigabyte. The file is untrusted: every length is held against the file's size before it is used.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import MAX_FLOAT

_STRING, _ARRAY = 8, 9
# value type -> struct code; 8 (string) and 9 (array) are read by hand
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_ARRAY = 1 << 24  # a Python list costs 8 bytes an element, more than the file does
_MAX_NESTING = 4
_MAX_DIMENSIONS = 4


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. `shape` is in numpy's order, slowest first; `offset` counts bytes from data_offset.

    `ggml_type` is the number of gguf.GGMLQuantizationType; numbers unknown to this code are kept as they are.
    """

    name: str
    shape: tuple[int, ...]
    ggml_type: int
    offset: int


@dataclass(frozen=True)
class GgufMetadata:
    """`fields` maps keys to int, float, bool, str or (nested) lists of them; `data_offset` is in bytes."""

    path: Path
    version: int
    fields: dict[str, object]
    tensors: list[TensorInfo]
    data_offset: int
    file_size: int

    def text(self, key: str, default: str = "") -> str:
        """A string field. Raises ModelError when the file holds another type under that key."""
        value = self.fields.get(key, default)
        if not isinstance(value, str):
            raise ModelError(f"{self.path}: {key} should be a string, it is {type(value).__name__}")
        return value

    def integer(self, key: str) -> int | None:
        """An integer field, None when absent. Raises ModelError when it holds another type."""
        value = self.fields.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise ModelError(f"{self.path}: {key} should be an integer, it is {type(value).__name__}")

    def number(self, key: str) -> float | None:
        """A float or integer field as float, None when absent. Raises ModelError on other types, NaN, inf."""
        value = self.fields.get(key)
        if value is None:
            return None
        if isinstance(value, int | float) and not isinstance(value, bool):
            if abs(value) <= MAX_FLOAT:
                return float(value)
            raise ModelError(f"{self.path}: {key} is {value}; it should be a finite number")
        raise ModelError(f"{self.path}: {key} should be a number, it is {type(value).__name__}")

    def flag(self, key: str) -> bool | None:
        """A boolean field, None when absent. Raises ModelError when it holds another type."""
        value = self.fields.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise ModelError(f"{self.path}: {key} should be true or false, it is {type(value).__name__}")

    def strings(self, key: str) -> list[str]:
        """A list of strings, empty when absent. Raises ModelError when it holds another type."""
        value = self.fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ModelError(f"{self.path}: {key} should be a list of strings")
        return value

    def numbers(self, key: str) -> list[float]:
        """A list of numbers, empty when absent. Raises ModelError when it holds another type."""
        value = self.fields.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, int | float) for item in value):
            raise ModelError(f"{self.path}: {key} should be a list of numbers")
        return value


class _Cursor:
    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.position = path, data, len(data), 0

    def corrupt(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path}: not a readable GGUF file ({what} at byte {self.position:,} of {self.size:,}). "
            "It may be cut short or damaged; fetch it again."
        )

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.position:
            raise self.corrupt(f"{what} of {count:,} bytes does not fit")

    def scalar(self, code: str) -> int | float | bool:
        layout = "<" + code
        width = struct.calcsize(layout)
        self.need(width, "a value")
        (value,) = struct.unpack_from(layout, self.data, self.position)
        self.position += width
        return value  # type: ignore[no-any-return]  # struct gives Any; the codes above give these three

    def integer(self, code: str) -> int:
        return int(self.scalar(code))

    def text(self, what: str) -> str:
        length = self.integer("Q")
        self.need(length, what)
        raw = self.data[self.position : self.position + length]
        try:
            decoded = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.corrupt(f"{what} is not UTF-8: {error.reason}") from error
        self.position += length
        return decoded

    def value(self, kind: int, what: str, depth: int = 0) -> object:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.array(what, depth)
        if kind not in _SCALARS:
            raise self.corrupt(f"{what} has the unknown value type {kind}")
        return self.scalar(_SCALARS[kind])

    def array(self, what: str, depth: int) -> list[object]:
        kind, count = self.integer("I"), self.integer("Q")
        if count > _MAX_ARRAY:
            raise self.corrupt(f"{what} claims {count:,} elements")
        if kind in _SCALARS:
            layout = f"<{count}{_SCALARS[kind]}"
            self.need(struct.calcsize(layout), what)
            values = struct.unpack_from(layout, self.data, self.position)
            self.position += struct.calcsize(layout)
            return list(values)
        if depth >= _MAX_NESTING:
            raise self.corrupt(f"{what} is nested too deep")
        self.need(count * 8, what)  # a string and an array take at least 8 bytes each
        return [self.value(kind, what, depth + 1) for _ in range(count)]

    def tensor(self) -> TensorInfo:
        name = self.text("a tensor's name")
        dimensions = self.integer("I")
        if not 0 < dimensions <= _MAX_DIMENSIONS:
            raise self.corrupt(f"tensor {name!r} claims {dimensions} dimensions")
        lengths = [self.integer("Q") for _ in range(dimensions)]
        if any(not 0 < length < 1 << 40 for length in lengths):
            raise self.corrupt(f"tensor {name!r} claims the shape {lengths}")
        ggml_type, offset = self.integer("I"), self.integer("Q")
        return TensorInfo(name, tuple(reversed(lengths)), ggml_type, offset)


def read_metadata(path: Path) -> GgufMetadata:
    """Read a GGUF file's head: fields and tensor list.

    Raises ModelError on a file that is absent, not GGUF, of an unread version or byte order, or damaged.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Cursor(path, data))
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from error
    except ValueError as error:  # mmap refuses an empty file
        raise ModelError(f"{path}: an empty file, not GGUF") from error


def _read(cursor: _Cursor) -> GgufMetadata:
    if cursor.data[:4] != b"GGUF":
        raise ModelError(f"{cursor.path}: not a GGUF file (its first four bytes are not 'GGUF')")
    cursor.position = 4
    version = cursor.integer("I")
    if version & 0xFFFF == 0:
        raise ModelError(f"{cursor.path}: a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise ModelError(f"{cursor.path}: GGUF version {version}; versions 2 and 3 are read")
    tensor_count, field_count = cursor.integer("Q"), cursor.integer("Q")
    fields: dict[str, object] = {}
    for _ in range(field_count):
        key = cursor.text("a field's name")
        if key in fields:
            raise cursor.corrupt(f"the field {key} is there twice")
        kind = cursor.integer("I")
        fields[key] = cursor.value(kind, key)
    tensors = []
    seen = set()
    for _ in range(tensor_count):
        tensor = cursor.tensor()
        if tensor.name in seen:
            raise cursor.corrupt(f"the tensor {tensor.name} is there twice")
        seen.add(tensor.name)
        tensors.append(tensor)
    alignment = fields.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.corrupt(f"general.alignment is {alignment!r}, not a power of two")
    data_offset = -(-cursor.position // alignment) * alignment
    for tensor in tensors:
        if tensor.offset % alignment or data_offset + tensor.offset >= cursor.size:
            raise cursor.corrupt(
                f"tensor {tensor.name} starts at {tensor.offset:,}, which is not inside the file"
            )
    return GgufMetadata(cursor.path, version, fields, tensors, data_offset, cursor.size)
