"""Which calls several independent programmes agree on, and the tests that follow from it.

The idea that a programme is likely right where others, drawn independently, return the same values is CodeT's
(Chen et al., arXiv 2207.10397), which weighs programmes and tests by their dual agreement; there a model also
writes the expected values, here only programmes that ran do.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from rrtf_serve.problems.syntax import parse, parses
from training.outcomes import Outcome
from training.repository import bound_by, names_read, reads_module_name

# What tests with floats need; `close` also says no to lists of other lengths and to other types.
CLOSE = """\
def close(got, expected):
    if isinstance(expected, float) and isinstance(got, (int, float)):
        return abs(got - expected) <= 1e-6 * max(1.0, abs(expected))
    if isinstance(expected, (list, tuple)):
        same = type(got) is type(expected) and len(got) == len(expected)
        return same and all(close(a, b) for a, b in zip(got, expected))
    if isinstance(expected, dict):
        same = type(got) is dict and got.keys() == expected.keys()
        return same and all(close(got[key], expected[key]) for key in expected)
    return got == expected
"""
TOLERANCE = 1e-6  # as `close` has it
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Rule:
    """When tests are kept. Counts are of distinct programmes. Raises ValueError naming the flag."""

    least_programmes: int = 4  # that return a value for at least one call
    majority: float = 0.75  # share of them that must return the expected value of a call
    least_agreeing: int = 3  # that return the expected value of every kept call
    least_tests: int = 3
    most_tests: int = 12

    def __post_init__(self) -> None:
        if not 0.5 < self.majority <= 1:
            raise ValueError(f"--majority must be above 0.5 and at most 1, not {self.majority}")
        if not 2 <= self.least_agreeing <= self.least_programmes:
            raise ValueError(
                f"--least-agreeing must be from 2 to --least-programmes ({self.least_programmes}), not "
                f"{self.least_agreeing}"
            )
        if not 1 <= self.least_tests <= self.most_tests:
            raise ValueError(
                f"--least-tests must be from 1 to --most-tests ({self.most_tests}), not {self.least_tests}"
            )


@dataclass(frozen=True)
class Agreed:
    """Tests that `agreeing` programmes (positions) all pass, of `programmes` distinct ones that ran."""

    expected: dict[str, str]  # call -> literal of the value
    agreeing: tuple[int, ...]
    programmes: int


class Disagreement(ValueError):  # noqa: N818  # says what was found, and is the reason in the report
    """Why no tests follow; `reason` is one of the names that docs/training-tests.md lists."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


def agree(
    calls: Sequence[str],
    results: Mapping[int, Sequence[Outcome]],
    rule: Rule,
    examples: Mapping[str, str] | None = None,
) -> Agreed:
    """Hold the programmes' results, by their positions, against one another.

    `results` has one entry for each distinct programme (see `distinct`), one outcome for each call. Only
    programmes that return the values of `examples` (call -> literal) count. Raises Disagreement.
    """
    ran = {at: found for at, found in results.items() if any(each.literal for each in found)}
    stated = [
        (number, (examples or {})[call]) for number, call in enumerate(calls) if call in (examples or {})
    ]
    voters = {
        at: found
        for at, found in ran.items()
        if all(_gives(found[number], literal) for number, literal in stated)
    }
    if len(ran) >= rule.least_programmes > len(voters):
        raise Disagreement(
            "fail the task's examples", f"{len(ran) - len(voters)} of {len(ran)} distinct programmes that ran"
        )
    if len(voters) < rule.least_programmes:
        raise Disagreement(
            "too few programmes", f"{len(voters)} distinct ones ran, {rule.least_programmes} are needed"
        )
    expected: dict[str, str] = {}
    groups: dict[str, frozenset[int]] = {}
    for number, call in enumerate(calls):
        values = {at: found[number].literal for at, found in voters.items()}
        best = _largest_group({at: literal for at, literal in values.items() if literal is not None})
        if best and len(best) >= rule.majority * len(voters):
            expected[call] = str(values[min(best)])
            groups[call] = best
    if len(expected) < rule.least_tests:
        raise Disagreement(
            "too few agreed calls", f"{len(expected)} of {len(calls)}, {rule.least_tests} are needed"
        )
    agreeing = frozenset(voters).intersection(*groups.values())
    if len(agreeing) < rule.least_agreeing:
        raise Disagreement(
            "no common programmes",
            f"{len(agreeing)} return every agreed value, {rule.least_agreeing} are needed",
        )
    if len(set(expected.values())) == 1:
        raise Disagreement("one value for all", f"every call gives {next(iter(expected.values()))[:80]}")
    return Agreed(_chosen(expected, rule.most_tests), tuple(sorted(agreeing)), len(voters))


def _gives(outcome: Outcome, literal: str) -> bool:
    return outcome.literal is not None and same(ast.literal_eval(outcome.literal), ast.literal_eval(literal))


def _chosen(expected: dict[str, str], most: int) -> dict[str, str]:
    """At most so many, in the calls' order; those whose values are rare go first in."""
    if len(expected) <= most:
        return expected
    often: dict[str, int] = {}
    rank = {}
    for call, literal in expected.items():
        often[literal] = often.get(literal, 0) + 1
        rank[call] = often[literal]
    kept = set(sorted(expected, key=lambda call: rank[call])[:most])
    return {call: literal for call, literal in expected.items() if call in kept}


def _largest_group(values: Mapping[int, str]) -> frozenset[int]:
    groups: list[tuple[object, set[int]]] = []
    for at, literal in values.items():
        value = ast.literal_eval(literal)
        home = next((members for first, members in groups if same(value, first)), None)
        if home is None:
            groups.append((value, {at}))
        else:
            home.add(at)
    largest: set[int] = max((members for _, members in groups), key=len, default=set())
    return frozenset(largest)


def same(a: object, b: object) -> bool:
    """Equal, of the same types but for int and float, and floats within TOLERANCE."""
    match a, b:
        case (bool(), _) | (_, bool()):
            return a is b
        case ((int() | float()), (int() | float())):
            return _close(a, b) if isinstance(a, float) or isinstance(b, float) else a == b
        case ([*mine], [*theirs]):
            alike = type(a) is type(b) and len(mine) == len(theirs)
            return alike and all(same(x, y) for x, y in zip(mine, theirs, strict=True))
        case dict(), dict():
            return a.keys() == b.keys() and all(same(value, b[key]) for key, value in a.items())
        case _:
            return type(a) is type(b) and a == b


def _close(a: float, b: float) -> bool:
    try:
        return math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:  # an integer beyond all floats
        return False


def assertion(call: str, literal: str) -> str:
    """The test statement of one call; with floats in the value it calls `close` (see CLOSE)."""
    value = ast.literal_eval(literal)
    if _holds_float(value):
        return f"assert close({call}, {literal})"
    if value is None:
        return f"assert {call} is None"
    return f"assert {call} == {literal}"


def _holds_float(value: object) -> bool:
    match value:
        case float():
            return True
        case list() | tuple():
            return any(map(_holds_float, value))
        case dict():
            return any(map(_holds_float, value.values()))
        case _:
            return False


def distinct(programmes: Sequence[str], entry_point: str) -> list[int]:
    """Positions of the programmes that parse and that differ in more than comments, docstrings, annotations,
    imports, the names they give themselves and what stands beside the entry point without its needing it;
    the first of each kind. Those that are nested too deeply to compare are none."""
    found: dict[str, int] = {}
    for at, programme in enumerate(programmes):
        if parses(programme):
            with suppress(RecursionError):
                found.setdefault(_shape(programme, entry_point), at)
    return sorted(found.values())


def _shape(programme: str, entry_point: str) -> str:
    tree = parse(programme)
    tree.body = _needed(tree.body, entry_point)
    own: dict[str, str] = {}  # of the module, in all of its statements
    top = {name for statement in tree.body for name in bound_by(statement)}
    for statement in tree.body:
        _rename(statement, top, own)
    return ast.dump(tree)


def _rename(statement: ast.stmt, top: set[str], own: dict[str, str]) -> None:
    """Names by the order in which they come; docstrings and annotations go. In place."""
    inner: dict[str, str] = {}
    nodes = list(ast.walk(statement))
    bound = {node.id for node in nodes if isinstance(node, ast.Name) and not _reads(node)}
    bound |= {node.arg for node in nodes if isinstance(node, ast.arg)}

    def renamed(name: str) -> str:
        if name in top:
            return own.setdefault(name, f"n{len(own)}")
        return inner.setdefault(name, f"m{len(inner)}") if name in bound else name

    for node in nodes:
        if isinstance(node, ast.Name):
            node.id = renamed(node.id)
        elif isinstance(node, ast.arg):
            node.arg, node.annotation = renamed(node.arg), None
        elif isinstance(node, _Definition):
            node.name = renamed(node.name)
            node.body = [each for each in node.body if not _text(each)]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None


def _needed(body: Sequence[ast.stmt], entry_point: str) -> list[ast.stmt]:
    """A module's statements without imports, tests and trials of itself, and definitions that the entry point
    does not need: two copies of one programme differ in those."""
    binders: dict[str, list[ast.stmt]] = {}
    for statement in body:
        for name in bound_by(statement):
            binders.setdefault(name, []).append(statement)
    needed, pending = set[str](), [entry_point]
    while pending:
        name = pending.pop()
        if name in binders and name not in needed:
            needed.add(name)
            pending += [read for each in binders[name] for read in {*names_read(each), *bound_by(each)}]
    return [
        each
        for each in body
        if not isinstance(each, ast.Import | ast.ImportFrom | ast.Expr | ast.Assert)
        and not (isinstance(each, ast.If) and reads_module_name(each.test))
        and (bound_by(each) & needed or not bound_by(each))
    ]


def _reads(node: ast.Name) -> bool:
    return isinstance(node.ctx, ast.Load)


def _text(node: ast.stmt) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
