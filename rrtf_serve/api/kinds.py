"""Kinds of JSON values: each checks a value and describes itself as JSON Schema, so the two can't differ."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from rrtf_serve.api.errors import FieldPath, invalid_type, invalid_value
from rrtf_serve.models.tokens import well_formed

Schema = dict[str, Any]


class Kind(Protocol):
    def check(self, value: object, path: FieldPath) -> object:
        """The value as the server uses it. Raises ApiError (400) naming the path."""

    def schema(self) -> Schema: ...


@dataclass(frozen=True)
class Number:
    low: float = -math.inf
    high: float = math.inf

    def check(self, value: object, path: FieldPath) -> float:
        # bool is an int to Python, not to JSON.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise invalid_type(path, "a number", value)
        try:
            number = float(value)
        except OverflowError:  # an integer of 400 digits
            number = math.inf
        # 1e999 parses as infinity.
        if not self.low <= value <= self.high or math.isinf(number):
            raise invalid_value(path, _range_problem(self.low, self.high, value))
        return number

    def schema(self) -> Schema:
        return {"type": "number", **_bounds(self.low, self.high)}


@dataclass(frozen=True)
class Integer:
    low: float = -math.inf
    high: float = math.inf

    def check(self, value: object, path: FieldPath) -> int:
        # 16.0 is an integer to JSON Schema and to clients without an integer type.
        whole = isinstance(value, float) and value.is_integer()
        if isinstance(value, bool) or not (isinstance(value, int) or whole):
            raise invalid_type(path, "an integer", value)
        assert isinstance(value, int | float)
        if not self.low <= value <= self.high:
            raise invalid_value(path, _range_problem(self.low, self.high, value))
        return int(value)

    def schema(self) -> Schema:
        return {"type": "integer", **_bounds(self.low, self.high)}


@dataclass(frozen=True)
class Boolean:
    def check(self, value: object, path: FieldPath) -> bool:
        if not isinstance(value, bool):
            raise invalid_type(path, "a boolean", value)
        return value

    def schema(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text:
    def check(self, value: object, path: FieldPath) -> str:
        if not isinstance(value, str):
            raise invalid_type(path, "a string", value)
        return well_formed(value)

    def schema(self) -> Schema:
        return {"type": "string"}


@dataclass(frozen=True)
class OneOf:
    values: tuple[str, ...]

    def check(self, value: object, path: FieldPath) -> str:
        if not isinstance(value, str):
            raise invalid_type(path, "a string", value)
        if value not in self.values:
            raise invalid_value(path, f"must be one of {', '.join(self.values)}.")
        return value

    def schema(self) -> Schema:
        return {"type": "string", "enum": list(self.values)}


@dataclass(frozen=True)
class Array:
    items: Kind
    most: int | None = None

    def check(self, value: object, path: FieldPath) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise invalid_type(path, "an array", value)
        if self.most is not None and len(value) > self.most:
            raise invalid_value(path, f"at most {self.most} entries, but got {len(value)}.")
        return tuple(self.items.check(item, (*path, index)) for index, item in enumerate(value))

    def schema(self) -> Schema:
        limit = {} if self.most is None else {"maxItems": self.most}
        return {"type": "array", "items": self.items.schema(), **limit}


@dataclass(frozen=True)
class Object:
    """An object whose known members are checked; unknown ones are let through, as everywhere in this API."""

    members: tuple[tuple[str, Kind], ...] = ()
    required: tuple[str, ...] = ()

    def check(self, value: object, path: FieldPath) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise invalid_type(path, "an object", value)
        checked = dict(value)
        for name, kind in self.members:
            if value.get(name) is not None:
                checked[name] = kind.check(value[name], (*path, name))
            elif name in self.required:
                raise invalid_value(path, f"must have a member '{name}'.")
        return checked

    def schema(self) -> Schema:
        described: Schema = {"type": "object"}
        if self.members:
            described["properties"] = {
                name: kind.schema() if name in self.required else nullable(kind.schema())
                for name, kind in self.members
            }
        if self.required:
            described["required"] = list(self.required)
        return described


@dataclass(frozen=True)
class TextOrObject:
    """A word, or an object that says more ("auto" or {"type": "function", ...})."""

    words: tuple[str, ...]

    def check(self, value: object, path: FieldPath) -> object:
        if isinstance(value, dict):
            return value
        if not isinstance(value, str):
            raise invalid_type(path, "a string or an object", value)
        return OneOf(self.words).check(value, path)

    def schema(self) -> Schema:
        return {"anyOf": [{"type": "string", "enum": list(self.words)}, {"type": "object"}]}


@dataclass(frozen=True)
class Stops:
    """A string or a list of strings; empty ones are let go, since they would match everywhere."""

    most: int
    characters: int  # of all together: each row of a request builds its own tables from them

    def check(self, value: object, path: FieldPath) -> tuple[str, ...]:
        if isinstance(value, str):
            texts: tuple[object, ...] = (value,)
        elif isinstance(value, list):
            texts = Array(Text(), self.most).check(value, path)
        else:
            raise invalid_type(path, "a string or an array of strings", value)
        stops = tuple(well_formed(text) for text in texts if isinstance(text, str) and text)
        if sum(map(len, stops)) > self.characters:
            raise invalid_value(path, f"at most {self.characters} characters in all stop strings together.")
        return stops

    def schema(self) -> Schema:
        text = {"type": "string", "maxLength": self.characters}
        return {"anyOf": [text, {"type": "array", "items": text, "maxItems": self.most}]}


@dataclass(frozen=True)
class Biases:
    """{"token id": bias}, as pairs of token id and bias."""

    def check(self, value: object, path: FieldPath) -> tuple[tuple[int, float], ...]:
        if not isinstance(value, dict):
            raise invalid_type(path, "an object", value)
        pairs = []
        for token, bias in value.items():
            if not (token.isdecimal() and len(token) < 10):
                raise invalid_value(path, "its keys must be token ids.")
            pairs.append((int(token), Number(-100, 100).check(bias, (*path, token))))
        return tuple(sorted(pairs))

    def schema(self) -> Schema:
        return {
            "type": "object",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": Number(-100, 100).schema(),
        }


@dataclass(frozen=True)
class Prompt:
    """One text, several texts, one list of token ids, or several: always a tuple of texts or of id tuples."""

    most: int

    def check(self, value: object, path: FieldPath) -> tuple[str | tuple[int, ...], ...]:
        if isinstance(value, str):
            return (well_formed(value),)
        if not isinstance(value, list):
            raise invalid_type(
                path, "a string, or an array of strings, token ids or arrays of token ids", value
            )
        if not value:
            raise invalid_value(path, "must not be an empty array.")
        if isinstance(value[0], int | float):
            return (_ids(value, path),)
        if len(value) > self.most:
            raise invalid_value(path, f"at most {self.most} prompts in one request, but got {len(value)}.")
        if isinstance(value[0], list):
            return tuple(_ids(item, (*path, index)) for index, item in enumerate(value))
        return tuple(Text().check(item, (*path, index)) for index, item in enumerate(value))

    def schema(self) -> Schema:
        ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
        return {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": self.most},
                ids,
                {"type": "array", "items": ids, "minItems": 1, "maxItems": self.most},
            ]
        }


def _ids(value: object, path: FieldPath) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise invalid_type(path, "an array of token ids", value)
    if not value:
        raise invalid_value(path, "must not be an empty array.")
    if all(type(item) is int for item in value) and min(value) >= 0:
        return tuple(value)
    kind = Integer(0)
    return tuple(kind.check(item, (*path, index)) for index, item in enumerate(value))


def nullable(schema: Schema) -> Schema:
    """OpenAI's clients send null for 'not set'."""
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}


def _bounds(low: float, high: float) -> Schema:
    bounds: Schema = {}
    if low != -math.inf:
        bounds["minimum"] = low
    if high != math.inf:
        bounds["maximum"] = high
    return bounds


def _range_problem(low: float, high: float, value: float) -> str:
    limits = []
    if low != -math.inf:
        limits.append(f"at least {low:g}" if isinstance(low, float) else f"at least {low}")
    if high != math.inf:
        limits.append(f"at most {high:g}" if isinstance(high, float) else f"at most {high}")
    # A hostile integer may have thousands of digits.
    shown = "a huge number" if abs(value) > 10**20 else str(value)
    return f"must be {' and '.join(limits) or 'finite'}, but got {shown}."
