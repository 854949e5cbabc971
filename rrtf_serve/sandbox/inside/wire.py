"""Plain data as JSON text, exact: types, NaN, surrogates, shared references and cycles survive.

A message is `[root, nodes]`. A JSON scalar is itself (floats as Python's json writes them, NaN included). A
list `[n]` refers to node n; a list that starts with a string is a tagged scalar. A node is `[tag, item,
...]`; items are never nested deeper, so neither side recurses however deep the value is. What is not plain
data crosses as a handle: `["h", id, class, flags]` for an object of the sender, `["o", id]` for one of the
receiver.

A reply may go on numbering where the call stopped (`base`): objects that came as arguments keep their
identity, and those that were changed in place are sent along and updated on the other side.

Encoding happens wherever the value lives, so a hostile sender can write anything; decoding is what is strict:
it builds only the types named here and raises WireError on everything else.
"""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable
from typing import Any

Json = Any  # JSON as the json module yields it
BUILTIN_TYPES = {name: value for name, value in vars(builtins).items() if isinstance(value, type)}


class WireError(ValueError):
    """The other side sent something that is not a message."""


class CandidateError(Exception):
    """Stands for an exception that is none of the built-in ones below Exception (SystemExit, say)."""


class Codec:
    """One side of the wire: which of its objects are known by handle, and what the other side's look like.

    make_proxy(id, class name, flags)   the stand-in for an object of the other side
    find_class(name)                    the class for a structural object; None: refuse
    structural(value)                   whether an object crosses by its attributes, not as a handle
    find_exception(name)                this side's exception class of that name, if it has one
    """

    def __init__(
        self,
        make_proxy: Callable[[int, str, str], object],
        find_class: Callable[[str], type | None],
        structural: Callable[[object], bool],
        export_flags: Callable[[object], str],
        find_exception: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._make_proxy = make_proxy
        self.find_class = find_class
        self.structural = structural
        self._export_flags = export_flags
        self._find_exception = find_exception
        self._exceptions: dict[tuple[str, ...], type[Exception]] = {}
        self._own: list[object] = []
        self._own_numbers: dict[int, int] = {}
        self._proxies: dict[int, object] = {}
        self._proxy_numbers: dict[int, int] = {}

    def handle(self, value: object) -> Json:
        number = self._proxy_numbers.get(id(value))
        if number is not None:
            return ["o", number]
        number = self._own_numbers.get(id(value))
        if number is None:
            flags = self._export_flags(value)
            number = len(self._own)
            self._own.append(value)
            self._own_numbers[id(value)] = number
        else:
            flags = self._export_flags(value)
        return ["h", number, type(value).__name__, flags]

    def exception_class(self, names: list[str]) -> type[Exception]:
        """By the names of a class and its bases, the same class each time.

        This side's own of the first name, or one made below the first base that is built in; below
        CandidateError where none of those is an Exception.
        """
        key = tuple(names)
        if key not in self._exceptions:
            own = self._find_exception(names[0])
            if isinstance(own, type) and issubclass(own, Exception):
                return own
            built_in = (BUILTIN_TYPES.get(name, object) for name in names)
            base = next((kind for kind in built_in if issubclass(kind, Exception)), CandidateError)
            self._exceptions[key] = base if base.__name__ == names[0] else type(names[0], (base,), {})
        return self._exceptions[key]

    def own(self, number: Json) -> object:
        if type(number) is not int or not 0 <= number < len(self._own):
            raise WireError("no such object")
        return self._own[number]

    def proxy(self, record: Json) -> object:
        if not (len(record) == 4 and type(record[1]) is int and all(type(x) is str for x in record[2:])):
            raise WireError("not a handle")
        number: int = record[1]
        if number not in self._proxies:
            proxy = self._make_proxy(number, record[2][:100], record[3])
            self._proxies[number] = proxy
            self._proxy_numbers[id(proxy)] = number
        return self._proxies[number]


def dumps(message: Json) -> bytes:
    text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), check_circular=False)
    return text.encode("utf-8", "surrogatepass")


def loads(payload: bytes) -> Json:
    """Raises WireError: not JSON, not text, or nested beyond what any message needs."""
    try:
        return json.loads(payload.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise WireError(f"not a message: {error}") from error
