"""What stands for a value too large to cross: a digest that is the same for what is equal by `==`.

A candidate that sends one gains nothing: it can only match by being that of the value expected, which the
candidate does not know. Lists, tuples, dicts, sets, texts, bytes, numbers, None and Ellipsis have digests.
What holds a NaN has none, since it is not equal to itself; nor has anything else, or what is nested too deep.
"""

from __future__ import annotations

import hashlib
import marshal
import math
import struct
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

# What is equal among these, and among lists and tuples of them, is the same in marshal's format.
PLAIN = frozenset({str, int})
FORMAT = 0  # marshal's first: later ones tell equal texts apart by how they are kept


class NoDigestError(ValueError):
    """The value holds something that has no digest."""


class Digest:
    """In the place of a value; equal to nothing by itself (oracle.py compares)."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return "<a value too large to cross>"


def digest_of(value: object) -> Digest:
    """Raises NoDigestError. Needs little memory besides the value's own."""
    try:
        return Digest(_hashed(value).hex())
    except RecursionError:
        raise NoDigestError("nested too deeply") from None


def _hashed(value: object) -> bytes:
    state = hashlib.sha256()
    _write(value, state.update)
    return state.digest()


def _write(value: Any, write: Callable[[bytes], None]) -> None:
    """As marshal writes texts, ints, lists and tuples of them; the same for all that is equal to those."""
    if isinstance(value, (list, tuple)):
        kind: Any = list if isinstance(value, list) else tuple
        write(struct.pack("<ci", b"[" if kind is list else b"(", kind.__len__(value)))
        for item in kind.__iter__(value):
            if type(item) in (list, tuple) and PLAIN.issuperset(map(type, item)):
                write(marshal.dumps(item, FORMAT))
            else:
                _write(item, write)
    elif isinstance(value, dict):
        pairs = sorted(_hashed(key) + _hashed(item) for key, item in dict.items(value))
        write(b"dict" + struct.pack("<i", len(pairs)) + b"".join(pairs))
    elif isinstance(value, (set, frozenset)):
        write(b"set" + struct.pack("<i", len(value)) + b"".join(sorted(map(_hashed, value))))
    else:
        write(_leaf(value))


def _leaf(value: Any) -> bytes:
    if value is None or value is Ellipsis:
        return marshal.dumps(value, FORMAT)
    if isinstance(value, str):
        return marshal.dumps(str.__getitem__(value, slice(None)), FORMAT)
    if isinstance(value, (bytes, bytearray)):
        return marshal.dumps(bytes(value), FORMAT)
    if isinstance(value, complex):
        real = _number(value.real)
        return real if value.imag == 0 else b"complex" + real + _number(value.imag)
    if isinstance(value, (int, float, Decimal, Fraction)):
        return _number(value)
    raise NoDigestError(f"a {type(value).__name__} has no digest")


def _number(value: int | float | Decimal | Fraction) -> bytes:
    if isinstance(value, (float, Decimal)) and not math.isfinite(value):
        if math.isnan(value):
            raise NoDigestError("NaN is not equal to itself")
        return b"+inf" if value > 0 else b"-inf"
    over, under = value.as_integer_ratio()
    whole = marshal.dumps(over, FORMAT)
    return whole if under == 1 else b"ratio" + whole + marshal.dumps(under, FORMAT)
