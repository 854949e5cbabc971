"""Test code rewritten so that each assertion is a test of its own and a failed one does not end the run."""

from __future__ import annotations

import ast
import builtins
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
        """Names that the code reads and neither binds anywhere, nor finds in `known` or among the built-ins."""
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


def rewrite(source: str, recorder: str) -> TestCode:
    """Parse and rewrite; `recorder` is the name under which the examiner provides `passed` and `failed`.

    Assertions inside `try` and `with` stay as they are: their failure may be what the test code expects. Those
    that state a constant (`assert True`) test nothing and are not counted. Raises SyntaxError.
    """
    tree = ast.parse(source)
    rewriter = _Rewriter(recorder)
    tree = rewriter.visit(tree)
    return TestCode(ast.fix_missing_locations(tree), rewriter.assertions)


class _Rewriter(ast.NodeTransformer):
    def __init__(self, recorder: str) -> None:
        self._recorder = recorder
        self.assertions: list[Assertion] = []

    def visit_Try(self, node: ast.Try) -> ast.Try:  # noqa: N802  # ast's own naming
        return node

    def visit_With(self, node: ast.With) -> ast.With:  # noqa: N802
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.stmt:  # noqa: N802
        if isinstance(node.test, ast.Constant) and node.test.value:
            return node
        number = len(self.assertions)
        self.assertions.append(Assertion(_shorten(ast.unparse(node.test))))
        error = f"{self._recorder}_error"
        template = ast.parse(
            f"try:\n    pass\nexcept Exception as {error}:\n    {self._recorder}.failed({number}, {error})\n"
            f"else:\n    {self._recorder}.passed({number})"
        ).body[0]
        assert isinstance(template, ast.Try)
        template.body = [node]
        return template


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
