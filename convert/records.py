"""JSON files of a Hugging Face folder, read with their types checked: they are other people's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rrtf_serve.models.errors import ModelError


class Record:
    """One JSON object; every getter raises ModelError naming the file and key when the type is another."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path, self.values = path, values

    @classmethod
    def read(cls, path: Path) -> Record:
        """Raises ModelError when the file is absent or holds no JSON object."""
        try:
            values = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            raise ModelError(f"{path}: missing; the model folder is incomplete, fetch it again") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{path}: not readable as JSON ({error})") from error
        if not isinstance(values, dict):
            raise ModelError(f"{path}: holds no JSON object")
        return cls(path, values)

    @classmethod
    def read_if_there(cls, path: Path) -> Record:
        """Like `read`, but an absent file is an empty record."""
        return cls.read(path) if path.is_file() else cls(path, {})

    def _wrong(self, key: str, wanted: str) -> ModelError:
        return ModelError(f"{self.path}: {key} is {self.values.get(key)!r}; it should be {wanted}")

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer; a missing or null one is `default`, or an error without a default."""
        value = self.values.get(key)
        if value is None:
            value = default
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self._wrong(key, "a positive whole number")
        return value

    def optional_count(self, key: str) -> int | None:
        """A positive integer, or None when it is missing or null."""
        return None if self.values.get(key) is None else self.count(key)

    def number(self, key: str, default: float) -> float:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(key, "a number")
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
        if not isinstance(value, str):
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
