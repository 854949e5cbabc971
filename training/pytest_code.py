"""Tests for pytest and unittest as code that the judge can run: fixtures called, parameters written out.

One test (with one set of parameters) becomes one assertion of `check(candidate)`, so that it passes or fails
as a whole, as with pytest.
"""

from __future__ import annotations

import ast
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from rrtf_serve.problems.syntax import parse
from training.gathered import Gathered
from training.pytest_tests import (
    PytestTest,
    dotted_name,
    imported,
    is_prefix,
    is_test,
    references,
)
from training.repository import Member, Module, Repository, Unsupported, import_line, names_read

STAND_IN = "pytest_stand_in.py"
MOST_CALLS = 1000  # of one test, each with a set of parameters
STAND_IN_HAS = {"raises", "approx", "fail", "fixture", "mark", "param"}
_FIXTURE = {"pytest.fixture", "fixture"}
_LEFT_OUT_MARKS = {"skip", "skipif", "xfail", "usefixtures", "asyncio", "anyio"}
# They look at this process, and the candidate is in another.
_ACROSS = {"assertWarns", "assertWarnsRegex", "assertLogs", "assertNoLogs"}


@dataclass
class TestWriter:
    """Makes the test code of one problem out of tests of one file."""

    __test__ = False  # not a class for pytest to collect

    repository: Repository
    module: Module
    gathered: Gathered  # knows what stands in the prompt already
    _imports: dict[str, None] = field(default_factory=dict)
    _helpers: dict[int, ast.stmt] = field(default_factory=dict)  # by the line it stands in
    _bindings: dict[str, Member] = field(default_factory=dict)
    _checks: list[tuple[str, str]] = field(default_factory=list)  # (where the test is, assertion)
    _taken: set[str] = field(default_factory=set)

    def add(self, test: PytestTest) -> None:
        """Raises Unsupported; then the code is not to be used any more (see `copy`)."""
        calls = list(self._calls(test))
        if not calls:
            raise Unsupported("no parameters left", "all sets of parameters are marked")
        if test.owner:
            self._take(test.owner)
            home = self._helpers[test.owner.lineno]
            assert isinstance(home, ast.ClassDef)
            home.body.append(self._bare(test.function))
            self._take_names(home.body[-1])
        else:
            self._take(test.function)
        for call in calls:
            self._take_names(call)
        self._checks += [(test.where, f"assert {ast.unparse(call)}") for call in calls]

    def copy(self) -> TestWriter:
        """One that grows by itself."""
        return TestWriter(
            self.repository, self.module, self.gathered.copy(), dict(self._imports),
            {line: copy.deepcopy(node) for line, node in self._helpers.items()}, dict(self._bindings),
            list(self._checks), set(self._taken),
        )  # fmt: skip

    @property
    def checks(self) -> list[str]:
        """Of each assertion of `check`, in order, the test that it runs."""
        return [where for where, _ in self._checks]

    def code(self, kept: Sequence[bool] | None = None) -> str:
        """The test code, with the assertions that are to be `kept` (default: all)."""
        checks = [line for at, (_, line) in enumerate(self._checks) if kept is None or kept[at]]
        bindings = _bindings(self._bindings)
        stand_in = ast.parse(Path(__file__).with_name(STAND_IN).read_text("utf-8"))
        parts = [
            self.gathered.futures,  # the repository's definitions may rely on it, and it must come first
            ast.unparse(_Bare().visit(stand_in)),
            "\n".join(self._imports),
            self._definitions,
            bindings,
            *(ast.unparse(self._helpers[line]) for line in sorted(self._helpers)),
            "def check(candidate):\n" + "\n".join(f"    {line}" for line in checks),
        ]
        return "\n\n\n".join(part for part in parts if part) + "\n"

    @cached_property
    def _definitions(self) -> str:
        return self.gathered.text()

    def _calls(self, test: PytestTest) -> Iterator[ast.Call]:
        """One call for each set of parameters."""
        function = test.function
        if isinstance(function, ast.AsyncFunctionDef):
            raise Unsupported("an async test")
        self._check_marks(test.owner.decorator_list if test.owner else [])
        parameters = [each for each in function.decorator_list if _mark(each) == "parametrize"]
        self._check_marks([each for each in function.decorator_list if each not in parameters])
        wanted = [each.arg for each in (*function.args.posonlyargs, *function.args.args)]
        wanted = wanted[1:] if test.owner else wanted
        wanted = wanted[: len(wanted) - len(function.args.defaults)]
        sets = [list(self._sets(each)) for each in parameters]
        if math.prod(map(len, sets)) > MOST_CALLS:
            raise Unsupported("too many sets of parameters", str(math.prod(map(len, sets))))
        for chosen in itertools.product(*sets):
            given = {name: value for one in chosen for name, value in one.items()}
            named = [ast.keyword(name, given.get(name) or self._fixture(name, ())) for name in wanted]
            if test.owner:
                start = [ast.Name(test.owner.name, ast.Load()), ast.Constant(function.name)]
                yield ast.Call(ast.Name("method_finishes", ast.Load()), start, named)
            else:
                start = [ast.Name(function.name, ast.Load())]
                yield ast.Call(ast.Name("finishes", ast.Load()), start, named)

    def _check_marks(self, decorators: list[ast.expr]) -> None:
        for each in decorators:
            name = _mark(each)
            if name is None:
                raise Unsupported("a decorated test", ast.unparse(each)[:80])
            if name in _LEFT_OUT_MARKS or name == "parametrize":
                raise Unsupported(f"marked {name}", ast.unparse(each)[:80])

    def _sets(self, decorator: ast.expr) -> Iterator[dict[str, ast.expr]]:
        """Parameter names and expressions of every set of one `parametrize`."""
        if (
            not isinstance(decorator, ast.Call)
            or len(decorator.args) < 2
            or any(each.arg in ("indirect", None) for each in decorator.keywords)
        ):
            raise Unsupported("an odd parametrize", ast.unparse(decorator)[:80])
        names = _names(decorator.args[0])
        values = self._literal_list(decorator.args[1])
        for value in values:
            given = value
            if isinstance(value, ast.Call) and dotted_name(value.func) in ("pytest.param", "param"):
                if any(each.arg == "marks" for each in value.keywords):
                    continue  # it is expected to fail, or to be skipped
                if len(names) == 1 and not value.args:
                    raise Unsupported("parameters that are not written out", ast.unparse(value)[:80])
                given = value.args[0] if len(names) == 1 else ast.Tuple(value.args, ast.Load())
            if len(names) == 1:
                yield {names[0]: given}
                continue
            if not isinstance(given, ast.Tuple | ast.List) or len(given.elts) != len(names):
                raise Unsupported("parameters that are not written out", ast.unparse(value)[:80])
            yield dict(zip(names, given.elts, strict=True))

    def _literal_list(self, node: ast.expr) -> list[ast.expr]:
        if isinstance(node, ast.Name):
            statements = self.module.binders.get(node.id, [])
            if len(statements) == 1 and isinstance(statements[0], ast.Assign | ast.AnnAssign):
                node = statements[0].value or node
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return [*self._literal_list(node.left), *self._literal_list(node.right)]
        if isinstance(node, ast.List | ast.Tuple) and not any(isinstance(e, ast.Starred) for e in node.elts):
            return node.elts
        raise Unsupported("parameters that are not written out", ast.unparse(node)[:80])

    def _fixture(self, name: str, within: tuple[str, ...]) -> ast.expr:
        """A call of a fixture of the same file that does no more than return a value."""
        found = self.module.binders.get(name, [])
        function = found[0] if len(found) == 1 else None
        if not isinstance(function, ast.FunctionDef) or name in within:
            raise Unsupported("a fixture from elsewhere", name)
        plain = [each for each in function.decorator_list if dotted_name(_called(each)) in _FIXTURE]
        settings = {word.arg for each in plain if isinstance(each, ast.Call) for word in each.keywords}
        yields = any(isinstance(each, ast.Yield | ast.YieldFrom) for each in ast.walk(function))
        if len(plain) != len(function.decorator_list) or not plain or yields or settings - {"scope"}:
            raise Unsupported("a fixture that does more than return a value", name)
        wanted = [each.arg for each in function.args.args]
        return ast.Call(
            ast.Name(name, ast.Load()), [],
            [ast.keyword(each, self._fixture(each, (*within, name))) for each in wanted],
        )  # fmt: skip

    def _take(self, node: ast.stmt) -> None:
        """A top-level statement of the test file, and what it reads; of a class not its tests."""
        if node.lineno in self._helpers:
            return
        bare = self._bare(node)
        if isinstance(bare, ast.ClassDef):
            bare.body = [each for each in bare.body if not is_test(each)]
        self._helpers[node.lineno] = bare
        self._take_names(bare)

    def _bare(self, node: ast.stmt) -> ast.stmt:
        """A copy that the judge can run. Raises Unsupported."""
        module = parse(ast.unparse(node))
        kept = [e for e in node.body if not is_test(e)] if isinstance(node, ast.ClassDef) else [node]
        for part in (each for root in kept for each in ast.walk(root)):
            if _is_across(part):
                detail = ast.unparse(part)[:80]
                raise Unsupported("looks at the process that the candidate is not in", detail)
            if isinstance(part, ast.Import | ast.ImportFrom) and self._is_own(part):
                raise Unsupported("imports the repository inside a function", ast.unparse(part)[:80])
        _Bare().visit(module)
        return ast.fix_missing_locations(module).body[0]

    def _is_own(self, node: ast.Import | ast.ImportFrom) -> bool:
        if isinstance(node, ast.ImportFrom):
            return node.level > 0 or is_prefix(self.repository, (node.module or "").partition(".")[0])
        return any(is_prefix(self.repository, each.name.partition(".")[0]) for each in node.names)

    def _take_names(self, node: ast.AST) -> None:
        for dotted, member in references(self.repository, self.module, node):
            self.gathered.need(member)
            self._bindings[dotted] = member
        for name in sorted(names_read(node)):
            if name in self._taken:
                continue
            self._taken.add(name)
            if isinstance(imported(self.repository, self.module, name), Member | str):
                self._refuse_bare(node, name)
                continue
            for statement in self.module.binders.get(name, []):
                if isinstance(statement, ast.Import | ast.ImportFrom):
                    self._take_import(statement, name)
                else:
                    self._take(statement)

    def _refuse_bare(self, node: ast.AST, name: str) -> None:
        """A module of the repository may only be asked for its members."""
        if isinstance(imported(self.repository, self.module, name), str) and not any(
            dotted.startswith(f"{name}.") for dotted in self._bindings
        ):
            raise Unsupported(
                "reads a module of the repository as a value", f"{name} in {ast.unparse(node)[:60]}"
            )

    def _take_import(self, statement: ast.Import | ast.ImportFrom, name: str) -> None:
        line = import_line(statement, name)
        if line == "import pytest":
            return  # the stand-in
        if "pytest" in line or line.startswith("from .") or ".mock" in line or " mock" in line:
            raise Unsupported("needs more than the stand-in for pytest has", line)
        self._imports[line] = None


def _names(node: ast.expr) -> list[str]:
    try:
        value = ast.literal_eval(node)
    except ValueError as error:
        raise Unsupported("an odd parametrize", ast.unparse(node)[:80]) from error
    if not isinstance(value, str | list | tuple):
        raise Unsupported("an odd parametrize", ast.unparse(node)[:80])
    names = value.split(",") if isinstance(value, str) else list(value)
    return [str(each).strip() for each in names if str(each).strip()]


def _called(node: ast.expr) -> ast.expr:
    return node.func if isinstance(node, ast.Call) else node


def _mark(decorator: ast.expr) -> str | None:
    """ "skip" of `@pytest.mark.skip(...)`; None where the decorator is no mark."""
    dotted = dotted_name(_called(decorator))
    return dotted.removeprefix("pytest.mark.") if dotted.startswith("pytest.mark.") else None


def _is_across(node: ast.AST) -> bool:
    if not isinstance(node, ast.Attribute):
        return False
    of_pytest = (
        dotted_name(node).startswith("pytest.") and dotted_name(node).split(".")[1] not in STAND_IN_HAS
    )
    return node.attr in _ACROSS or of_pytest


class _Bare(ast.NodeTransformer):
    """Without decorators of pytest, docstrings, annotations of arguments, and assert statements: the judge
    counts those as tests of their own and goes on behind a failed one."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # ast's own naming
        self.generic_visit(node)
        decorators = [e for e in node.decorator_list if not dotted_name(_called(e)).startswith("pytest.")]
        node.decorator_list = [e for e in decorators if dotted_name(_called(e)) not in _FIXTURE]
        node.returns = None
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        self.generic_visit(node)
        node.decorator_list = [e for e in node.decorator_list if _mark(e) is None]
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        text = ast.unparse(node.test)[:200]
        raised = ast.Call(ast.Name("AssertionError", ast.Load()), [node.msg or ast.Constant(text)], [])
        return ast.If(ast.UnaryOp(ast.Not(), node.test), [ast.Raise(raised)], [])


def _bindings(members: dict[str, Member]) -> str:
    """Statements that give the tests' own names to the definitions: `mi.take` and the like."""
    lines: list[str] = []
    trees: dict[str, dict[str, object]] = {}
    for dotted, member in members.items():
        first, *rest = dotted.split(".")
        if not rest:
            if first != member.name:
                lines.append(f"{first} = {member.name}")
            continue
        place = trees.setdefault(first, {})
        for part in rest[:-1]:
            inner = place.setdefault(part, {})
            assert isinstance(inner, dict)
            place = inner
        place[rest[-1]] = member.name
    for name, tree in trees.items():
        lines.append(f"{name} = {_namespace(tree)}")
    return "\n".join(["import types", *lines] if trees else lines)


def _namespace(tree: dict[str, object]) -> str:
    inner = (f"{k}={_namespace(v) if isinstance(v, dict) else v}" for k, v in tree.items())
    return f"types.SimpleNamespace({', '.join(inner)})"
