"""The tests' process: runs test code, or cases, against a candidate that lives elsewhere.

Test code is untrusted as well; what it could gain here is only to lie about its own results.
"""

from __future__ import annotations

import ast
import importlib
import sys
import types
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Any

from rrtf_serve.sandbox.inside import oracle
from rrtf_serve.sandbox.inside.assertions import Assertion, rewrite
from rrtf_serve.sandbox.inside.frames import MOST_READ, Channel, Frame
from rrtf_serve.sandbox.inside.peer import Gone, Peer, flags_of, proxy_factory
from rrtf_serve.sandbox.inside.reader import Reader
from rrtf_serve.sandbox.inside.wire import Codec, Json, WireError, dumps, loads
from rrtf_serve.sandbox.inside.writer import Message

RECORDER = "__rrtf_tests__"
SHOWN = 300  # characters of a failure's message
MOST_REPORTED = 20_000  # results one by one
REPORT_BYTES = MOST_READ[Frame.RESULT] - 1000

Result = tuple[str, bool, str, str]  # name, passed, kind, message: as verdict.TestResult


def run(channel: Channel) -> None:
    """Get ready, wait for the word to start, run, report under the nonce."""
    order = loads(channel.receive()[1])
    side = _Side(channel)
    try:
        examine = side.prepare_code(order) if "test_code" in order else side.prepare_cases(order)
    except BaseException as error:  # the tests' own fault, whatever it is
        channel.send(Frame.FAILED, dumps(["tests", type(error).__name__, _text(error)]))
        return
    channel.send(Frame.READY, dumps(sorted({*side.classes, *side.promised})))
    kind, _ = channel.receive()
    results, outputs = ([], None) if kind is not Frame.READY else examine()
    nonce = order["nonce"].encode()
    if outputs is not None:
        channel.send(Frame.OUTPUTS, nonce + outputs)
    channel.send(Frame.RESULT, nonce + _report(results, side.peer.calls))


def _library(names: list[str]) -> dict[str, types.ModuleType]:
    """Modules of the standard library that the tests forgot to import: not the candidate's to provide."""
    found = {}
    for name in sys.stdlib_module_names.intersection(names):
        with suppress(ImportError):  # not built here
            found[name] = importlib.import_module(name)
    return found


def _report(results: list[Result], calls: int) -> bytes:
    """As many results one by one as the judge reads; those beyond as one."""
    most = MOST_REPORTED
    while True:
        kept, rest = results[:most], results[most:]
        if rest:
            failed = [result for result in rest if not result[1]]
            kind, message = failed[0][2:] if failed else ("", "")
            kept.append((f"{len(rest)} more, {len(failed)} of them failed", not failed, kind, message))
        report = dumps([kept, calls])
        if len(report) <= REPORT_BYTES:
            return report
        most //= 2


class _Side:
    def __init__(self, channel: Channel) -> None:
        self.classes: dict[str, type] = {}
        self.promised: set[str] = set()  # classes that the test code will define
        self._module = types.ModuleType("tests")
        self._codec = Codec(
            proxy_factory(lambda: self.peer, lambda: self._codec),
            self._find_class,
            self._is_shared,
            _exportable,
            self._module.__dict__.get,
        )
        # A call that ended the tests' own map, zip or all by StopIteration would end them passed.
        self.peer = Peer(channel, self._codec, self._perform, may_stop=frozenset({"next"}))

    def _find_class(self, name: str) -> type | None:
        if name in self.promised:
            self._share(self._module.__dict__.get(name))
        return self.classes.get(name)

    def _is_shared(self, value: object) -> bool:
        kind = type(value)
        if kind.__name__ in self.promised:
            self._share(kind)
        return self.classes.get(kind.__name__) is kind

    def _share(self, kind: object) -> None:
        """A class of the tests' own: its objects cross by their attributes."""
        plain = isinstance(kind, type) and not issubclass(kind, (BaseException, Enum))
        if isinstance(kind, type) and plain and kind.__module__ == "tests":
            self.classes[kind.__name__] = kind

    def _named_entry(self, name: str) -> Callable[..., Any]:
        def entry(*args: object, **kwargs: object) -> Any:
            return self.peer.call("call", "entry", args, kwargs)

        entry.__name__ = entry.__qualname__ = name
        return entry

    def _perform(self, operation: str, target: Json, args: list[Any], kwargs: dict[str, Any]) -> object:
        """All the candidate may do with what tests handed it: call it, or take its next item."""
        if type(target) is not list or len(target) != 2 or target[0] != "o":
            raise WireError("not a handle")
        thing: Any = self._codec.own(target[1])
        if operation == "call":
            return thing(*args, **kwargs)
        if operation == "next":
            return next(thing)
        raise WireError(f"{operation} is not offered here")

    def prepare_code(self, order: Json) -> Callable[[], tuple[list[Result], None]]:
        sys.modules["tests"] = self._module
        namespace = self._module.__dict__
        if order["prelude"]:
            exec(compile(order["prelude"], "<prelude>", "exec", dont_inherit=True), namespace)
        code = rewrite(order["test_code"], RECORDER)
        compiled = compile(code.tree, "<tests>", "exec", dont_inherit=True)
        for value in list(namespace.values()):
            self._share(value)
        self.promised = {node.name for node in code.tree.body if isinstance(node, ast.ClassDef)}
        entry = self._named_entry(order["entry"].rpartition(".")[2])
        recorder = _Recorder(code.assertions)

        def examine() -> tuple[list[Result], None]:
            namespace[RECORDER] = recorder
            finished = False
            try:
                # The names of the prelude stand, whatever the candidate calls its own.
                wanted = code.free_names(set(namespace))
                namespace.update(_library(code.only_with_attributes(wanted)))
                self._take_names(namespace, [name for name in wanted if name not in namespace])
                simple = order["entry"].isidentifier()
                if simple:
                    namespace[order["entry"]] = entry
                namespace["candidate"] = entry
                before = namespace.get("check")  # the entry point's, the prelude's or the candidate's own
                exec(compiled, namespace)
                check = namespace.get("check")
                if check is not before and callable(check):
                    check(entry)
                finished = True
            except Gone:
                recorder.stop("not reached", "the candidate ended first")
            except BaseException as error:  # test code that fails outside an assertion, or exits
                recorder.stop("exception", _describe(error))
            return recorder.results(finished=finished), None

        return examine

    def _take_names(self, namespace: dict[str, Any], wanted: list[str]) -> None:
        """Let the candidate fill in what nobody else defines; not the built-ins, and nothing of ours."""
        if wanted:
            found = self.peer.call("names", "entry", tuple(wanted))
            if type(found) is not dict:
                raise WireError("not a mapping of names")
            namespace.update({name: found[name] for name in wanted if name in found})

    def prepare_cases(self, order: Json) -> Callable[[], tuple[list[Result], bytes | None]]:
        arguments = _decoded(self._codec, order["arguments"])
        expected = None if order["expected"] is None else _decoded(self._codec, order["expected"])

        def examine() -> tuple[list[Result], bytes | None]:
            results: list[Result] = []
            outputs: list[Any] = []
            for number, case in enumerate(arguments):
                name = f"case {number}"
                try:
                    output = self._call_case(case)
                    if expected is None:
                        outputs.append(output)
                        results.append((name, True, "", ""))
                        continue
                    kind, atol, rtol = order["oracle"]
                    if oracle.accepts(kind, output, expected[number], atol, rtol):
                        results.append((name, True, "", ""))
                    else:
                        results.append((name, False, "assertion", _difference(output, expected[number])))
                except Gone:
                    rest = range(number, len(arguments))
                    results += [
                        (f"case {n}", False, "not reached", "the candidate ended first") for n in rest
                    ]
                    break
                except Exception as error:
                    results.append((name, False, "exception", _describe(error)))
            return results, None if expected is not None else _encoded(self._codec, outputs)

        return examine

    def _call_case(self, case: Any) -> Any:
        output = self.peer.call("case", "entry", tuple(case))
        return _drain(output)


class _Recorder:
    def __init__(self, assertions: list[Assertion]) -> None:
        self._assertions = assertions
        self._stopped: tuple[str, str] | None = None

    def passed(self, number: int) -> None:
        self._assertions[number].runs += 1

    def failed(self, number: int, error: Exception) -> None:
        assertion = self._assertions[number]
        assertion.runs += 1
        assertion.failed += 1
        if not assertion.kind:
            assertion.kind = "assertion" if isinstance(error, AssertionError) else "exception"
            assertion.message = _describe(error)

    def stop(self, kind: str, message: str) -> None:
        self._stopped = (kind, message)

    def results(self, *, finished: bool) -> list[Result]:
        """Assertions on branches not taken are no tests, unless the run was cut short."""
        found: list[Result] = []
        for assertion in self._assertions:
            if assertion.failed:
                found.append((assertion.text, False, assertion.kind, assertion.message))
            elif assertion.runs:
                found.append((assertion.text, True, "", ""))
            elif not finished:
                found.append((assertion.text, False, "not reached", ""))
        if not finished:
            kind, message = self._stopped or ("exception", "")
            found.append(("test code", False, kind, message))
        elif not found:
            found.append(("test code", True, "", ""))
        return found


def _exportable(value: object) -> str:
    if hasattr(type(value), "__next__"):
        return "n"
    if callable(value):
        return "c"
    raise TypeError(f"tests can't hand a {type(value).__name__} to the candidate: it is not plain data")


def _drain(output: Any) -> Any:
    """An iterator's items as a list: cases compare values."""
    kind = type(output)
    if hasattr(kind, "__next__") and "n" in flags_of(output):
        return list(output)
    return output


def _decoded(codec: Codec, text: str) -> Any:
    item, nodes = loads(text.encode())
    return Reader(codec, nodes).decode(item)


def _encoded(codec: Codec, value: object) -> bytes:
    message = Message(codec)
    item = message.encode(value)
    return dumps([item, message.nodes])


def _difference(output: object, expected: object) -> str:
    return f"got {_text(output, repr)}, expected {_text(expected, repr)}"


def _describe(error: BaseException) -> str:
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _text(value: object, how: Callable[[object], str] = str) -> str:
    try:
        text = how(value)
    except Exception as error:
        text = f"<{type(error).__name__} while being shown>"
    return text[:SHOWN].encode("utf-8", "replace").decode()
