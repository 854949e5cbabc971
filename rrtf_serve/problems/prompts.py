"""Named prompt formats. A result names the one it was made with: the format alone moves pass@1 by several
points.

completion   the data set's own prompt as plain text; ends at the problem's stop strings
docstring-first   the task as a docstring, then the signature: PanGu-Coder2's (arXiv 2307.14936, section 4)
chat         a request in words with the code to complete; the answer is taken out of its code block
chat-prefilled    as chat, with the answer begun: a sentence and an opened code block
infill       prompt and suffix around the gap, in the model's own fill-in-the-middle layout
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from dataclasses import dataclass

from rrtf_serve.models.prompts import docstring_first
from rrtf_serve.problems.extraction import cut_at_stop, defines, extract_code, to_record
from rrtf_serve.problems.problem import FunctionTests, Problem, StdioTests
from rrtf_serve.problems.syntax import missing_body, parse

_TITLES = {
    "python": "Python", "javascript": "JavaScript", "typescript": "TypeScript", "bash": "Bash", "cpp": "C++",
    "java": "Java",
}  # fmt: skip
PREFILL = "Here is the complete code, which solves the problem and passes its tests:\n```{language}\n"


@dataclass(frozen=True)
class Prompt:
    """What a sampler is asked. Either `text` (with `suffix`: to be filled in between) or `message` is set."""

    format: str
    text: str = ""
    suffix: str | None = None
    message: str = ""  # of the user; the answer goes on from `prefill`
    prefill: str = ""
    lead: str = ""  # code at the end of `text` that the data set's own prompt lacks: part of every completion
    stop: tuple[str, ...] = ()


def render(problem: Problem, format_name: str) -> Prompt:
    """Raises ValueError on an unknown format, or one that this problem has no parts for."""
    renderer = FORMATS.get(format_name)
    if renderer is None:
        raise ValueError(f"--prompt {format_name}: must be one of {', '.join(FORMATS)}")
    return renderer(problem)


def to_sample(response: str, problem: Problem, prompt: Prompt) -> dict[str, str]:
    """The sample line's `completion` or `solution` that a response to this prompt stands for."""
    if prompt.message:
        return to_record(extract_code(response, problem, in_fence=bool(prompt.prefill)), problem)
    return {"completion": prompt.lead + cut_at_stop(response, prompt.stop)}


def _completion(problem: Problem) -> Prompt:
    if not problem.prompt.strip() or problem.suffix is not None or problem.signature:
        raise ValueError(f"{problem.task_id}: has no plain prompt to complete; use another --prompt")
    return Prompt("completion", text=problem.prompt, stop=problem.stop)


def _docstring_first(problem: Problem) -> Prompt:
    if problem.language != "python" or problem.suffix is not None or isinstance(problem.tests, StdioTests):
        raise ValueError(f"{problem.task_id}: the docstring-first prompt is for Python functions")
    before, docstring, signature = _parts(problem)
    if not docstring:
        raise ValueError(f"{problem.task_id}: has no docstring to put first; use another --prompt")
    text = docstring_first(docstring, signature)
    # A prompt that ends right behind the colon gets a line of its own for what follows.
    lead = problem.signature or ("\n" if missing_body(problem.prompt).startswith("\n") else "")
    return Prompt("docstring-first", text=f"{before}{text}", lead=lead, stop=problem.stop)


def _parts(problem: Problem) -> tuple[str, str, str]:
    """What stands before the function, the task as it would stand in a docstring, and the signature.

    MBPP's problems have no signature: the task with an example call is all there is.
    """
    if problem.signature and problem.task:
        return problem.prompt, problem.task, problem.signature
    asked = problem.signature or problem.prompt  # a signature alone holds the task in its docstring
    whole = asked + missing_body(asked)
    try:
        module = parse(whole)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"{problem.task_id}: its prompt is no Python ({error}); use another --prompt"
        ) from error
    if not defines(asked, problem):
        return "", ast.get_docstring(module) or problem.task, ""
    named = (node for node in module.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    function = next((node for node in named if node.name == problem.entry_point), None)
    if function is None:
        raise ValueError(f"{problem.task_id}: asks for no function of the module; use another --prompt")
    lines = whole.splitlines(keepends=True)
    # HumanEval/115 has an import before it.
    texts = ((node.lineno, text) for node in function.body if (text := _text_of(node)) is not None)
    first, text = next(texts, (function.body[0].lineno, problem.task))
    signature = "".join(lines[function.lineno - 1 : first - 1])
    return "".join(lines[: function.lineno - 1]), inspect.cleandoc(text), signature


def _text_of(node: ast.stmt) -> str | None:
    """Of a statement that is nothing but a string."""
    constant = node.value if isinstance(node, ast.Expr) else None
    return constant.value if isinstance(constant, ast.Constant) and isinstance(constant.value, str) else None


def _chat(problem: Problem) -> Prompt:
    return Prompt("chat", message=instruction(problem))


def _chat_prefilled(problem: Problem) -> Prompt:
    prefill = PREFILL.format(language=problem.language)
    return Prompt("chat-prefilled", message=instruction(problem), prefill=prefill, stop=("\n```",))


def instruction(problem: Problem) -> str:
    """The request in words that both chat formats make."""
    title = _TITLES.get(problem.language, problem.language)
    if isinstance(problem.tests, StdioTests):
        return (
            f"Write a {title} program that reads standard input and writes standard output.\n\n"
            f"{problem.task}\n\nAnswer with the whole program in one code block and nothing else."
        )
    if problem.suffix is not None:
        raise ValueError(f"{problem.task_id}: a gap is filled with --prompt infill")
    code = problem.signature or (problem.prompt if defines(problem.prompt, problem) else "")
    if not code:
        example = ""
        if isinstance(problem.tests, FunctionTests):
            example = f"\n\nIt must pass this test:\n{problem.tests.code.splitlines()[0]}"
        return f"{problem.task}{example}\n\n{_answer_with('function', title)}."
    task = f"{problem.task}\n\n" if problem.task and problem.signature else ""
    kind = "class" if problem.signature.startswith("class") else "function"
    request = f"Complete the following {title} {kind}. {_answer_with(kind, title)}."
    end = "" if code.endswith("\n") else "\n"
    return f"{task}{request}\n\n```{problem.language}\n{code}{end}```"


def _answer_with(kind: str, title: str) -> str:
    return f"Answer with the whole {kind}, imports included, in one {title} code block and nothing else"


def _infill(problem: Problem) -> Prompt:
    if problem.suffix is None:
        raise ValueError(f"{problem.task_id}: has no gap; --prompt infill is for the infilling suites")
    return Prompt("infill", text=problem.prompt, suffix=problem.suffix, stop=problem.stop)


FORMATS: dict[str, Callable[[Problem], Prompt]] = {
    "completion": _completion,
    "docstring-first": _docstring_first,
    "chat": _chat,
    "chat-prefilled": _chat_prefilled,
    "infill": _infill,
}
