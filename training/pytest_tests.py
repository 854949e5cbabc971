"""Tests for pytest and unittest in a repository, and what they name of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from training.repository import Member, Module, Repository, alias_of

TestFunction = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class PytestTest:
    """A test function, or a method of a test class. `uses` are the repository's functions that it names."""

    __test__ = False  # not a class for pytest to collect

    module: Module
    function: TestFunction
    owner: ast.ClassDef | None = None
    uses: frozenset[Member] = frozenset()

    @property
    def name(self) -> str:
        return f"{self.owner.name}::{self.function.name}" if self.owner else self.function.name

    @property
    def where(self) -> str:
        return f"{self.module.path}::{self.name}"


def tests_of(repository: Repository, module: Module) -> Iterator[PytestTest]:
    """The tests of one file, in its order."""
    for node in module.tree.body:
        if isinstance(node, TestFunction) and node.name.startswith("test"):
            yield PytestTest(module, node, None, _uses(repository, module, node))
        elif isinstance(node, ast.ClassDef) and (node.name.startswith("Test") or _is_case(node)):
            for method in node.body:
                if isinstance(method, TestFunction) and method.name.startswith("test"):
                    yield PytestTest(module, method, node, _uses(repository, module, method))


def _is_case(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).rpartition(".")[2] == "TestCase" for base in node.bases)


def _uses(repository: Repository, module: Module, node: ast.AST) -> frozenset[Member]:
    return frozenset(member for _, member in references(repository, module, node))


def references(repository: Repository, module: Module, node: ast.AST) -> list[tuple[str, Member]]:
    """What test code names of the repository: (dotted expression in the test, definition)."""
    found: dict[str, Member] = {}
    for each in ast.walk(node):
        if isinstance(each, ast.Name | ast.Attribute):
            dotted = dotted_name(each)
            member = _lookup(repository, module, dotted) if dotted else None
            if isinstance(member, Member):
                found[dotted] = member
    return list(found.items())


def dotted_name(node: ast.expr) -> str:
    """ "a.b.c" of a plain chain of names; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    inner = dotted_name(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{inner}.{node.attr}" if inner and isinstance(node, ast.Attribute) else ""


def _lookup(repository: Repository, module: Module, dotted: str) -> Member | str | None:
    """A definition, or a module's dotted name, that an expression of a test file stands for."""
    first, *rest = dotted.split(".")
    found = imported(repository, module, first)
    for name in rest:
        if not isinstance(found, str):
            return None  # an attribute of a definition is not a definition
        inner = f"{found}.{name}"
        found = repository.resolve(found, name) or (inner if is_prefix(repository, inner) else None)
    return found


def is_prefix(repository: Repository, dotted: str) -> bool:
    """Whether a module of the repository has this dotted name, or one that begins with it."""
    return any(name == dotted or name.startswith(f"{dotted}.") for name in repository.modules)


def imported(repository: Repository, module: Module, name: str) -> Member | str | None:
    """A definition, or a module's dotted name, that a test file imports by this name from the repository."""
    for statement in module.binders.get(name, []):
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                shown = alias.asname or alias.name.partition(".")[0]
                whole = alias.name if alias.asname else shown
                if shown == name and is_prefix(repository, whole):
                    return whole
        elif isinstance(statement, ast.ImportFrom):
            origin = module.absolute(statement)
            alias = alias_of(statement, name)
            found = repository.resolve(origin, alias.name)
            inner = f"{origin}.{alias.name}"
            return found or (inner if is_prefix(repository, inner) else None)
    return None if name in module.binders else _starred(repository, module, name)


def _starred(repository: Repository, module: Module, name: str) -> Member | str | None:
    for statement in module.tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
            found = repository.resolve(module.absolute(statement), name)
            if found is not None:
                return found
    return None


def is_test(node: ast.AST) -> bool:
    """Whether pytest or unittest would run it as a test, where it stands in the right place."""
    return isinstance(node, TestFunction) and node.name.startswith("test")
