"""JSON files of a model folder, read with their types checked: they are other people's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeGuard

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import read_json

MAX_COUNT = (1 << 31) - 1  # sizes and lengths end up in 32 bits
MAX_FLOAT = 3.4e38  # numbers end up in float32


def is_text(value: object) -> TypeGuard[str]:
    """A string without half of a surrogate pair, which JSON can spell and no file or answer can hold."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


class Record:
    """One JSON object; every getter raises ModelError naming the file and key when the type is another."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises ModelError when the file is absent or holds no JSON object."""
        return cls(path, read_json(path))

    @classmethod
    def read_if_there(cls, path: Path) -> Record:
        """Like `read`, but an absent file is an empty record."""
        return cls.read(path) if path.is_file() else cls(path, {})

    def _wrong(self, key: str, wanted: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {self.values.get(key)!r:.200}; it should be {wanted}")

    def count(self, key: str, default: int | None = None, *, most: int = MAX_COUNT) -> int:
        """From 1 to `most`; a missing or null one is `default`, or an error without a default."""
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= most:
            raise self._wrong(key, f"a whole number from 1 to {most:,}")
        return value

    def optional_count(self, key: str) -> int | None:
        """Like `count`, but None when it is missing or null."""
        return None if self.values.get(key) is None else self.count(key)

    def number(self, key: str, default: float) -> float:
        """Finite in float32; JSON in Python's hands holds NaN, Infinity and integers of any size too."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MAX_FLOAT:
            raise self._wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str = "") -> str:
        value = self.values.get(key)
        if value is None:
            return default
        if not is_text(value):
            raise self._wrong(key, "a string")
        return value

    def record(self, key: str) -> Record:
        """A nested object; missing or null is an empty one."""
        value = self.values.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return Record(self.path, value)

    def ids(self, key: str) -> list[int]:
        """A token id or a list of them; missing or null is an empty list."""
        value = self.values.get(key)
        found = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and item >= 0 for item in found):
            raise self._wrong(key, "a token id or a list of them")
        return found
