"""Python's own parser on code that others wrote."""

from __future__ import annotations

import ast
import warnings


def parse(code: str) -> ast.Module:
    """As `ast.parse`, without warnings about the code, such as of invalid escapes: those are its own affair.

    Raises SyntaxError; ValueError on NULs and lone surrogates; RecursionError or MemoryError on deep nesting.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.parse(code)


def parses(code: str) -> bool:
    """Whether this is Python that its parser can take."""
    try:
        parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def missing_body(code: str) -> str:
    """The `pass` that makes code whole which ends in a function without a body, as a bare `def f(x):` does.

    Empty where nothing is missing, or more than that.
    """
    if parses(code):
        return ""
    start = "" if code.endswith("\n") else "\n"
    bodies = (f"{start}{indent * depth}pass\n" for depth in (1, 2, 3) for indent in ("    ", "\t"))
    return next((body for body in bodies if parses(code + body)), "")
