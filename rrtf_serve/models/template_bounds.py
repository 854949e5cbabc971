"""What a chat template may use: bounds on steps, time, text and the size of every value it makes.

`BUDGET` holds what the rendering in hand may still use. The guards refuse, before the work is done, what
could grow past its parts. jinja2's SecurityError is what a template sees.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_TEXT = 8_000_000  # characters in one value, and printed in all
MAX_STEPS = 1_000_000  # loop rounds, calls, filters and values measured, for one conversation
MAX_SECONDS = 2.0
_MAX_WIDTH = 256  # characters of an indent; digits of a number are bounded by _MAX_BITS
_MAX_BITS = 4096


class Budget:
    """What one rendering may still use."""

    def __init__(self, template_text: int) -> None:
        self.template_text = template_text  # constant characters of the template: what a macro call can print
        self.steps = MAX_STEPS
        self.characters = MAX_TEXT
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise SecurityError(f"more than {MAX_STEPS:,} steps")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"more than {MAX_SECONDS:g} seconds")

    def emit(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise SecurityError(f"more than {MAX_TEXT:,} characters of text")


BUDGET: ContextVar[Budget] = ContextVar("chat template budget")


def limit(characters: int) -> None:
    if characters > MAX_TEXT:
        raise SecurityError(f"a value of more than {MAX_TEXT:,} characters or elements")


def measured(value: Any) -> Any:
    """The value itself, after a walk through it: what it holds counts as often as it is held."""
    budget = BUDGET.get()
    budget.step()
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        limit(len(value))
        return value
    held, characters = [value], 0
    while held:
        item = held.pop()
        if isinstance(item, str):
            characters += len(item)
            limit(characters)
        elif isinstance(item, list | tuple):
            budget.step(len(item))
            held.extend(item)
        elif isinstance(item, dict):
            budget.step(len(item))
            held.extend(item)
            held.extend(item.values())
    return value


def each(value: Iterable[Any], body_text: int) -> Iterator[Any]:
    budget = BUDGET.get()
    for item in value:
        budget.step()
        budget.emit(body_text)
        yield item


def emitted(value: Any) -> str:
    text = str(value)
    BUDGET.get().emit(len(text))
    return text


def concatenated(parts: Sequence[Any]) -> str:
    texts = [str(part) for part in parts]
    limit(sum(map(len, texts)))
    return "".join(texts)


def repeated(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() + right.bit_length())
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(count, int):
            limit(len(value) * max(count, 0))
    return left * right


def raised(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))
    return left**right


def _check_bits(count: int) -> None:
    if count > _MAX_BITS:
        raise SecurityError(f"a number of more than {_MAX_BITS} bits")


def formatted(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        check_widths(left)
    return left % right


def check_widths(pattern: str) -> None:
    """Refuses widths past three digits or taken from a value, and names, which repeat a value at no cost."""
    if re.search(r"\d{4}|%[^a-zA-Z%]*[*(]", pattern):
        raise SecurityError("a format with names, or with a width of more than three digits")


def joined(value: Iterable[Any], separator: object) -> list[Any]:
    items = list(value)
    limit(sum(len(item) for item in items if isinstance(item, str)) + len(str(separator)) * len(items))
    return items


def check_replace(text: str, old: str, new: str) -> None:
    limit(len(text) + text.count(old) * len(new))


def guard_replace(text: Any, old: str, new: str, *rest: Any) -> tuple[Any, ...]:
    check_replace(str(text), str(old), str(new))
    return text, old, new, *rest


def guard_join(value: Iterable[Any], separator: str = "", *rest: Any, **options: Any) -> tuple[Any, ...]:
    return joined(value, options.get("d", separator)), *(() if "d" in options else (separator,)), *rest


def guard_indent(text: str, *rest: Any, **options: Any) -> tuple[Any, ...]:
    width = rest[0] if rest else options.get("width", 4)
    if (len(width) if isinstance(width, str) else width) > _MAX_WIDTH:
        raise SecurityError(f"an indent of more than {_MAX_WIDTH} characters")
    limit(len(text) + (text.count("\n") + 1) * _MAX_WIDTH)
    return text, *rest


def guard_format(pattern: Any, *rest: Any, **_: Any) -> tuple[Any, ...]:
    check_widths(str(pattern))
    return pattern, *rest
