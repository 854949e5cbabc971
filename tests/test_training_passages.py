"""Forms in which texts and solutions are compared, and what counts as nearly the same."""

from __future__ import annotations

import random

import pytest

from rrtf_serve.problems.problem import FunctionTests, Problem, ProgramTests
from training.near_duplicates import NearIndex, features, jaccard
from training.passages import code_tokens, problem_passage, statement, task_words

BODY = "    return a + b\n"
STUB = 'def add(a, b):\n    """Add two numbers.\n\n    >>> add(1, 2)\n    3\n    """\n'


@pytest.mark.parametrize(
    "text",
    [
        "Write a python function to reverse a list.",
        "write a Function that reverse a list",
        "Please create a program called rev to REVERSE a list!",
        "Reverse a list.\n\nExample 1:\nInput: [1, 2]\n\nConstraints:\n1 <= n",
        "Reverse a list.\n>>> rev([1])\n[1]",
        "Reverse a list.\n\n:param x: the list\n:return: nothing",
    ],
)
def test_one_task_in_several_wordings_has_the_same_words(text: str) -> None:
    assert task_words(text) == ("reverse", "a", "list")


def test_a_request_alone_keeps_its_words() -> None:
    assert task_words("Write a function to") == ("write", "a", "function", "to")


@pytest.mark.parametrize(
    "problem",
    [
        Problem("1", STUB, "add", FunctionTests("assert True"), reference=BODY),
        Problem("2", "", "add", FunctionTests("assert True"), signature=STUB, reference=STUB + BODY),
        Problem("3", "", task="Write a function to add two numbers.", reference=STUB + BODY),
        Problem("4", STUB + "    return a", "add", suffix=" + b\n", reference=""),
    ],
)
def test_every_form_of_a_problem_says_the_same(problem: Problem) -> None:
    said = problem_passage(problem)
    assert said.words == ("add", "two", "numbers")
    assert said.code == code_tokens("def f(x, y):\n    return x + y")


def test_comments_of_other_languages_are_the_task() -> None:
    prompt = "#include <vector>\n// Add two\n// numbers.\nint add(int a, int b) {\n"
    problem = Problem("c", prompt, "add", ProgramTests(""), language="cpp")
    assert statement(problem) == "Add two\nnumbers."


def test_names_comments_annotations_and_imports_do_not_count_but_operators_do() -> None:
    first = (
        'import math\ndef area(r: float) -> int:\n    """Doc."""\n    b: int = r * r  # why\n    return b\n'
    )
    second = "def f(x):\n    y = x * x\n    return y\n"
    assert code_tokens(first) == code_tokens(second)
    assert code_tokens(first) != code_tokens(second.replace("*", "+"))


def test_code_that_is_no_python_is_compared_as_it_stands() -> None:
    assert code_tokens("int f() { return 1; }")[:3] == ("int", "f", "(")
    assert code_tokens("  ") == ()


def test_wordings_are_near_and_a_changed_word_is_not() -> None:
    index = NearIndex(0.7)
    index.add("move", task_words("Write a function to move all zeroes to the end of the given array."))
    found = index.nearest(task_words("Write a python function to move all zeroes to the end of a list."))
    assert found == ("move", 1.0)
    assert index.nearest(task_words("Write a function to move all ones to the start of a list.")) is None


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9, 1.0])
def test_the_index_misses_nothing_that_comparing_all_pairs_finds(threshold: float) -> None:
    draw = random.Random(threshold)
    texts = {str(at): [draw.choice("xyzuvwpq") for _ in range(draw.randint(1, 9))] for at in range(200)}
    index = NearIndex(threshold)
    for key, words in texts.items():
        index.add(key, words)
    for words in texts.values():
        wanted = {
            key for key, other in texts.items() if jaccard(features(words), features(other)) >= threshold
        }
        assert {key for key, _ in index.all_near(words)} == wanted


def test_a_threshold_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match="similarity"):
        NearIndex(0.0)
