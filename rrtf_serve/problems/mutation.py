"""Wrong programmes out of right ones: one small change each, for measuring a judge or its tests."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator

from rrtf_serve.problems.syntax import parse

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv,
}  # fmt: skip


def mutants(code: str, entry_point: str) -> Iterator[str]:
    """Programmes that differ from `code` in one place of the entry point: a comparison turned round, an
    operator exchanged, a number moved by one; at last, the function's result exchanged for None.

    Most are wrong, some are not (a bound that no test reaches): what a mutant is worth only its tests can
    say.
    """
    tree = parse(code)
    name = entry_point.rpartition(".")[2]
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == name]
    if not functions:
        return
    # The last definition is the one in force: a prompt's stub comes before it.
    places = [node for node in ast.walk(functions[-1]) if _change(copy.copy(node))]
    everything = list(ast.walk(tree))
    for place in places:
        position = next(at for at, node in enumerate(everything) if node is place)
        mutant = copy.deepcopy(tree)
        _change(list(ast.walk(mutant))[position])
        yield ast.unparse(mutant)
    yield f"{code}\n\n_kept = {name}\n\n\ndef {name}(*arguments, **named):\n    _kept(*arguments, **named)\n"


def _change(node: ast.AST) -> bool:
    """Change a node in place; False where there is nothing to change."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARISONS:
        node.ops = [_COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        node.op = _OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        node.value += 1
    else:
        return False
    return True
