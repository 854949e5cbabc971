"""Cases on their way into the sandbox: encoded once per set, expected values computed once per reference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from rrtf_serve.sandbox.inside.wire import Codec, dumps
from rrtf_serve.sandbox.inside.writer import Message
from rrtf_serve.sandbox.jobs import BadJob, CaseJob, CaseSet
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.relay import Outcome


class ReferenceFailed(RuntimeError):  # noqa: N818  # ReferenceError is a built-in of another meaning
    """The reference solution itself failed; says how."""


class References:
    """Encoded case sets, for as long as their owner keeps them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._locks: WeakKeyDictionary[CaseSet, threading.Lock] = WeakKeyDictionary()
        self._arguments: WeakKeyDictionary[CaseSet, str] = WeakKeyDictionary()
        self._expected: WeakKeyDictionary[CaseSet, str] = WeakKeyDictionary()

    def payload(
        self, job: CaseJob, limits: Limits, run: Callable[[dict[str, Any], dict[str, Any], Limits], Outcome]
    ) -> dict[str, Any]:
        """What the examiner needs. Runs the reference first where the set brings one.

        Raises BadJob on cases that are not plain data, ReferenceFailed where the reference fails.
        """
        cases = job.cases
        with self._lock:
            lock = self._locks.setdefault(cases, threading.Lock())
        with lock:
            if cases not in self._arguments:
                self._arguments[cases] = encode([list(case.arguments) for case in cases.cases])
            if cases not in self._expected:
                self._expected[cases] = (
                    self._compute(job, limits, run)
                    if cases.reference_code
                    else encode([case.expected for case in cases.cases])
                )
            return {
                "arguments": self._arguments[cases],
                "expected": self._expected[cases],
                "oracle": [cases.oracle.kind, cases.oracle.atol, cases.oracle.rtol],
            }

    def _compute(
        self, job: CaseJob, limits: Limits, run: Callable[[dict[str, Any], dict[str, Any], Limits], Outcome]
    ) -> str:
        cases = job.cases
        factor = cases.reference_limits_factor
        outcome = run(
            {"code": cases.reference_code, "entry": job.entry_point},
            {"arguments": self._arguments[cases], "expected": None, "oracle": []},
            replace(limits, wall_s=limits.wall_s * factor, cpu_s=limits.cpu_s * factor),
        )
        bad = next((test for test in outcome.tests if not test.passed), None)
        if outcome.message or outcome.outputs is None or bad is not None:
            why = outcome.message or (f"{bad.name}: {bad.message}" if bad else "no outputs")
            raise ReferenceFailed(f"the reference solution failed: {why}")
        return outcome.outputs


def encode(value: object) -> str:
    """Plain data as JSON text of the wire's format. Raises BadJob on anything else."""

    def refuse(thing: object) -> str:
        raise BadJob(f"a case holds a {type(thing).__name__}, which is not plain data")

    codec = Codec(lambda *_: None, lambda _: None, lambda _: False, refuse)
    message = Message(codec)
    item = message.encode(value)
    return dumps([item, message.nodes]).decode()
