"""TOML tables as option dataclasses: unknown keys and wrong types are named, with the file and the table."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

Options = TypeVar("Options")


def read_toml(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # not only tomllib's own: numbers of 5,000 digits, deep lists
        raise ValueError(f"{path}: not valid TOML ({error})") from error


def parse_value(text: str) -> Any:
    """A value as TOML writes it; what is none is a string, so that names need no quotes in a shell."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def build(kind: type[Options], table: Mapping[str, Any], where: str, **fixed: Any) -> Options:
    """An instance of the dataclass; `fixed` fields come from elsewhere and are no keys of the table.

    Raises ValueError beginning with `where`: an unknown key, a missing one, a wrong type, or what the class
    itself refuses.
    """
    hints = get_type_hints(kind)
    known = {field.name: field for field in fields(kind) if field.name not in fixed}  # type: ignore[arg-type]  # a dataclass
    unknown = sorted(table.keys() - known.keys())
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(known))}")
    for name, field in known.items():
        if name not in table and field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where}: {name} is missing")
    values = {name: typed(value, hints[name], f"{where}: {name}") for name, value in table.items()}
    try:
        return kind(**values, **fixed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def typed(value: Any, annotation: Any, where: str) -> Any:
    """The value as the annotation has it: str, int, float, bool, Path, tuple[X, ...], or one of them or None.

    Raises ValueError.
    """
    if get_origin(annotation) is UnionType:
        annotation = next(each for each in get_args(annotation) if each is not NoneType)
    if get_origin(annotation) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {value!r}")
        item = get_args(annotation)[0]
        return tuple(typed(each, item, where) for each in value)
    if annotation is Path and isinstance(value, str):
        return Path(value)
    if annotation is float and type(value) is int:
        return float(value)
    # bool is an int to Python, and `k = true` is a mistake all the same.
    if type(value) is not annotation:
        raise ValueError(f"{where} must be {annotation.__name__}, not {value!r}")
    return value
