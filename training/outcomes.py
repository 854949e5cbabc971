"""What programmes return for calls, found out in the sandbox.

A value crosses to the host as the text of its literal, written by the tests' process and not by the
programme's; it is parsed, never evaluated. What is no literal of at most LONGEST characters is no value.
"""

from __future__ import annotations

import ast
import cmath
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from rrtf_serve.problems.origins import Record
from rrtf_serve.problems.samples import Journal
from rrtf_serve.sandbox.jobs import FunctionJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.verdict import Status, TestResult, Verdict

LONGEST = 280  # characters of a value's literal; the sandbox shows 300 of a failure's message
LIMITS = Limits(wall_s=6.0, cpu_s=2.0, memory_bytes=1 << 30)
MOST_BROKEN = 2  # calls of one programme that may break a limit before the others are left
_INFRA = "the sandbox failed: "
_MARK = "value:"
_END = ":end"
_SHOW = f"""\
class Shown(Exception):
    pass


def show(value):
    raise Shown({_MARK!r} + repr(value) + {_END!r})
"""


@dataclass(frozen=True)
class Outcome:
    """What one call did: `literal` is the value's source text; `error` says why there is none."""

    literal: str | None
    error: str = ""

    @property
    def infra(self) -> bool:
        """Whether the sandbox failed, and not the programme."""
        return self.error.startswith(_INFRA)


@dataclass(frozen=True)
class Trial:
    """A programme and the calls to make of its entry point."""

    programme: str
    entry_point: str
    calls: tuple[str, ...]

    @property
    def key(self) -> str:
        content = json.dumps([self.programme, self.entry_point, self.calls])
        return hashlib.sha256(content.encode("ascii")).hexdigest()[:32]


def outcomes(trials: Sequence[Trial], sandboxes: Sequence[Sandbox], path: Path) -> list[tuple[Outcome, ...]]:
    """For each trial one outcome per call; a value stands only where every sandbox saw the same one.

    Two sandboxes are two processes: what hangs on the hash seed, the clock or chance differs between them.
    Finished trials are kept in `path`. Raises BusyError where another process writes there.
    """
    found: dict[str, tuple[Outcome, ...]] = {}
    with Journal(path, _flaw) as journal:
        for record in journal.records.values():
            found[record["key"]] = tuple(Outcome(**each) for each in record["outcomes"])
        missing = list({each.key: each for each in trials if each.key not in found}.values())
        passes = [_run(missing, sandbox) for sandbox in sandboxes]
        progress = tqdm(
            zip(missing, *passes, strict=True), desc="running programmes", unit="programme",
            total=len(missing),
        )  # fmt: skip
        for trial, *several in progress:
            found[trial.key] = tuple(_stable(each) for each in zip(*several, strict=True))
            if any(each.infra for each in found[trial.key]):
                continue  # no fault of the programme's: it is run again next time
            journal.add({"key": trial.key, "outcomes": [asdict(each) for each in found[trial.key]]})
    return [found[trial.key] for trial in trials]


def _flaw(record: Record) -> str:
    several = record.get("outcomes")
    fit = isinstance(several, list) and all(
        isinstance(each, dict)
        and each.keys() == {"literal", "error"}
        and isinstance(each["literal"], str | None)
        and isinstance(each["error"], str)
        for each in several
    )
    return "" if fit else "no outcomes"


def _stable(several: tuple[Outcome, ...]) -> Outcome:
    first = several[0]
    if all(each == first for each in several):
        return first
    if any(each.literal is None for each in several):
        return next(each for each in several if each.literal is None)
    return Outcome(None, "another value when run again")


def _run(trials: Sequence[Trial], sandbox: Sandbox) -> Iterator[tuple[Outcome, ...]]:
    verdicts = sandbox.judge_many((_job(trial, trial.calls) for trial in trials), LIMITS)
    for trial, verdict in zip(trials, verdicts, strict=True):
        if verdict.kind is None or len(trial.calls) == 1:
            yield _read(verdict, len(trial.calls))
            continue
        yield _alone(trial, sandbox)


def _alone(trial: Trial, sandbox: Sandbox) -> tuple[Outcome, ...]:
    """Each call in a run of its own, since one broke a limit and took the others with it; where several do,
    the programme is not tried to the end."""
    found: list[Outcome] = []
    broken = 0
    for call in trial.calls:
        if broken == MOST_BROKEN:
            found.append(Outcome(None, f"not run: {broken} calls before it broke a limit"))
            continue
        verdict = sandbox.judge(_job(trial, (call,)), LIMITS)
        broken += verdict.kind is not None
        found += _read(verdict, 1)
    return tuple(found)


def _job(trial: Trial, calls: Sequence[str]) -> FunctionJob:
    tests = "\n".join(f"assert show({call})" for call in calls)
    return FunctionJob(trial.programme, trial.entry_point, tests, _SHOW)


def _read(verdict: Verdict, count: int) -> tuple[Outcome, ...]:
    if verdict.status is Status.INFRA_ERROR:
        return (Outcome(None, f"{_INFRA}{verdict.message}"),) * count
    if len(verdict.tests) != count:
        return (Outcome(None, verdict.message or "the run was cut short"),) * count
    return tuple(_outcome(test) for test in verdict.tests)


def _outcome(test: TestResult) -> Outcome:
    kind, _, text = test.message.partition(": ")
    if kind != "Shown" or not text.startswith(_MARK):
        return Outcome(None, test.message or test.kind)
    if not text.endswith(_END):
        return Outcome(None, f"a value of more than {LONGEST} characters")
    literal = text.removeprefix(_MARK).removesuffix(_END)
    try:
        text = spelled(ast.literal_eval(literal))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return Outcome(None, f"not plain data: {literal[:80]}")
    return Outcome(text) if len(literal) <= LONGEST else Outcome(None, "too long a value")


def spelled(value: object) -> str:
    """`repr`, but for sets and dictionaries: their members in a fixed order, so that equal values are spelled
    alike. Raises ValueError on what no literal stands for, such as infinity, or the Ellipsis that `repr` puts
    where a list holds itself."""
    match value:
        case set() if value:
            return "{" + ", ".join(sorted(map(spelled, value))) + "}"
        case dict():
            return "{" + ", ".join(sorted(f"{spelled(k)}: {spelled(v)}" for k, v in value.items())) + "}"
        case list():
            return "[" + ", ".join(map(spelled, value)) + "]"
        case tuple():
            return "(" + ", ".join(map(spelled, value)) + ("," if len(value) == 1 else "") + ")"
        case None | bool() | int() | str() | bytes() | set():
            return repr(value)
        case float() | complex() if cmath.isfinite(value):
            return repr(value)
        case _:
            raise ValueError(f"{type(value).__name__} {value!r} has no literal")
