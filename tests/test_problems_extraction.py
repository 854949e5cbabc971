"""Code out of responses: what models really write, and what nobody should write."""

import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrtf_serve.problems.extraction import cut_at_stop, defines, extract_code, to_record
from rrtf_serve.problems.problem import FunctionTests, Problem, ProgramTests, StdioTests
from rrtf_serve.problems.syntax import parses

TESTS = FunctionTests("def check(candidate):\n    assert candidate(2) == 4\n")
STUB = Problem(
    "t/0", 'from typing import List\n\n\ndef double(n: int) -> int:\n    """Twice n."""\n', "double", TESTS
)
WORDS = Problem("t/1", '"""\nDouble a number.\n"""\n', "double", TESTS)
METHOD = Problem("t/2", "from typing import *\n", "Solution().double", TESTS, signature="class Solution:\n")
CPP = Problem("t/3", "long twice(long n) {\n", "twice", ProgramTests("}\nint main() {}\n"), language="cpp")
BASH = Problem("t/4", "twice() {\n", "twice", ProgramTests("}\n"), language="bash")
STDIO = Problem("t/5", "", tests=StdioTests((("1\n", "2\n"),)))
ANSWER = "def double(n):\n    return n * 2"


@pytest.mark.parametrize(
    ("response", "code"),
    [
        (f"```python\n{ANSWER}\n```", ANSWER),
        (f"Sure:\n```\n{ANSWER}\n```\nDone.", ANSWER),
        (f"```py\n{ANSWER}\n``` and ```python\ny\n```", ANSWER),
        (f"```python\n{ANSWER}\nwhile True", f"{ANSWER}\nwhile True"),
        (f"```python\n{ANSWER}\n```".replace("\n", "\r\n"), ANSWER),
        (f"  ```python\n{ANSWER}\n  ```", ANSWER),
        (f"~~~python\n{ANSWER}\n~~~", ANSWER),
        (f"````python\n{ANSWER}\n```\nnot the end\n````", f"{ANSWER}\n```\nnot the end"),
        # The block that defines the function wins over usage, output and shell commands.
        (f"```bash\npip install x\n```\n```python\n{ANSWER}\n```", ANSWER),
        (f"```python\nprint(double(2))\n```\nwith\n```python\n{ANSWER}\n```", ANSWER),
        ("```python\nx = 1\n```", "x = 1"),
        ("```bash\nls\n```", "ls"),
        # No fence: the code is found between the words.
        (f"Here is the code:\n\n{ANSWER}\n\nIt doubles n.", ANSWER + "\n"),
        (ANSWER, ANSWER),
        ("    return n * 2", "    return n * 2"),
        ("", ""),
        ("I can't help with that.", "I can't help with that."),
    ],
)
def test_code_in_a_response(response: str, code: str) -> None:
    assert extract_code(response, STUB) == code


def test_a_begun_answer_goes_on_inside_its_fence() -> None:
    assert extract_code(f"{ANSWER}\n```\nExplanation", STUB, in_fence=True) == ANSWER
    assert extract_code(ANSWER, STUB, in_fence=True) == ANSWER


def test_bash_is_an_answer_where_bash_is_asked_for() -> None:
    assert extract_code("```bash\ntwice() { echo 2; }\n```", BASH) == "twice() { echo 2; }"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def double(n): ...", True),
        ("async def double(n): ...", True),
        ("double = lambda n: 2", True),
        ("def double_it(n): ...", False),
        ("double(2)", False),
        ("x = double == 2", False),
    ],
)
def test_defines(code: str, expected: bool) -> None:
    assert defines(code, WORDS) is expected


def test_methods_are_defined_by_their_class() -> None:
    assert defines("class Solution:\n    def double(self, n): ...", METHOD)
    assert not defines("def double(n): ...", METHOD)


def run(problem: Problem, record: dict[str, str]) -> int:
    """Twice two, by the programme that a record stands for: these are our own texts, safe to run here."""
    space: dict[str, object] = {}
    exec(problem.program(record["completion"]), space)
    result = space["double"](2)  # type: ignore[operator]  # the programme defines a function of that name
    assert isinstance(result, int)
    return result


@pytest.mark.parametrize(
    "code",
    [
        ANSWER,
        "from __future__ import annotations\n" + ANSWER,
        "    return n * 2",
        "return n * 2",
        "m = n\nif m:\n    return m * 2\nreturn 0",
        "m = n\n    return m * 2",
        "\n\n    m = n\n    return m * 2\n\n",
        "# twice\nreturn n * 2",
        "def helper(k):\n    return k * 2\n\n" + ANSWER.replace("n * 2", "helper(n)"),
    ],
)
def test_an_answer_becomes_a_programme_with_the_prompts_imports(code: str) -> None:
    record = to_record(code, STUB)
    assert problem_text(record).startswith("from typing import List")
    assert run(STUB, record) == 4


@pytest.mark.parametrize(
    "prompt",
    [
        "def double(n):\n",
        "def double(n):",
        "def double(n):\n    ",
        "def double(n):\n\t# twice\n",
        "import math\n\ndef double(\n    n: int,\n) -> int:  # twice\n",
        "class Double:\n    def twice(self, n):\n",
        "class Double:\n\tdef twice(self, n):",
    ],
)
@pytest.mark.parametrize("code", [ANSWER, "class Double:\n    def twice(self, n):\n        return n * 2"])
def test_a_whole_answer_may_follow_a_bare_stub(prompt: str, code: str) -> None:
    name = "double" if code == ANSWER else "Double"
    problem = Problem("t/bare", prompt, name, FunctionTests("assert True"))
    space: dict[str, Any] = {}
    exec(problem.program(to_record(code, problem)["completion"]), space)
    assert (space["double"](2) if code == ANSWER else space["Double"]().twice(2)) == 4


def problem_text(record: dict[str, str]) -> str:
    return STUB.program(record["completion"])


def test_a_prompt_in_words_takes_the_answer_whole() -> None:
    assert run(WORDS, to_record(ANSWER, WORDS)) == 4
    # Not a body: there is no function to be the body of.
    assert to_record("x = 1", WORDS) == {"completion": "\nx = 1\n"}


def test_other_languages_answer_with_a_programme_or_a_body() -> None:
    assert to_record("long twice(long n) { return 2 * n; }", CPP) == {
        "solution": "long twice(long n) { return 2 * n; }"
    }
    assert to_record("    return 2 * n;\n", CPP) == {"completion": "    return 2 * n;\n"}
    assert to_record("print(2)", STDIO) == {"completion": "print(2)"}


def test_cut_at_stop() -> None:
    assert cut_at_stop("a\ndef b\nclass c", ["\nclass", "\ndef"]) == "a"
    assert cut_at_stop("abc", ["x"]) == "abc"
    assert cut_at_stop("abc", []) == "abc"


def test_parses_survives_what_the_parser_does_not_like() -> None:
    assert parses("x = '\\d'")
    assert not parses("x = \0")
    assert not parses("x = '\ud800'")
    assert not parses("(" * 5000 + ")" * 5000)


@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_is_taken(text: str) -> None:
    for problem in (STUB, WORDS, METHOD, CPP, STDIO):
        record = to_record(extract_code(text, problem), problem)
        assert set(record) <= {"completion", "solution"}


@given(st.lists(st.sampled_from(["x = 1", "def f():\n    pass", "import os", "# note", ""]), min_size=1))
def test_a_fenced_answer_comes_back_whole(parts: list[str]) -> None:
    code = "\n".join([*parts, ANSWER])
    prose = textwrap.dedent("""\
        Here it is.

        ```python
        {code}
        ```

        It works.
        """)
    assert extract_code(prose.format(code=code), STUB) == code
