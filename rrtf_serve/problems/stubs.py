"""MBPP's tasks rewritten the way HumanEval asks: a signature whose docstring holds the task and one example.

For training and development sets, so that neither has to look at HumanEval to come near its form.
"""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

from rrtf_serve.problems.mbpp import SPLITS, load_mbpp
from rrtf_serve.problems.problem import FunctionTests, Problem, Suite, make_suite
from rrtf_serve.problems.syntax import parse

STUB_SPLITS = ("validation", "train")  # the others are tests, or examples for prompts


def load_mbpp_stubs(folder: Path | None, split: str) -> Suite:
    """Tasks of one split of MBPP. Raises ValueError as `mbpp.load_mbpp` does, and for another split."""
    if split not in STUB_SPLITS:
        raise ValueError(f"mbpp-stubs: there is no split {split!r}; it has {', '.join(STUB_SPLITS)}")
    number = {f"Mbpp/{each}": each for each in SPLITS[split]}
    problems = load_mbpp(folder, split=split).problems.values()
    return make_suite(
        f"mbpp-stubs-{split}", [stub(each, f"MbppStub/{number[each.task_id]}") for each in problems]
    )


def stub(problem: Problem, task_id: str) -> Problem:
    """The problem with a signature to complete instead of words alone.

    Its answer is a whole programme still, so `prompt` is empty and the reference stays as it is.
    Raises ValueError where the reference has no function of the entry point's name.
    """
    assert isinstance(problem.tests, FunctionTests)
    signature = _signature(problem)
    docstring = _docstring(problem.task, problem.tests.code.splitlines()[0])
    return replace(
        problem, task_id=task_id, prompt="", task="", signature=f"{signature}\n{_indented(docstring)}\n"
    )


def _signature(problem: Problem) -> str:
    code = problem.reference or ""
    for node in parse(code).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == problem.entry_point:
            returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
            word = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
            return f"{word} {node.name}({ast.unparse(node.args)}){returns}:"
    raise ValueError(f"{problem.task_id}: its reference defines no function {problem.entry_point}")


def _docstring(task: str, first_assert: str) -> str:
    text = f"{task}\n\n{_example(first_assert)}\n"
    quote = "'''" if '"""' in text else '"""'
    return f"{'r' if chr(92) in text else ''}{quote}{text}{quote}"


def _example(first_assert: str) -> str:
    """`assert f(1) == 2` as a doctest; any other assertion as it stands."""
    statement = parse(first_assert).body[0]
    if isinstance(statement, ast.Assert) and isinstance(statement.test, ast.Compare):
        test = statement.test
        if len(test.ops) == 1 and isinstance(test.ops[0], ast.Eq):
            return f">>> {ast.unparse(test.left)}\n{ast.unparse(test.comparators[0])}"
    return first_assert


def _indented(text: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in text.split("\n"))
