"""A Python repository as text: its modules, who defines which name, and what a definition needs.

Nothing of it is imported or run; all is read with the parser.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from rrtf_serve.problems.syntax import parse

SKIPPED_FOLDERS = {
    ".git",
    ".tox",
    ".nox",
    ".venv",
    "venv",
    "build",
    "dist",
    "node_modules",
    "docs",
    "__pycache__",
}
_SKIPPED_FILES = {"setup.py", "conftest.py", "noxfile.py"}
LARGEST = 4 << 20  # bytes of a file that is read; what is larger was not written by hand


class Unsupported(ValueError):  # noqa: N818  # says what was found, and is the reason in the report
    """Why a function or a test can't become (part of) a problem."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@contextmanager
def shallow_enough() -> Iterator[None]:
    """Code may be nested more deeply than Python can follow it: then it is Unsupported."""
    try:
        yield
    except (RecursionError, MemoryError) as error:
        raise Unsupported("nested too deeply", str(error)) from error


@dataclass(frozen=True, eq=False)
class Module:
    """One file. `path` is relative to the repository's root."""

    name: str  # dotted
    path: Path
    source: str
    is_package: bool

    @cached_property
    def tree(self) -> ast.Module:
        return parse(self.source)

    @cached_property
    def binders(self) -> dict[str, list[ast.stmt]]:
        """The top-level statements that bind a name, by name."""
        found: dict[str, list[ast.stmt]] = {}
        for statement in self.tree.body:
            for name in bound_by(statement):
                found.setdefault(name, []).append(statement)
        return found

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
        """Top-level functions that nothing else binds."""
        return {
            node.name: node
            for node in self.tree.body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and len(self.binders[node.name]) == 1
        }

    def text_of(self, node: ast.stmt) -> str:
        """Its source lines, decorators included, without a line end."""
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        return "\n".join(self.source.split("\n")[first - 1 : node.end_lineno])

    def absolute(self, node: ast.ImportFrom) -> str:
        """The dotted name of the module that a `from` import names."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        base = parts[: len(parts) - node.level + (1 if self.is_package else 0)]
        return ".".join([*base, *([node.module] if node.module else [])])


@dataclass(frozen=True)
class Member:
    """A definition: the module that holds it, and its name there."""

    module: str
    name: str


@dataclass(frozen=True)
class Repository:
    modules: dict[str, Module]
    tests: list[Module]
    unreadable: dict[str, str]  # path -> why

    def resolve(self, module: str, name: str, seen: frozenset[str] = frozenset()) -> Member | str | None:
        """What `from module import name` gives: a member, the dotted name of a module, or None where it is
        not the repository's."""
        if module not in self.modules or f"{module}:{name}" in seen:
            return None
        here = self.modules[module]
        for statement in here.binders.get(name, []):
            if isinstance(statement, ast.ImportFrom):
                alias = alias_of(statement, name)
                found = self.resolve(here.absolute(statement), alias.name, seen | {f"{module}:{name}"})
                return found or (
                    Member(module, name) if here.absolute(statement) not in self.modules else None
                )
            return Member(module, name)
        for statement in here.tree.body:
            if isinstance(statement, ast.ImportFrom) and statement.names[0].name == "*":
                found = self.resolve(here.absolute(statement), name, seen | {f"{module}:{name}"})
                if isinstance(found, Member):
                    return found
        # A sub-module comes last: a package may hold a function of its name.
        return f"{module}.{name}" if f"{module}.{name}" in self.modules else None


def read_repository(root: Path) -> Repository:
    """Every Python file below `root`. Raises ValueError where there is none, or no test file among them."""
    if not root.is_dir():
        raise ValueError(f"--pytest {root}: no such folder")
    modules: dict[str, Module] = {}
    tests: list[Module] = []
    unreadable: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts[:-1]) or any(p.startswith(".") for p in relative.parts):
            continue
        if path.is_dir():
            continue
        try:
            with shallow_enough():
                module = _read(root, path, relative)
        except (SyntaxError, ValueError, OSError) as error:
            unreadable[str(relative)] = str(error)
            continue
        if _holds_tests(path):
            tests.append(module)
        elif path.name not in _SKIPPED_FILES:
            modules[module.name] = module
    if not tests:
        raise ValueError(f"--pytest {root}: holds no test_*.py or *_test.py")
    return Repository(modules, tests, unreadable)


def _read(root: Path, path: Path, relative: Path) -> Module:
    """Raises ValueError, SyntaxError, OSError on what is no module of the repository."""
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError("a link to a place outside the repository")
    if not path.is_file():  # reading a named pipe would wait for ever
        raise ValueError("not a file")
    if path.stat().st_size > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    parts = list(relative.with_suffix("").parts)
    if parts[0] == "src" and len(parts) > 1:
        parts = parts[1:]
    is_package = parts[-1] == "__init__" and len(parts) > 1
    module = Module(
        ".".join(parts[:-1] if is_package else parts), relative, path.read_text("utf-8-sig"), is_package
    )
    _ = module.tree  # a file that does not parse is refused here
    return module


def _holds_tests(path: Path) -> bool:
    return path.name.startswith("test_") or path.name.endswith("_test.py")


def bound_by(statement: ast.stmt) -> set[str]:
    """Names that a top-level statement binds in its module."""
    found: set[str] = set()
    pending: list[ast.AST] = [statement]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {each.asname or each.name.partition(".")[0] for each in node.names if each.name != "*"}
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            found.add(node.id)
        elif isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            continue
        pending += ast.iter_child_nodes(node)
    return found


def names_read(*nodes: ast.AST) -> set[str]:
    """Names that code reads and that nothing in it binds; built-ins are not among them."""
    read: set[str] = set()
    bound: set[str] = set(vars(builtins))
    everything = [each for root in nodes for each in ast.walk(root)]
    for node in everything:
        match node:
            case ast.Name(name, ast.Load()):
                read.add(name)
            case ast.Name(name) | ast.ExceptHandler(name=str(name)) | ast.arg(name):
                bound.add(name)
            case ast.alias(name, asname):
                bound.add(asname or name.partition(".")[0])
            case _:
                pass
    # Methods are not names that the code beside them could read, and a definition may read its own name.
    others = {each for node in everything if isinstance(node, ast.ClassDef) for each in node.body} | {*nodes}
    definitions = (each for each in everything if isinstance(each, ast.FunctionDef | ast.ClassDef))
    bound |= {each.name for each in definitions if each not in others}
    return read - bound


def reads_module_name(node: ast.AST) -> bool:
    """Whether it asks under which name the module runs, as `if __name__ == "__main__"` does. (`names_read`
    leaves that name out: it is a built-in, too.)"""
    return any(isinstance(each, ast.Name) and each.id == "__name__" for each in ast.walk(node))


def alias_of(statement: ast.Import | ast.ImportFrom, name: str) -> ast.alias:
    """The part of an import that binds the name."""
    return next(each for each in statement.names if (each.asname or each.name.partition(".")[0]) == name)


def import_line(statement: ast.Import | ast.ImportFrom, name: str) -> str:
    """An import of this name alone, as the statement has it."""
    alias = alias_of(statement, name)
    origin = ""
    if isinstance(statement, ast.ImportFrom):
        origin = f"from {'.' * statement.level}{statement.module or ''} "
    renamed = f" as {alias.asname}" if alias.asname else ""
    return f"{origin}import {alias.name}{renamed}"


def future_imports(module: Module) -> Iterator[str]:
    """The module's `from __future__` lines, without which its code may mean something else."""
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            yield from (f"from __future__ import {each.name}" for each in node.names)
