"""Test code rewritten so that each assertion is a test of its own and a failed one does not end the run."""

from __future__ import annotations

import ast
import builtins
import re
from dataclasses import dataclass, field

SHOWN = 200  # characters of an assertion's text in the results


@dataclass
class Assertion:
    """`runs` and `failed` count executions: an assertion in a loop is one test and must hold each time."""

    text: str
    runs: int = 0
    failed: int = 0
    kind: str = ""
    message: str = ""


@dataclass
class TestCode:
    __test__ = False

    tree: ast.Module
    assertions: list[Assertion] = field(default_factory=list)

    def free_names(self, known: set[str]) -> list[str]:
        """Names that the code reads, that nothing here or in `known` binds, and that are not built in."""
        read, bound = set(), set(known) | set(vars(builtins))
        for node in ast.walk(self.tree):
            match node:
                case ast.Name(name, ast.Load()):
                    read.add(name)
                case ast.Name(name) | ast.ExceptHandler(name=str(name)) | ast.arg(name):
                    bound.add(name)
                case ast.FunctionDef(name) | ast.AsyncFunctionDef(name) | ast.ClassDef(name):
                    bound.add(name)
                case ast.alias(name, asname):
                    bound.add(asname or name.split(".")[0])
                case _:
                    pass
        return sorted(read - bound)

    def only_with_attributes(self, names: list[str]) -> list[str]:
        """Those that the code reads in no other way than `name.attribute`, as one reads a module."""
        plain: set[str] = set()
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.Name) and not isinstance(node, ast.Attribute):
                    plain.add(child.id)
        return [name for name in names if name not in plain]


def rewrite(source: str, recorder: str) -> TestCode:
    """Parse and rewrite; `recorder` is the name under which the examiner provides `passed` and `failed`.

    Assertions inside `try` and `with` stay as they are: their failure may be what the code expects. Those
    that state a constant (`assert True`) test nothing and are not counted. Raises SyntaxError.
    """
    tree = ast.parse(source)
    rewriter = _Rewriter(source, recorder)
    tree = rewriter.visit(tree)
    return TestCode(ast.fix_missing_locations(tree), rewriter.assertions)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, source: str, recorder: str) -> None:
        self._lines = re.split("\r\n|\r|\n", source)  # as the parser counts lines
        self._recorder = recorder
        self.assertions: list[Assertion] = []

    def visit_Try(self, node: ast.Try) -> ast.Try:  # ast's own naming
        return node

    def visit_With(self, node: ast.With) -> ast.With:
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:
        if isinstance(node.test, ast.Constant) and node.test.value:
            return node
        number = len(self.assertions)
        self.assertions.append(Assertion(self._text(node.test)))
        error = f"{self._recorder}_error"
        told = ast.ExceptHandler(
            ast.Name("Exception", ast.Load()),
            error,
            [self._report("failed", number, ast.Name(error, ast.Load()))],
        )
        return ast.Try([node], [told], [self._report("passed", number)], [])

    def _report(self, what: str, number: int, *more: ast.expr) -> ast.stmt:
        recorder = ast.Attribute(ast.Name(self._recorder, ast.Load()), what, ast.Load())
        return ast.Expr(ast.Call(recorder, [ast.Constant(number), *more], []))

    def _text(self, node: ast.expr) -> str:
        """The expression as it stands in the source (ast's columns count bytes)."""
        last = (node.end_lineno or node.lineno) - 1
        lines = [line.encode() for line in self._lines[node.lineno - 1 : last + 1]]
        lines[-1] = lines[-1][: node.end_col_offset]
        lines[0] = lines[0][node.col_offset :]
        return _shorten(" ".join(line.decode(errors="replace").strip() for line in lines))


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
