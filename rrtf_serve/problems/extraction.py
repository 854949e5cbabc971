"""Code out of a model's response, and a sample line out of that code.

What counts as code, in this order:
1. fenced blocks: the first that defines the entry point, else the first block that isn't shell commands or
   output; a fence that the length limit cut off counts as closed;
2. no fence, Python: the longest run of whole lines that parses and defines the entry point, else the
response.

The response itself is always kept beside it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from rrtf_serve.problems.problem import Problem, ProgramTests, StdioTests
from rrtf_serve.problems.syntax import missing_body, parses

_FENCE = re.compile(
    r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*\n(.*?)(?:^[ \t]*\1|\Z)", re.DOTALL | re.MULTILINE
)
_NOT_ANSWERS = {"sh", "shell", "console", "bash", "text", "txt", "output", "plaintext"}
# Parsing is quadratic at worst here; a response beyond this is taken as it is.
_LONGEST = 200_000


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    found = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return text[: min(found)] if found else text


def extract_code(response: str, problem: Problem, *, in_fence: bool = False) -> str:
    """The code that a chat response holds. `in_fence`: the prompt ended inside an opened fence."""
    text = response.replace("\r\n", "\n")
    if in_fence:
        text = f"```{problem.language}\n{text}"
    blocks = [(str(found[2]).lower(), str(found[3]).rstrip("\n")) for found in _FENCE.finditer(text)]
    if blocks:
        # An answer in Bash is an answer where Bash was asked for.
        skipped = _NOT_ANSWERS - ({"bash", "sh", "shell"} if problem.language == "bash" else set())
        answers = [code for info, code in blocks if info not in skipped] or [code for _, code in blocks]
        return next((code for code in answers if defines(code, problem)), answers[0])
    if problem.language == "python" and problem.entry_point and len(text) <= _LONGEST:
        return _longest_python(text, problem) or text
    return text


def defines(code: str, problem: Problem) -> bool:
    """Whether code defines what the problem asks for, judged by its text: broken code may still define it."""
    if not problem.entry_point:
        return True
    name = re.escape(_name(problem))
    if problem.language == "python":
        definition = rf"^[ \t]*(?:async[ \t]+def|def|class)[ \t]+{name}\b|^{name}\s*=[^=]"
        return re.search(definition, code, re.MULTILINE) is not None
    return re.search(rf"\b{name}\s*[(=]", code) is not None


def to_record(code: str, problem: Problem) -> dict[str, str]:
    """`completion` or `solution` of a sample line for code that was taken out of a chat response.

    Python answers that define the entry point go behind the prompt, whose own stub they replace; so the
    prompt's imports and helpers hold for them as well. An answer without the definition is the function's
    body.
    """
    if isinstance(problem.tests, ProgramTests):
        return {"solution": code} if defines(code, problem) else {"completion": code}
    if isinstance(problem.tests, StdioTests) or problem.suffix is not None or not problem.entry_point:
        return {"completion": code}
    if problem.language != "python":
        return {"solution": code}
    if defines(code, problem) or not _is_stub(problem):
        return {"completion": missing_body(problem.prompt) + "\n" + _without_future(code) + "\n"}
    return {"completion": _as_body(code)}


def _name(problem: Problem) -> str:
    """The top-level name: "Solution" of "Solution().twoSum"."""
    return re.split(r"\W", problem.entry_point, maxsplit=1)[0]


def _is_stub(problem: Problem) -> bool:
    """Whether the prompt ends inside the function that is to be written."""
    return defines(problem.prompt, problem)


def _as_body(code: str) -> str:
    """Indented as a function's body where it isn't yet; blank lines at its start and end go."""
    lines = textwrap.dedent(code.strip("\n"))
    # A body whose first line lost its indentation, as completions of a prompt that ends in four spaces do.
    first, _, rest = code.strip("\n").partition("\n")
    if rest and not first[:1].isspace() and rest[:1].isspace() and not first.rstrip().endswith(":"):
        lines = first + "\n" + textwrap.dedent(rest)
    return textwrap.indent(lines, "    ") + "\n"


def _without_future(code: str) -> str:
    """`from __future__` must be a module's first statement, and behind a prompt it no longer is."""
    return re.sub(r"^from __future__ import [^\n]*$", "", code, flags=re.MULTILINE)


def _longest_python(text: str, problem: Problem) -> str:
    """The longest run of lines that parses and defines the entry point; empty where there is none."""
    lines = text.split("\n")
    for start in _starts(lines):
        for end in _ends(lines, start):
            code = "\n".join(lines[start:end])
            if defines(code, problem) and parses(code):
                return code
    return ""


def _starts(lines: list[str]) -> Iterator[int]:
    """Lines at which a module's text may begin, the earliest first."""
    opener = re.compile(r"(?:import|from|def|class|async|@|[A-Za-z_]\w*\s*(?::|=))")
    return (number for number, line in enumerate(lines) if opener.match(line))


def _ends(lines: list[str], start: int) -> Iterator[int]:
    """Ends worth trying: before each line that is not indented, the latest first."""
    for number in range(len(lines), start, -1):
        if number == len(lines) or (lines[number].strip() and not lines[number][0].isspace()):
            yield number
