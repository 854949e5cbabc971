"""What a problem says in words and in code, brought to one form so that two problems can be compared.

Words are lower-cased and stripped of examples and of the request they open with ("Write a function to");
code loses its comments, docstrings, annotations and imports, and the names that it gives itself.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from rrtf_serve.problems.problem import CaseTests, Problem
from rrtf_serve.problems.syntax import missing_body, parse, parses

_WORD = re.compile(r"[^\W_]+")
_TOKEN = re.compile(r"\w+|[^\w\s]")
# From such a line on a statement holds examples and limits, which differ between copies and agree between
# strangers ("Constraints: 1 <= n <= 100").
_EXAMPLES = re.compile(
    r"^\W*(?:for )?(?:examples?|constraints?)\b[ \d]*(?::|$)", re.IGNORECASE | re.MULTILINE
)
_FIELDS = re.compile(r"^[\s*]*(?::\w+|@\w+)", re.MULTILINE)  # ":param x:", "@return": of docstrings
_TAGS = re.compile(r"</?\w+>")
_COMMENT = re.compile(r"^\s*(?://+|#+(?=\s|$)|/?\*+/?)\s?(.*)$")
_REQUEST = re.compile(
    r"(?:(?:please|can you|could you|your task is to|you are asked to|you need to|i need you to)\s+)?"
    r"(?:write|create|implement|design|develop|define|build|make|construct|code|generate|program|provide)\s+"
    r"(?:me\s+)?(?:(?:a|an|the|some)\s+)?(?:\w+\s+){0,3}?"
    r"(?:functions?|methods?|programs?|scripts?|code|algorithms?|class|solution)(?:\s+|$)"
    r"(?:(?:in|using)\s+\w+\s+)?(?:(?:called|named)\s+\w+\s+)?"
    r"(?:(?:to|that|which|for)(?:\s+|$))?",
)


@dataclass(frozen=True)
class Passage:
    """One problem in the forms that are compared, and as it was written."""

    words: tuple[str, ...]
    code: tuple[str, ...]  # tokens; empty where there is none
    text: str
    source: str


def passage(text: str, source: str = "") -> Passage:
    """Of a task in words and its solution, where there is one."""
    return Passage(task_words(text), code_tokens(source), text, source)


def problem_passage(problem: Problem) -> Passage:
    """Of a problem, whatever form its task is put in."""
    return passage(statement(problem), solution(problem))


def task_words(text: str) -> tuple[str, ...]:
    """Lower-case words of a task, without examples and the opening request."""
    plain = unicodedata.normalize("NFKC", _TAGS.sub(" ", _without_examples(text))).lower()
    line = " ".join(_WORD.findall(plain))
    request = _REQUEST.match(line)
    rest = line[request.end() :] if request else line
    return tuple((rest or line).split())


def _without_examples(text: str) -> str:
    found = _EXAMPLES.search(text)
    if found and found.start() > 0:
        text = text[: found.start()]
    lines, answer = [], False
    for line in text.splitlines():
        if line.lstrip().startswith((">>>", "assert ")):
            answer = line.lstrip().startswith(">>>")
        elif not answer or not line.strip():
            answer = False
            lines.append(line)
        else:
            answer = False  # one line of output follows a prompt of the interpreter
    kept = "\n".join(lines)
    fields = _FIELDS.search(kept)
    return (
        kept[: fields.start()] if fields and fields.start() > 0 and kept[: fields.start()].strip() else kept
    )


def statement(problem: Problem) -> str:
    """The task in words: given as such, in a docstring, or in comments."""
    if problem.task.strip() and not (problem.signature and '"""' in problem.signature):
        return problem.task
    asked = problem.signature or problem.prompt
    if problem.language != "python":
        return _comments(asked)
    whole = asked + missing_body(asked)
    try:
        documented = [*_docstrings(parse(whole))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        documented = []
    # HumanEval shows helpers before the function that is asked for.
    return documented[-1] if documented else problem.task or _quoted(asked)


def statements(problem: Problem) -> list[str]:
    """`statement`, and what else a model would be shown in words: the docstrings of prompt and signature."""
    found = [statement(problem)]
    for asked in (problem.prompt, problem.signature):
        if problem.language == "python" and asked.strip():
            try:
                found += _docstrings(parse(asked + missing_body(asked)))
            except (SyntaxError, ValueError, RecursionError, MemoryError):
                found += [text for text in [_quoted(asked)] if text != asked]
    return list(dict.fromkeys(found))


def _docstrings(tree: ast.Module) -> Iterator[str]:
    for node in [tree, *ast.walk(tree)]:
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node)
            if found:
                yield found


def _quoted(code: str) -> str:
    """The last triple-quoted text of code that does not parse, as a prompt that ends in the middle."""
    found: list[str] = re.findall(r'(?:"""|\'\'\')(.*?)(?:"""|\'\'\')', code, re.DOTALL)
    return found[-1] if found else code


def _comments(code: str) -> str:
    matches = (_COMMENT.match(line) for line in code.splitlines())
    return "\n".join(found.group(1) for found in matches if found)


def solution(problem: Problem) -> str:
    """The reference as one programme; empty where there is none."""
    if problem.reference is None:
        return ""
    if isinstance(problem.tests, CaseTests):
        return problem.tests.reference
    # A reference that stands alone leaves out what every problem of its data set begins with.
    if problem.suffix is None and parses(problem.reference):
        return problem.reference
    return problem.program(problem.reference)


def code_tokens(source: str) -> tuple[str, ...]:
    """Tokens of Python without comments, docstrings, annotations, imports and own names; of anything else its
    plain tokens."""
    if not source.strip():
        return ()
    try:
        tree = parse(source)
        text = ast.unparse(_Plain(_own_names(tree)).visit(tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        text = source
    return tuple(_TOKEN.findall(text))


def _own_names(tree: ast.Module) -> dict[str, str]:
    """Names that the code defines -> n0, n1 ... in the order in which they come."""
    own: set[str] = set()
    order: list[str] = []
    for node in _in_order(tree):
        if isinstance(node, ast.Name):
            order.append(node.id)
            if isinstance(node.ctx, ast.Store):
                own.add(node.id)
        elif isinstance(node, ast.arg):
            order.append(node.arg)
            own.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            order.append(node.name)
            own.add(node.name)
    return {name: f"n{at}" for at, name in enumerate(dict.fromkeys(name for name in order if name in own))}


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


class _Plain(ast.NodeTransformer):
    """Takes out of a tree what does not decide what it computes."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit_Import(self, _: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _: ast.ImportFrom) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        return None if isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return self.visit(ast.copy_location(ast.Assign([node.target], node.value), node))  # type: ignore[no-any-return]  # NodeVisitor.visit returns Any

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self._names.get(node.id, node.id)
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.arg, node.annotation = self._names.get(node.arg, node.arg), None
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node.attr = self._names.get(node.attr, node.attr)  # methods that the code defines itself
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._definition(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._definition(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self._definition(node)

    def _definition(self, node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        node.name = self._names.get(node.name, node.name)
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node
