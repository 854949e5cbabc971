"""The measuring instruments themselves: extraction, intervals, and a jail that holds."""

import shutil

import pytest

from benchmarks.humaneval import Problem, build_program, extract_code
from benchmarks.jail import run_with_tests
from benchmarks.spread import summary, wilson_interval

needs_jail = pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
PROBLEM = Problem(
    "t/0", "from typing import List\n\n\ndef double(n: int) -> int:\n", "def check(f): ...", "double"
)


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\nx = 1\n```", "x = 1"),
        ("Sure:\n```\nx = 1\n```\nDone.", "x = 1"),
        ("```py\nx = 1\n``` and ```python\ny\n```", "x = 1"),
        ("```python\nx = 1\nwhile True", "x = 1\nwhile True"),
        ("x = 1", "x = 1"),
    ],
)
def test_code_is_taken_from_the_first_block(answer: str, code: str) -> None:
    assert extract_code(answer) == code


def test_an_answer_keeps_the_prompts_imports() -> None:
    program = build_program(PROBLEM, "def double(n: int) -> int:\n    return n * 2")
    assert program.startswith("from typing import List")
    assert program.count("def double") == 1


def test_a_bare_body_is_put_behind_the_prompt() -> None:
    assert build_program(PROBLEM, "    return n * 2").endswith("-> int:\n    return n * 2")


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe, Statistics in Medicine 17 (1998), table I: 81/263 and 0/20, method 3.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    with pytest.raises(ValueError, match="passed"):
        wilson_interval(3, 2)


def test_summary() -> None:
    assert summary([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "n": 3}


@needs_jail
@pytest.mark.parametrize(
    ("program", "outcome"),
    [
        ("def double(n): return n * 2", "passed"),
        ("def double(n): return n * 3", "failed"),
        ("import sys; sys.exit(0)", "failed"),
        ("import os; os._exit(0)", "failed"),
        ("while True: pass", "timeout"),
        ("x = bytearray(8 << 30)", "failed"),
        ("import socket; socket.create_connection(('127.0.0.1', 22), 1)", "failed"),
        ("open('/usr/owned', 'w')", "failed"),
        ("open('/tmp/own-scratch', 'w').write('x')\ndef double(n): return n * 2", "passed"),
        ("def double(n): return '\\ud800'", "failed"),
    ],
)
def test_jail(program: str, outcome: str) -> None:
    assert run_with_tests(program, "assert double(2) == 4", timeout_s=4) == outcome


@needs_jail
def test_jail_hides_home_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "s3cret")
    probe = "import os\nassert 'SECRET_TOKEN' not in os.environ\nassert not os.path.exists('/etc/passwd')"
    assert run_with_tests(probe, "", timeout_s=10) == "passed"
