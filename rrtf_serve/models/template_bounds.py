"""What a chat template may use: bounds on time, steps, and the size of every value it makes.

`BUDGET` holds what the rendering in hand may still use. One value, and all text built or printed, may be a
fixed size that is ample for published templates plus a multiple of the conversation, since a template copies
the messages. No single operation can then take long, which matters: the clock is read between operations.
The checks refuse, before the work is done, what could grow past its parts or take more than linear time.
jinja2's SecurityError is what a template sees.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import SecurityError

MAX_VALUE = 1_000_000  # characters in one value, and
VALUE_PER_INPUT = 4  # so many more for each of the conversation (JSON escapes)
MAX_TEXT = 8_000_000  # characters built and printed in all, and
TEXT_PER_INPUT = 32  # so many more for each of the conversation
ITEM = 16  # characters that an element of a list counts for: its memory, not only its text
MAX_STEPS = 1_000_000  # loop rounds, calls, filters, tests, accesses and elements measured
MAX_SECONDS = 2.0
MAX_BITS = 64  # of an integer
_MAX_OPERAND_BITS = 4096  # of a power before it is worked out
_MAX_ARGUMENT = 256  # characters to strip or to search from the right (quadratic), widths of an indent
_MAX_NUMERAL = 64
_MAX_SORTED = 10_000
_MAX_TITLE = 100_000
_MAX_PATTERN = 10_000
_CONVERSION = re.compile(r"%[-+ #0]{0,4}\d{0,2}(?:\.\d{0,2})?[sdiouxXeEfFgGrc%]")
_MAX_CONVERTED = 512  # characters of a number, beyond those of its value
_DATE_PART = re.compile(r"%-?[A-Za-z%]")
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"


class Budget:
    """What one rendering may still use."""

    def __init__(self, conversation: object) -> None:
        given = size(conversation)[0]
        self.largest = MAX_VALUE + VALUE_PER_INPUT * given
        self.characters = MAX_TEXT + TEXT_PER_INPUT * given
        self.steps = MAX_STEPS
        self.deadline = time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise SecurityError(f"more than {MAX_STEPS:,} steps")
        if time.monotonic() > self.deadline:
            raise SecurityError(f"more than {MAX_SECONDS:g} seconds")

    def spend(self, characters: int) -> None:
        self.characters -= characters
        if self.characters < 0:
            raise SecurityError("too many characters of text in all")


BUDGET: ContextVar[Budget] = ContextVar("chat template budget")


def limit(characters: int) -> None:
    largest = BUDGET.get().largest
    if characters > largest:
        raise SecurityError(f"a value of more than {largest:,} characters")


def size(value: object, most: float = float("inf")) -> tuple[int, int]:
    """Characters and elements in a value; what it holds counts as often as it is held. Stops past `most`."""
    held: list[Any] = [value]
    characters = elements = 0
    while held and characters <= most:
        item = held.pop()
        if isinstance(item, str):
            characters += len(item)
        elif isinstance(item, list | tuple | dict | KeysView | ItemsView | ValuesView):
            elements += len(item)
            characters += ITEM * len(item)
            held.extend(item)
            if isinstance(item, dict):
                held.extend(item.values())
    return characters, elements


def measured(value: Any) -> Any:
    """The value itself, refused where it is too large, and counted as newly built."""
    budget = BUDGET.get()
    budget.step()
    if isinstance(value, str):
        limit(len(value))
        budget.spend(len(value))
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise SecurityError(f"an integer of more than {MAX_BITS} bits")
    elif isinstance(value, list | tuple | dict | KeysView | ItemsView | ValuesView):
        characters, elements = size(value, budget.largest)
        limit(characters)
        budget.step(elements)
        budget.spend(len(value))
    return value


def sliced(value: Any) -> Any:
    """A slice is smaller than what it comes from, so it is counted without a walk through it."""
    budget = BUDGET.get()
    budget.step()
    if isinstance(value, str | list | tuple):
        budget.spend(len(value))
    return value


def each(value: Iterable[Any]) -> Iterator[Any]:
    budget = BUDGET.get()
    for item in value:
        budget.step()
        budget.spend(ITEM)  # `loop.length` keeps what is left of the loop in a list
        yield item


def emitted(value: Any) -> str:
    budget = BUDGET.get()
    budget.step()
    text = str(value)
    budget.spend(len(text))
    return text


def concatenated(parts: Sequence[Any]) -> str:
    texts, total = [], 0
    for part in parts:  # one by one: a list's text can be ten times its characters
        texts.append(str(part))
        total += len(texts[-1])
        limit(total)
    return "".join(texts)


def added(left: Any, right: Any) -> Any:
    if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple):
        limit((len(left) + len(right)) * (1 if isinstance(left, str) else ITEM))
    return left + right


def repeated(left: Any, right: Any) -> Any:
    for value, count in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(count, int):
            limit(len(value) * max(count, 0) * (1 if isinstance(value, str) else ITEM))
    return left * right


def raised(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 0)
        if bits > _MAX_OPERAND_BITS:
            raise SecurityError(f"an integer of more than {MAX_BITS} bits")
    return left**right


def formatted(left: Any, right: Any) -> Any:
    if isinstance(left, str):
        check_format(left, right)
    return left % right


def check_format(pattern: object, *values: Any, **_: Any) -> None:
    """Plain conversions only: no names, which repeat a value at no cost, and no widths past two digits."""
    text = str(pattern)
    if len(text) > _MAX_PATTERN or "%" in _CONVERSION.sub("", text):
        raise SecurityError("a format that is too long, or with names, or with widths past two digits")
    limit(len(text) + _MAX_CONVERTED * text.count("%"))
    limit(size(values, BUDGET.get().largest)[0])


def check_date(pattern: str) -> None:
    if len(pattern) > _MAX_ARGUMENT or "%" in _DATE_PART.sub("", pattern):
        raise SecurityError("a date format that is too long, or with widths")


def check_replace(text: object, old: object, new: object, *_: Any, **__: Any) -> None:
    limit(len(str(text)) + str(text).count(str(old)) * len(str(new)))


def check_join(value: Any, d: object = "", *_: Any, **__: Any) -> None:
    check_iterated(value)
    limit(sum(len(item) for item in value if isinstance(item, str)) + len(str(d)) * len(value))


def check_indent(text: str, width: object = 4, *_: Any, **__: Any) -> None:
    columns = len(width) if isinstance(width, str) else width
    if not isinstance(columns, int) or columns > _MAX_ARGUMENT:
        raise SecurityError(f"an indent of more than {_MAX_ARGUMENT} characters")
    limit(len(text) + sum(map(text.count, _LINE_ENDS)) * (columns + ITEM))


def check_iterated(value: object, *_: Any, **__: Any) -> None:
    """A string taken apart is a list of its characters."""
    if isinstance(value, str):
        limit(ITEM * len(value))


def check_sorted(value: Any, *_: Any, **__: Any) -> None:
    if len(value) > _MAX_SORTED:
        raise SecurityError(f"a sort of more than {_MAX_SORTED:,} elements")


def check_number(value: object, *_: Any, **__: Any) -> None:
    if isinstance(value, str) and len(value) > _MAX_NUMERAL:
        raise SecurityError(f"a number of more than {_MAX_NUMERAL} characters")


def check_title(value: object) -> None:
    if isinstance(value, str) and len(value) > _MAX_TITLE:  # jinja2 takes it apart into words
        raise SecurityError(f"a title of more than {_MAX_TITLE:,} characters")


def check_argument(_: object, *arguments: object, **named: object) -> None:
    for argument in (*arguments, *named.values()):
        if isinstance(argument, str) and len(argument) > _MAX_ARGUMENT:
            raise SecurityError(f"more than {_MAX_ARGUMENT} characters to look for")


# Methods of a string whose work can be more than linear, or whose result can be more than their parts.
_METHOD_CHECKS: dict[str, Callable[..., None]] = {
    "join": lambda separator, items: check_join(items, separator),
    "replace": check_replace,
    **dict.fromkeys(("strip", "lstrip", "rstrip", "rfind", "rindex", "rpartition", "rsplit"), check_argument),
}


def string_method(
    name: str, text: str, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments to call a string's method with, checked; a split stops past the largest list."""
    if name in _METHOD_CHECKS:
        _METHOD_CHECKS[name](text, *args, **named)
    elif name == "splitlines":
        limit(ITEM * sum(map(text.count, _LINE_ENDS)))
    if name in ("split", "rsplit"):
        most = BUDGET.get().largest // ITEM
        separator = args[0] if args else named.get("sep")
        wanted = args[1] if len(args) > 1 else named.get("maxsplit", -1)
        return (separator, wanted if 0 <= wanted < most else most), {}
    return args, named


def check_mapping(*args: object) -> None:
    """A dict made from pairs can be given keys that all share one hash; one from a dict or names can't."""
    if not all(isinstance(arg, Mapping) for arg in args):
        raise SecurityError("a dict or namespace is made from names or from a dict")


def json_text(
    value: Any, ensure_ascii: bool, indent: int | None, separators: tuple[str, str] | None, sort_keys: bool
) -> str:
    """`json.dumps` in pieces, because an indent grows with the depth."""
    if (indent is not None and not 0 <= int(indent) <= 16) or sum(map(len, separators or ())) > 16:
        raise SecurityError("tojson with an indent or separators of more than 16 characters")
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    budget, pieces, total = BUDGET.get(), [], 0
    for piece in encoder.iterencode(value):
        budget.step()
        pieces.append(piece)
        total += len(piece)
        limit(total)
    return "".join(pieces)
