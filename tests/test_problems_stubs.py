"""MBPP's tasks as HumanEval-like stubs, and the parts of LeetCode's training file."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.problem import FunctionTests, Problem
from rrtf_serve.problems.prompts import render, to_sample
from rrtf_serve.problems.stubs import load_mbpp_stubs, stub
from rrtf_serve.sandbox.judge import Sandbox

CODE = "import math\r\ndef area(r, *, k=2) -> float:\r\n    return k * math.pi * r ** 2\r\n"


def problem(task: str = "Write a function to find an area.", first: str = "assert area(0) == 0") -> Problem:
    return Problem(
        task_id="Mbpp/601", prompt="unused", entry_point="area",
        tests=FunctionTests(f"{first}\nassert area(1) > 6"),
        task=task, reference=CODE.replace("\r\n", "\n"),
    )  # fmt: skip


def test_a_stub_is_a_signature_with_the_task_and_one_example() -> None:
    found = stub(problem(), "MbppStub/601")
    assert found.signature == (
        'def area(r, *, k=2) -> float:\n    """Write a function to find an area.\n\n'
        '    >>> area(0)\n    0\n    """\n'
    )
    assert (found.prompt, found.task, found.task_id) == ("", "", "MbppStub/601")


@pytest.mark.parametrize(
    ("task", "first"),
    [
        ('Strip """ from a text.', "assert area(0) == 0"),
        ("Match \\d+ in a text.", "assert area('\\\\d') == 0"),
        ("Two\nlines.", "assert not area(0), 'a reason'"),
        ("Tolerance.", "assert abs(area(0) - 1) < 1e-6"),
    ],
)
def test_any_task_and_assertion_make_valid_python(task: str, first: str) -> None:
    found = stub(problem(task, first), "MbppStub/1").signature
    node = ast.parse(found).body[0]
    assert isinstance(node, ast.FunctionDef)
    docstring = ast.get_docstring(node) or ""
    assert docstring.startswith(task)


def test_both_prompts_show_the_stub_and_their_answers_pass() -> None:
    found = stub(problem(), "MbppStub/601")
    chat, plain = render(found, "chat"), render(found, "docstring-first")
    assert found.signature in chat.message
    assert plain.text.startswith('"""\nWrite a function') and plain.text.endswith(
        "def area(r, *, k=2) -> float:\n"
    )
    answers = [
        to_sample(f"```python\n{CODE}\n```", found, chat),
        to_sample("    import math\n    return k * math.pi * r ** 2\n", found, plain),
    ]
    with Sandbox(workers=1) as sandbox:
        for answer in answers:
            program = answer.get("solution") or found.program(answer["completion"])
            assert sandbox.judge(JobBuilder().build(found, program)).passed, program


def test_a_split_is_loaded_under_its_own_names(tmp_path: Path) -> None:
    asserts = ["assert area(0) == 0", "assert area(1) > 6"]
    rows = [
        {"task_id": number, "text": "Find an area.", "code": CODE, "test_list": asserts}
        for number in (11, 511, 600, 601)
    ]
    (tmp_path / "mbpp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    assert list(load_mbpp_stubs(tmp_path, "validation").problems) == ["MbppStub/511", "MbppStub/600"]
    assert list(load_mbpp_stubs(tmp_path, "train").problems) == ["MbppStub/601"]
    with pytest.raises(ValueError, match="no split 'test'"):
        load_mbpp_stubs(tmp_path, "test")
