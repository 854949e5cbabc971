"""In-depth evolution of a programming task: what the evolver is asked, and how its answer is read.

The rules of the request are those that PanGu-Coder2 states (arXiv 2307.14936, section 3.1, figure 2):
somewhat harder, understandable, solvable with code, on its own feet, nothing but prose left out, of similar
length, solved by a function, and four phrases that must not appear. The five methods are WizardCoder's (arXiv
2306.08568, section 3.1). The wording is our own.
"""

from __future__ import annotations

import hashlib
import re

from rrtf_serve.problems.prompts import Prompt

METHODS = {
    "constraint": "Add one more constraint or requirement, in about ten words.",
    "rare-requirement": "Take out a requirement that is common in programming tasks and put a rarer, more "
    "specific one in its place.",
    "more-steps": "If few logical steps are enough to solve it, change it so that it takes more of them.",
    "wrong-code": "Include a short piece of Python code that looks like a solution but is wrong, as a "
    "reference that misleads the reader.",
    "complexity": "Demand a better bound on running time or memory than the obvious solution has. State it "
    "plainly, in one sentence.",
}
FORBIDDEN = ("#given task#", "#rewritten task#", "given task", "rewritten task")

_REQUEST = """\
You set the tasks of a programming contest. Rewrite the task at the end of this message so that it becomes \
a bit harder. Use this method:

{method}

The new task has to meet all of these rules:
- A human can understand it and answer it, and code solves it.
- One Python function solves it. The function gets everything as arguments and returns its result; it reads \
no files, no keyboard and no network.
- It makes sense to someone who has never seen the old task.
- Tables, code, inputs and anything else in the old task that is not prose stay in it.
- It is about as long as the old task: {least} to {most} words.
- The phrases "#Given Task#", "#Rewritten Task#", "given task" and "rewritten task" do not occur in it.

Answer with the text of the new task alone: no title, no solution, no remarks.

#Given Task#
{text}

#Rewritten Task#"""
_LABEL = re.compile(r"^\W*(?:#?\s*rewritten task\s*#?|new task|task)\W*(?::|\n)\s*", re.IGNORECASE)
_FENCED = re.compile(r"^```[\w+-]*\n(.*)\n```$", re.DOTALL)


def request(text: str, method: str, words: tuple[int, int]) -> Prompt:
    """What the evolver is asked; `words`: least and most words of its answer."""
    least, most = words
    message = _REQUEST.format(method=METHODS[method], least=least, most=most, text=text)
    return Prompt("evolve", message=message)


def draw_method(methods: tuple[str, ...], seed: int, line: str, round_number: int) -> str:
    """The method of one step: random by its look, the same whenever it is asked for."""
    digest = hashlib.sha256(f"{seed}\n{line}\n{round_number}".encode()).digest()
    return methods[int.from_bytes(digest[:8], "big") % len(methods)]


def read_answer(response: str) -> str:
    """The task in a response: without a label before it and a fence around all of it."""
    text = _LABEL.sub("", response.strip(), count=1).strip()
    fenced = _FENCED.match(text)
    return fenced.group(1).strip() if fenced else text
