from __future__ import annotations

import pytest

from rrtf_serve.sandbox.inside.assertions import rewrite


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[int, bool]] = []

    def passed(self, number: int) -> None:
        self.events.append((number, True))

    def failed(self, number: int, _error: Exception) -> None:
        self.events.append((number, False))


def run(source: str) -> tuple[list[str], list[tuple[int, bool]]]:
    code = rewrite(source, "recorder")
    recorder = Recorder()
    exec(compile(code.tree, "<tests>", "exec"), {"recorder": recorder})
    return [assertion.text for assertion in code.assertions], recorder.events


def test_each_assertion_is_a_test_and_failures_go_on() -> None:
    texts, events = run("assert 1 == 1\nassert 1 == 2, 'no'\nassert 3 ==  3  # spaces as written\n")
    assert texts == ["1 == 1", "1 == 2", "3 ==  3"]
    assert events == [(0, True), (1, False), (2, True)]


def test_loops_and_functions() -> None:
    texts, events = run("def check(n):\n    for i in range(n):\n        assert i < 2\ncheck(3)\n")
    assert texts == ["i < 2"]
    assert events == [(0, True), (0, True), (0, False)]


def test_constants_are_no_tests() -> None:
    assert run("assert True, 'This prints if this assert fails'\nassert 1\n") == ([], [])
    assert run("assert False\n") == (["False"], [(0, False)])


def test_expected_failures_are_left_alone() -> None:
    source = "try:\n    assert 1 == 2\nexcept AssertionError:\n    seen = True\nassert seen\n"
    assert run(source) == (["seen"], [(0, True)])


def test_text_over_lines_and_after_wide_characters() -> None:
    texts, _ = run("x = 'é'; assert ('é' ==\n    x)\n")
    assert texts == ["'é' == x"]


def test_errors_that_are_no_assertions_are_failures_too() -> None:
    assert run("assert 1 / 0\nassert 2\n")[1] == [(0, False)]


def test_free_names() -> None:
    code = rewrite(
        "import os.path as p, sys\ndef check(candidate):\n    a = [b for b in candidate(Pair(1))]\n"
        "    try:\n        poly(a)\n    except E as e:\n        print(e, p, sys, known)\n",
        "recorder",
    )
    assert code.free_names({"known"}) == ["E", "Pair", "poly"]


def test_syntax_errors_are_told() -> None:
    with pytest.raises(SyntaxError):
        rewrite("assert (", "recorder")
