"""The candidate's process: runs its module level, then does what the examiner asks of its entry point.

Everything here is in the candidate's hands once its code has started. All it can do with that is to answer
its own pending calls as it likes, which it could do anyway.
"""

from __future__ import annotations

import ast
import atexit
import builtins
import gc
import os
import sys
import types
from typing import Any

from rrtf_serve.sandbox.inside.frames import Channel, Frame
from rrtf_serve.sandbox.inside.peer import Peer, flags_of, proxy_factory
from rrtf_serve.sandbox.inside.wire import Codec, Json, WireError, dumps, loads

SYNTAX_ERRORS = (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError, UnicodeError)
MESSAGE_LIMIT = 500
PROGRAMME = "programme.py"  # what sys.argv and __file__ say; there is no such file


def run(channel: Channel) -> None:
    """Load the candidate, then answer until the judge hangs up or kills."""
    order = loads(channel.receive()[1])
    module = types.ModuleType("candidate")
    sys.modules["candidate"] = module
    try:
        code = compile(order["code"], "<candidate>", "exec", dont_inherit=True)
    except SYNTAX_ERRORS as error:
        channel.send(Frame.FAILED, dumps(["compile", *_say(error)]))
        return
    channel.send(Frame.COMPILED)
    try:
        exec(code, module.__dict__)
        if order["entry"]:
            entry_of(module, order["entry"], call=False)
    except BaseException as error:  # SystemExit too: all of it is a failure to load
        flush()
        channel.send(Frame.FAILED, dumps(["load", *_say(error)]))
        return
    served = _Served(module, order["entry"])
    codec = Codec(
        proxy_factory(lambda: peer, lambda: codec),
        served.find_class,
        served.is_structural,
        flags_of,
        module.__dict__.get,
    )
    peer = Peer(
        channel,
        codec,
        served.perform,
        may_stop=frozenset({"call", "next"}),
        digest_above=order.get("digest_above", 0),
    )
    served.codec = codec
    flush()
    channel.send(Frame.READY)
    while True:
        kind, payload = channel.receive()
        if kind is Frame.READY:
            served.classes.update(loads(payload))
        elif kind is Frame.CALL:
            peer.answer(payload)
        else:
            return


def flush() -> None:
    for stream in (sys.stdout, sys.stderr, sys.__stdout__):
        try:
            stream.flush()  # type: ignore[union-attr]  # None is among what is caught
        except (AttributeError, OSError, ValueError):
            continue  # the candidate closed or replaced it


def entry_of(module: types.ModuleType, path: str, *, call: bool = True) -> Any:
    """The object behind "f", "Class.method" or "Solution().method".

    Without `call`, only what can be looked up before the first call. NameError or AttributeError where it is
    missing, ValueError where the path is something else.
    """

    def walk(node: ast.expr) -> Any:
        match node:
            case ast.Name(name):
                if name not in module.__dict__:
                    raise NameError(f"the programme does not define {name}")
                return module.__dict__[name]
            case ast.Attribute(value, name):
                return getattr(walk(value), name)
            case ast.Call(function, [], []):
                return walk(function)() if call else walk(function)
        raise ValueError(f"not an entry point: {path}")

    found = walk(ast.parse(path, mode="eval").body)
    if not callable(found):
        raise TypeError(f"{path} is not callable")
    return found


class _Served:
    """What the examiner may ask for."""

    codec: Codec

    def __init__(self, module: types.ModuleType, entry: str) -> None:
        self._module = module
        self._entry = entry
        self._simple = entry.isidentifier()
        self.classes: set[str] = set()  # those that the tests define as well
        self._made: dict[str, type] = {}

    def find_class(self, name: str) -> type | None:
        if name not in self.classes:
            return None
        found = self._module.__dict__.get(name)
        if not isinstance(found, type):
            found = self._made.setdefault(name, type(name, (), {}))
        return found

    def is_structural(self, value: object) -> bool:
        return type(value).__name__ in self.classes and not isinstance(value, type)

    def perform(self, operation: str, target: Json, args: list[Any], kwargs: dict[str, Any]) -> object:  # noqa: PLR0911
        try:
            if operation == "names":
                return {name: self._module.__dict__[name] for name in args if name in self._module.__dict__}
            thing = self._thing(target)
            match operation, args:
                case (("call" | "case"), _):
                    return thing(*args, **kwargs)
                case "get", [name]:
                    return getattr(thing, name)
                case "set", [name, value]:
                    setattr(thing, name, value)
                    return None
                case "item", [key]:
                    return thing[key]
                case "setitem", [key, value]:
                    thing[key] = value
                    return None
                case "isinstance", [value]:
                    return isinstance(value, thing)
                case (("next" | "iter" | "len" | "bool" | "str" | "repr"), []):
                    plain = builtins.bool if operation == "bool" else getattr(builtins, operation)
                    return plain(thing)
            raise WireError(f"unknown operation {operation}")
        finally:
            flush()

    def _thing(self, target: Json) -> Any:
        if target == "entry":
            return self._module.__dict__[self._entry] if self._simple else entry_of(self._module, self._entry)
        return self.codec.own(target[1])


def script(channel: Channel) -> None:
    """Run a whole programme as `__main__` to the end that Python itself would come to.

    Its threads are joined, its exit functions called, its objects gone and its streams flushed. The process's
    exit status says how it went.
    """
    order = loads(channel.receive()[1])
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    module.__dict__.update({"__builtins__": builtins, "__file__": PROGRAMME})
    try:
        code = compile(order["code"], "<programme>", "exec", dont_inherit=True)
    except SYNTAX_ERRORS as error:
        channel.send(Frame.FAILED, dumps(["compile", *_say(error)]))
        return
    channel.send(Frame.COMPILED)
    try:
        exec(code, module.__dict__)
    except SystemExit as stop:
        if stop.code not in (None, 0):
            channel.send(Frame.FAILED, dumps(["run", *_say(stop)]))
    except BaseException as error:  # the programme's own uncaught error, whatever it is
        channel.send(Frame.FAILED, dumps(["run", *_say(error)]))
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()  # what Python's own end calls first
    atexit._run_exitfuncs()
    for name in list(module.__dict__):
        if name != "__builtins__":
            module.__dict__[name] = None
    gc.collect()
    flush()


def write_files(channel: Channel) -> list[str]:
    """Put a job's files into the private folder; returns the command line to become."""
    order = loads(channel.receive()[1])
    for name, text in order["files"].items():
        with os.fdopen(os.open(name, os.O_WRONLY | os.O_CREAT, 0o755), "w", encoding="utf-8") as file:
            file.write(text.encode("utf-8", "replace").decode())
    argv: list[str] = order["argv"]
    return argv


def _say(error: BaseException) -> tuple[str, str]:
    try:
        text = str(error)[:MESSAGE_LIMIT]
    except BaseException:  # a __str__ of the candidate's own
        text = ""
    return type(error).__name__[:MESSAGE_LIMIT], text.encode("utf-8", "replace").decode()
