"""Definitions of a repository as source text, with all that they need."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

from training.repository import (
    Member,
    Module,
    Repository,
    Unsupported,
    alias_of,
    bound_by,
    import_line,
    names_read,
    reads_module_name,
)

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_PLAIN = (ast.Assign, ast.AnnAssign)


@dataclass
class Gathered:
    """Source text of definitions and all that they need, growing as more is asked for.

    `leave_out` is never taken in: it is what a problem asks to write.
    """

    repository: Repository
    leave_out: Member
    _owners: dict[str, Member] = field(default_factory=dict)
    _imports: dict[str, None] = field(default_factory=dict)
    _statements: dict[str, dict[int, str]] = field(default_factory=dict)  # module -> line -> text
    _written: set[str] = field(default_factory=set)
    _needed_by: dict[str, dict[str, None]] = field(default_factory=dict)  # module -> modules it imports from

    def need(self, member: Member) -> None:
        """Take in a definition and what it reads. Raises Unsupported."""
        if member == self.leave_out or self._owners.get(member.name) == member:
            return
        other = self._owners.get(member.name)
        if other is not None:
            if self._alike(member, other):
                return
            raise Unsupported(
                "two definitions of one name", f"{member.name} in {other.module}, {member.module}"
            )
        self._owners[member.name] = member
        module = self.repository.modules[member.module]
        for statement in module.binders.get(member.name, []):
            if isinstance(statement, ast.Import | ast.ImportFrom):
                self._need_import(module, statement, member.name)
            else:
                self.need_names(module, names_read(statement))
                self._statements.setdefault(module.name, {})[statement.lineno] = module.text_of(statement)
                # It may bind more than was asked for.
                for name in bound_by(statement):
                    self._owners.setdefault(name, Member(module.name, name))

    def _alike(self, one: Member, other: Member) -> bool:
        """Whether it makes no difference which of two definitions of a name is taken: the same import, or
        the same statements that read nothing."""
        first, second = self._meaning(one), self._meaning(other)
        return first is not None and first == second

    def _meaning(self, member: Member) -> tuple[str, ...] | None:
        """A definition in words that mean the same in any module; None where there are none."""
        module = self.repository.modules[member.module]
        found = []
        for statement in module.binders.get(member.name, []):
            local = isinstance(statement, ast.ImportFrom) and statement.level > 0
            if local or names_read(statement) - {member.name}:
                return None
            if isinstance(statement, ast.Import | ast.ImportFrom):
                found.append(import_line(statement, member.name))
            else:
                found.append(module.text_of(statement))
        return tuple(found)

    def copy(self) -> Gathered:
        """One that grows by itself."""
        return Gathered(
            self.repository, self.leave_out, dict(self._owners), dict(self._imports),
            {name: dict(statements) for name, statements in self._statements.items()}, set(self._written),
            {name: dict(modules) for name, modules in self._needed_by.items()},
        )  # fmt: skip

    def need_names(self, module: Module, names: set[str]) -> None:
        """Take in what a module's code reads by these names. Raises Unsupported."""
        for name in sorted(names):
            if name in module.binders:
                self.need(Member(module.name, name))
                continue
            found = self.repository.resolve(module.name, name)
            if isinstance(found, Member):
                self.need(found)

    def need_effects(self) -> None:
        """Take in the top-level statements that bind nothing themselves but may change data that was taken
        in, such as `TABLE["x"] = 1` or `register("x")`. Raises Unsupported."""
        before = -1
        while before != len(self._owners):
            before = len(self._owners)
            for name in list(self._statements):
                module = self.repository.modules[name]
                for statement in module.tree.body:
                    if self._may_change(module, statement):
                        self.need_names(module, names_read(statement))
                        self._statements[name][statement.lineno] = module.text_of(statement)

    def _may_change(self, module: Module, statement: ast.stmt) -> bool:
        if isinstance(statement, _DEFINITIONS):
            return False
        if statement.lineno in self._statements[module.name] or reads_module_name(statement):
            return False
        reads, pending = set[str](), list(names_read(statement))
        while pending:
            name = pending.pop()
            if name not in reads:
                reads.add(name)
                inner = (each for each in module.binders.get(name, []) if isinstance(each, ast.FunctionDef))
                pending += [each for function in inner for each in names_read(function)]
        data = {
            name
            for name, owner in self._owners.items()
            if owner.module == module.name
            and not all(isinstance(each, _DEFINITIONS) for each in module.binders.get(name, []))
        }
        # What only binds names of its own changes nothing.
        return bool(reads & data) and not (bound_by(statement) - data and isinstance(statement, _PLAIN))

    def _need_import(self, module: Module, statement: ast.Import | ast.ImportFrom, name: str) -> None:
        alias = alias_of(statement, name)
        if isinstance(statement, ast.Import):
            if alias.name.partition(".")[0] in self.repository.modules:
                raise Unsupported("reads a module of its own package as a value", alias.name)
            self._imports[import_line(statement, name)] = None
            return
        origin = module.absolute(statement)
        found = self.repository.resolve(origin, alias.name)
        if isinstance(found, str):
            raise Unsupported("reads a module of its own package as a value", found)
        if found is None:
            if origin.partition(".")[0] in self.repository.modules:
                raise Unsupported("a name that its package does not define", f"{origin}.{alias.name}")
            self._imports[import_line(statement, name)] = None
            return
        self._needed_by.setdefault(module.name, {})[found.module] = None
        if found.name == name:
            del self._owners[name]  # it stands for that one
            self.need(found)
        elif found != self.leave_out:
            self.need(found)
            self._statements.setdefault(module.name, {})[statement.lineno] = f"{name} = {found.name}"

    def text(self) -> str:
        """What was taken in since the last call, and what changes it: imports, then definitions, those of a
        module in its own order, behind the modules that it needs. Raises Unsupported."""
        self.need_effects()
        imports = [line for line in self._imports if line not in self._written]
        imports.sort(key=lambda line: not line.startswith("from __future__"))
        texts = []
        for module in self._in_order():
            statements = self._statements.get(module, {})
            texts += [statements[line] for line in sorted(statements)]
        texts = [each for each in texts if each not in self._written]
        self._written |= {*imports, *texts}
        return joined(["\n".join(imports), *texts])

    def _in_order(self) -> list[str]:
        """Modules, each behind those that it imports from (as far as they do not import each other)."""
        order: dict[str, None] = {}
        entered: set[str] = set()

        def enter(module: str) -> None:
            if module not in entered:
                entered.add(module)
                for other in self._needed_by.get(module, {}):
                    enter(other)
                order[module] = None

        for module in [*self._needed_by, *self._statements]:
            enter(module)
        return list(order)

    @property
    def futures(self) -> str:
        """The `from __future__` lines among all that was taken in."""
        return "\n".join(line for line in self._imports if line.startswith("from __future__"))

    def add_import(self, line: str) -> None:
        """One more import, as a source line."""
        self._imports[line] = None


def joined(texts: Iterable[str]) -> str:
    """Source texts as one: two blank lines around those of several lines."""
    found = ""
    for text in filter(None, texts):
        short = "\n" not in text and "\n" not in found.rpartition("\n\n")[2]
        gap = "\n" if short else "\n\n\n"
        found += (gap if found else "") + text
    return found
