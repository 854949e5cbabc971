"""Prompt formats on problems that the data sets don't have: bare stubs, prompts without words or Python."""

import pytest

from rrtf_serve.problems.problem import FunctionTests, Problem
from rrtf_serve.problems.prompts import render, to_sample

TESTS = FunctionTests("def check(candidate):\n    assert candidate(1) == 2\n")


def problem(prompt: str, entry_point: str = "f", task: str = "") -> Problem:
    return Problem("t/own", prompt, entry_point, TESTS, task=task)


def test_the_words_go_first_wherever_they_stand() -> None:
    bare = render(problem("import math\n\ndef f(\n    x,\n):\n", task="One more."), "docstring-first")
    assert bare.text == 'import math\n\n"""\nOne more.\n"""\ndef f(\n    x,\n):\n'
    # As HumanEval/115 has it.
    late = render(problem('def f(x):\n    import math\n    """One\n    more."""\n'), "docstring-first")
    assert late.text == '"""\nOne\nmore.\n"""\ndef f(x):\n    import math\n'


def test_a_body_follows_a_stub_that_ends_with_its_colon() -> None:
    stub = problem("def f(x):", task="One more.")
    prompt = render(stub, "docstring-first")
    assert prompt.text.endswith("def f(x):\n")
    space: dict[str, object] = {}
    exec(stub.program(to_sample("    y = x + 1\n    return y\n", stub, prompt)["completion"]), space)
    assert space["f"](1) == 2  # type: ignore[operator]  # the programme defines it
    assert "```python\ndef f(x):\n```" in render(stub, "chat").message


@pytest.mark.parametrize(
    ("prompt", "entry_point", "message"),
    [
        ("def f(x):\n", "f", "has no docstring to put first"),
        ("def f(x:\n", "f", "its prompt is no Python"),
        ("class S:\n    def f(self):\n", "S().f", "asks for no function of the module"),
    ],
)
def test_a_prompt_that_can_not_be_rearranged_is_named(prompt: str, entry_point: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"t/own: {message}.*; use another --prompt"):
        render(problem(prompt, entry_point), "docstring-first")
