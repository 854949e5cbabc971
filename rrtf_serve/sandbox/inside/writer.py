"""The sending half of the wire (see wire.py): values to items and nodes."""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

from rrtf_serve.sandbox.inside.digest import Digest
from rrtf_serve.sandbox.inside.wire import BUILTIN_TYPES, Codec, Json

WORD = 1 << 63
NAME_LIMIT = 100  # characters of a class's name, and how many bases are told
KEYS: Any = type({}.keys())
VALUES: Any = type({}.values())
ITEMS: Any = type({}.items())
DICTS: dict[type, str] = {OrderedDict: "ordered", Counter: "counter"}


class TooLargeError(ValueError):
    """The message would be longer than there is room for."""


class Message:
    """One value on its way out. `objects[n]` is the object behind node n; keep it to understand the reply.

    room  bytes; a value that surely needs more raises TooLargeError before it is all written
    """

    def __init__(self, codec: Codec, base: Sequence[object] = (), room: int | None = None) -> None:
        self._codec = codec
        self._room = room
        self.objects: list[object] = list(base)
        self._start = len(self.objects)
        self._numbers = {id(value): number for number, value in enumerate(self.objects) if value is not None}
        self._pending: list[int] = []
        self.nodes: list[Json] = []

    def encode(self, root: object) -> Json:
        reference = self._item(root)
        if self._room is not None and type(reference) is str and len(reference) > self._room:
            raise TooLargeError("more than there is room for")
        self.fill()
        return reference

    def fill(self) -> None:
        while self._pending:
            number = self._pending.pop()
            node = self.node(self.objects[number])
            self.nodes[number - self._start] = node
            if self._room is not None:
                # Each item takes a byte and a comma, a text its quotes as well.
                self._room -= 2 * len(node) + sum([len(x) for x in node if type(x) is str])
                if self._room < 0:
                    raise TooLargeError("more than there is room for")

    def node(self, value: Any) -> Json:  # noqa: PLR0911  # one branch per type is the clearest form
        """The node of one container, by its base class's own iterator whatever a subclass says."""
        item = self._item
        if isinstance(value, list):
            return ["list", *[item(x) for x in list.__iter__(value)]]
        if isinstance(value, tuple):
            return ["tuple", *[item(x) for x in tuple.__iter__(value)]]
        if isinstance(value, dict):
            ordered = isinstance(value, OrderedDict)  # whose order dict.items does not know
            pairs = [item(x) for pair in (OrderedDict if ordered else dict).items(value) for x in pair]
            if type(value) is defaultdict and _is_type(value.default_factory):
                return ["defaultdict", item(value.default_factory), *pairs]
            return [DICTS.get(type(value), "dict"), *pairs]
        if isinstance(value, (set, frozenset)):
            name = "set" if isinstance(value, set) else "frozenset"
            return [name, *[item(x) for x in (set if name == "set" else frozenset).__iter__(value)]]  # type: ignore[arg-type]  # chosen by the line above
        if isinstance(value, deque):
            return ["deque", value.maxlen, *[item(x) for x in deque.__iter__(value)]]
        if isinstance(value, bytearray):
            return ["bytearray", bytes(value).hex()]
        for name, view in (("keys", KEYS), ("values", VALUES), ("items", ITEMS)):
            if type(value) is view:
                parts = (x for pair in value for x in pair) if name == "items" else value
                return [name, *[item(x) for x in parts]]
        if _is_array(value):
            flat = value.ravel().tolist()
            return ["nd", str(value.dtype), value.ndim, *value.shape, *[item(x) for x in flat]]
        return ["obj", type(value).__name__, *[item(x) for pair in _state(value) for x in pair]]

    def _item(self, value: Any) -> Json:  # noqa: PLR0911  # one branch per type is the clearest form
        kind = type(value)
        if value is None or kind is bool or kind is float or kind is str:
            return value
        if kind is int:
            return value if -WORD <= value < WORD else ["i", hex(value)]
        if isinstance(value, (list, tuple, dict, set, frozenset, deque, bytearray)) or kind in (
            KEYS,
            VALUES,
            ITEMS,
        ):
            return self._reference(value)
        if isinstance(value, int):
            return self._item(int.__add__(value, 0))
        if isinstance(value, float):
            return float.__add__(value, 0.0)
        if isinstance(value, str):
            return str.__getitem__(value, slice(None))
        scalar = _scalar(value, kind)
        if scalar is not None:
            return scalar
        if _is_numpy_scalar(value):
            return self._item(value.item())
        if _is_array(value) or self._codec.structural(value):
            return self._reference(value)
        return self._codec.handle(value)

    def _reference(self, value: object) -> Json:
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self.objects)
            self._numbers[id(value)] = number
            self.objects.append(value)
            self.nodes.append(None)
            self._pending.append(number)
        return [number]


def surely_longer(value: object, room: int) -> bool:
    """Whether a list or tuple of lists and tuples needs more than `room` bytes, told without writing it.

    A node takes at least `["list"],`, each of its items `1,`, and a reference to it `[1],`.
    """
    if not isinstance(value, (list, tuple)):
        return False
    distinct = {id(item): item for item in value if type(item) in (list, tuple)}
    return 4 * len(distinct) + sum(9 + 2 * len(item) for item in distinct.values()) > room


def _scalar(value: Any, kind: type) -> Json:  # noqa: PLR0911  # one branch per type is the clearest form
    if isinstance(value, bytes):
        return ["b", bytes(value).hex()]
    if isinstance(value, complex):
        return ["c", value.real, value.imag]
    if kind is range:
        return ["g", hex(value.start), hex(value.stop), hex(value.step)]
    if kind is Decimal:
        return ["d", str(value)]
    if kind is Fraction:
        return ["q", hex(value.numerator), hex(value.denominator)]
    if kind is timedelta:
        return ["t", "timedelta", value.days, value.seconds, value.microseconds]
    if kind in (date, datetime, time):
        return ["t", kind.__name__, value.isoformat()]
    if value is Ellipsis:
        return ["e"]
    if kind is Digest:
        return ["D", value.text]
    if _is_type(value):
        return ["y", value.__name__]
    if isinstance(value, type) and issubclass(value, BaseException):
        return ["x", *class_names(value)]
    return None


def class_names(kind: type) -> list[str]:
    """Of a class and its bases, nearest first; shortened."""
    return [cls.__name__[:NAME_LIMIT] for cls in kind.__mro__[:NAME_LIMIT]]


def _is_type(value: object) -> bool:
    return isinstance(value, type) and BUILTIN_TYPES.get(value.__name__) is value


def _is_numpy_scalar(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


def _is_array(value: object) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray) and value.dtype.kind in "biufcSU"


def _state(value: object) -> Iterator[tuple[str, object]]:
    yield from list(getattr(value, "__dict__", {}).items())
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                yield name, getattr(value, name)
