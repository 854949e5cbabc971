"""One end of the conversation between candidate and examiner: calls out, answers to calls in.

CALL   [operation, target, item, nodes]      target: "entry", "name:<name>" or a handle of the receiver
RETURN [item, nodes, [[number, node], ...]]  the last list: arguments that were changed in place
RAISE  [class names, item, nodes]            names of the exception's class and its bases; its arguments and
                                             attributes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from rrtf_serve.sandbox.inside.digest import digest_of
from rrtf_serve.sandbox.inside.frames import Channel, Frame
from rrtf_serve.sandbox.inside.reader import Reader
from rrtf_serve.sandbox.inside.wire import CandidateError, Codec, Json, WireError, dumps, loads
from rrtf_serve.sandbox.inside.writer import Message, TooLargeError, class_names, surely_longer

FRAMES = 60  # of the interpreter's stack that a call and its answer take here


class Gone(BaseException):
    """The other side is dead. A BaseException, so that no test code mistakes it for a failed call."""


class Peer:
    """`perform(operation, target, args, kwargs)` does what the other side asks for.

    may_stop  the operations that may raise StopIteration; from others it arrives as RuntimeError (PEP 479's
              rule)
    digest_above
              bytes; what a case returns is told by its digest where it is longer; 0: never
    """

    def __init__(
        self,
        channel: Channel,
        codec: Codec,
        perform: Callable[[str, Json, list[Any], dict[str, Any]], object],
        may_stop: frozenset[str],
        digest_above: int = 0,
    ) -> None:
        self._channel = channel
        self._codec = codec
        self._perform = perform
        self._may_stop = may_stop
        self._digest_above = digest_above
        self.calls = 0  # of the other side's code

    def call(
        self, operation: str, target: Json, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Ask the other side and wait; answers its own calls meanwhile. Raises what the call raised there."""
        self.calls += operation != "names"
        depth = sys.getrecursionlimit()
        sys.setrecursionlimit(depth + FRAMES)  # in one process these frames would not be there
        try:
            return self._call(operation, target, args, kwargs)
        finally:
            sys.setrecursionlimit(depth)

    def _call(
        self, operation: str, target: Json, args: tuple[Any, ...], kwargs: dict[str, Any] | None
    ) -> Any:
        message = Message(self._codec)
        item = message.encode([list(args), kwargs or {}])
        self._channel.send(Frame.CALL, dumps([operation, target, item, message.nodes]))
        while True:
            kind, payload = self._channel.receive()
            if kind is Frame.CALL:
                self.answer(payload)
            elif kind is Frame.RETURN:
                return self._returned(payload, () if operation == "case" else message.objects)
            elif kind is Frame.RAISE:
                error = self._raised(payload)
                if isinstance(error, StopIteration) and operation not in self._may_stop:
                    error = RuntimeError("a call raised StopIteration")
                raise error
            else:
                raise Gone

    def answer(self, payload: bytes) -> None:
        """Do one thing the other side asked for and send what came of it."""
        try:
            operation, target, item, nodes = loads(payload)
            reader = Reader(self._codec, nodes)
            args, kwargs = reader.decode(item)
            value = self._perform(operation, target, args, kwargs)
            if operation == "case" and self._digest_above:
                self._channel.send(Frame.RETURN, self._value_or_digest(value))
                return
            # A case sends no changed arguments back, so what it returns must not be a reference to one: that
            # would be read in its state before the call.
            reply = Message(self._codec, () if operation == "case" else reader.objects)
            root = reply.encode(value)
            writes: list[Json] = []
            if operation == "call":
                for number, node in enumerate(nodes):
                    if node[0] not in ("tuple", "frozenset"):
                        new = reply.node(reader.objects[number])
                        if dumps(new) != dumps(node):
                            writes.append([number, new])
                reply.fill()
            answer = dumps([root, reply.nodes, writes])
        except Gone:
            raise
        except BaseException as error:  # whatever it is, it is the answer
            self._channel.send(Frame.RAISE, self._describe(error))
        else:
            self._channel.send(Frame.RETURN, answer)

    def _value_or_digest(self, value: object) -> bytes:
        if not surely_longer(value, self._digest_above):
            reply = Message(self._codec, room=self._digest_above)
            with suppress(TooLargeError):
                answer = dumps([reply.encode(value), reply.nodes, []])
                if len(answer) <= self._digest_above:
                    return answer
            del reply  # memory is short now
        return dumps([["D", digest_of(value).text], [], []])

    def _returned(self, payload: bytes, base: Sequence[object]) -> Any:
        answer = loads(payload)
        if type(answer) is not list or len(answer) != 3 or type(answer[2]) is not list:
            raise WireError("not an answer")
        item, nodes, writes = answer
        reader = Reader(self._codec, nodes, base)
        for write in writes:
            if type(write) is not list or len(write) != 2:
                raise WireError("not an update")
            reader.update(*write)
        return reader.decode(item)

    def _describe(self, error: BaseException) -> bytes:
        names = class_names(type(error))
        for told in ((error.args, dict(vars(error))), (error.args, {}), ((), {})):
            try:
                message = Message(self._codec)
                item = message.encode(told)
                return dumps([names, item, message.nodes])
            except BaseException:  # what can't be told is left out, the error is not
                continue
        raise WireError("nothing of an exception can be told")

    def _raised(self, payload: bytes) -> Exception:
        answer = loads(payload)
        match answer:
            case [[str(), *_] as names, item, nodes] if all(type(name) is str for name in names):
                told = Reader(self._codec, nodes).decode(item)
            case _:
                raise WireError("not an exception")
        match told:
            case (tuple() as args, dict() as attributes) if all(type(name) is str for name in attributes):
                kind = self._codec.exception_class(names)
            case _:
                raise WireError("not an exception")
        try:
            error = kind(*args)
        except Exception:  # it wants other arguments than it keeps
            error = CandidateError(names[0], *args)
        for name, value in attributes.items():
            if not name.startswith("__") and not hasattr(type(error), name):
                setattr(error, name, value)
        return error


class Proxy:
    """An object of the other side. Nothing it does decides a comparison: it is equal to itself alone."""

    __slots__ = ("__weakref__",)


def proxy_factory(peer: Callable[[], Peer], codec: Callable[[], Codec]) -> Callable[[int, str, str], object]:
    """A maker of proxies: their operations are calls through `peer`.

    Flags: c callable, n iterator, i iterable, l sized, g subscriptable, a attributes, t class. Equality,
    order,
    arithmetic and membership are never asked of the other side, or an object could claim to equal everything.
    """

    def ask(self: Proxy, operation: str, *args: object, **kwargs: object) -> Any:
        return peer().call(operation, codec().handle(self), args, kwargs)

    def call(self: Proxy, /, *args: object, **kwargs: object) -> Any:
        return ask(self, "call", *args, **kwargs)

    def following(self: Proxy) -> Any:
        return ask(self, "next")

    def attribute(self: Proxy, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__doc__"):
            raise AttributeError(name)
        return ask(self, "get", name)

    def set_attribute(self: Proxy, name: str, value: object) -> None:
        ask(self, "set", name, value)

    operations: dict[str, dict[str, Any]] = {
        "c": {"__call__": call},
        "n": {"__next__": following, "__iter__": lambda self: self},
        "i": {"__iter__": lambda self: ask(self, "iter")},
        "l": {"__len__": lambda self: ask(self, "len")},
        "g": {
            "__getitem__": lambda self, key: ask(self, "item", key),
            "__setitem__": lambda self, key, value: ask(self, "setitem", key, value),
        },
        "a": {
            "__getattr__": attribute,
            "__setattr__": set_attribute,
            "__str__": lambda self: ask(self, "str"),
            "__repr__": lambda self: ask(self, "repr"),
            "__bool__": lambda self: ask(self, "bool"),
        },
        "t": {"__instancecheck__": lambda self, value: ask(self, "isinstance", value)},
    }
    classes: dict[tuple[str, str], type] = {}

    def make(_number: int, name: str, flags: str) -> object:
        key = (name, "".join(sorted(set(flags) & set(operations))))
        if key not in classes:
            namespace: dict[str, Any] = {"__slots__": ()}
            for flag in key[1]:
                namespace.update(operations[flag])
            classes[key] = type(name, (Proxy,), namespace)
        return object.__new__(classes[key])

    return make


def flags_of(value: object) -> str:
    """What a proxy of this object must be able to do."""
    kind = type(value)
    flags = "a" + "c" * callable(value) + "t" * isinstance(value, type)
    if hasattr(kind, "__next__"):
        return flags + "n"
    return (
        flags
        + "i" * hasattr(kind, "__iter__")
        + "l" * hasattr(kind, "__len__")
        + "g" * hasattr(kind, "__getitem__")
    )
