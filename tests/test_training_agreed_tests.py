"""Tests that come from agreement: what is proposed, when programmes agree, the whole road."""

import contextlib
import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from failing_sandbox import Failing

from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, Response, SamplerError
from rrtf_serve.problems.user_file import load_user_file
from rrtf_serve.sandbox.judge import Sandbox
from training import cli
from training.agreed_tests import Source, TestOptions, dropped_of, write_tests
from training.agreement import Disagreement, Rule, agree, assertion, distinct, same
from training.hidden_tests import compare, hide_tests
from training.outcomes import Outcome, Trial, outcomes, spelled
from training.proposals import Task, calls_in, examples_in, header_of, read_tasks


@pytest.fixture(scope="module")
def sandboxes() -> Iterator[tuple[Sandbox, Sandbox]]:
    with Sandbox(workers=1) as one, Sandbox(workers=1) as other:
        yield one, other


@pytest.mark.parametrize(
    ("answer", "header"),
    [
        ("Sure:\n```python\ndef add(a: int, b=2) -> int:\n    ...\n```\n", "def add(a: int, b=2) -> int:"),
        ("def f(x):", "def f(x):"),
        ("def f(x):\n    return x", "def f(x):"),
        ("import os\n\ndef f(x): ...", "def f(x):"),
        ("@cache\ndef f(x): ...", ""),
        ("class A: ...", ""),
        ("I can't", ""),
        ("", ""),
    ],
)
def test_a_header_is_parsed_out_of_an_answer(answer: str, header: str) -> None:
    assert header_of(answer) == header


def test_calls_are_taken_where_the_function_accepts_their_literals() -> None:
    text = """
    f(1, "a)")     # ordinary
    f( 1,'a)' )    # the same in another spelling
    assert f(-2, b=[1, (2,)]) == 3
    f(1, 2, 3)
    f(1)
    f(x, 2)
    f(1, c=2)
    f(1, b=2, a=1)
    f({[1]}, 2)
    g.f(1, 2); pdf(1, 2)
    f(1, **{"b": 2})
    f(1, (2
    """
    assert list(calls_in(text, "def f(a, b):")) == ["f(1, 'a)')", "f(-2, b=[1, (2,)])"]
    assert list(calls_in("f(1) f(1, 2) f(1, key=3) f()", "def f(a, *more, key=0):")) == [
        "f(1)", "f(1, 2)", "f(1, key=3)",
    ]  # fmt: skip
    assert list(calls_in("f(1) f(1, k=2)", "def f(a, *, k):")) == ["f(1, k=2)"]


def test_examples_of_a_text_are_calls_with_their_values() -> None:
    text = """Do it. For example:
    assert f(1, 2) == [1, 2]
    assert f(1, 3) is None
    assert f(1, x) == 3
    assert f(1, 4) == f(4, 1)
    assert f(1, 5) == {3, 1}, "why"
    assert len(f(1, 6)) == 3
    assert g(1) == 1

    >>> f(2, "a")
    'aa'
    >>> f(2, "b") + f(3, "c")
    'bbccc'
    >>> f(2, "d")
    Traceback (most recent call last):
    ValueError: d
    """
    assert examples_in(text, "def f(a, b):") == {
        "f(1, 2)": "[1, 2]", "f(1, 5)": "{1, 3}", "f(2, 'a')": "'aa'",
    }  # fmt: skip
    assert examples_in("  >>> f(1, 2)\nodd\n >>>f(3, 4)", "def f(a, b):") == {}


def test_values_come_out_of_the_sandbox_as_literals(
    sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path
) -> None:
    programme = (
        "import random, time\n"
        "def f(x):\n"
        "    if x == 0: return {'b': {3, 1, 2}, 'a': (1.5, None, b'x')}\n"
        "    if x == 1: raise KeyError('x')\n"
        "    if x == 2: return object()\n"
        "    if x == 3: return 'y' * 1000\n"
        "    if x == 4: return random.random()\n"
        "    if x == 5: return hash('text')\n"
        "    if x == 6: return float('nan')\n"
        "    if x == 8:\n"
        "        x = []\n"
        "        x.append(x)\n"
        "        return x\n"
        "    return [x, x]\n"
    )
    calls = tuple(f"f({x})" for x in range(9))
    trials = [Trial(programme, "f", calls), Trial("def f(x): return", "f", calls)]
    found, none = outcomes(trials, sandboxes, tmp_path / "outcomes.jsonl")
    assert found[0].literal == "{'a': (1.5, None, b'x'), 'b': {1, 2, 3}}"
    assert [each.literal for each in found[1:7]] == [None] * 6
    assert "KeyError" in found[1].error
    assert "more than" in found[3].error
    assert found[4].error == found[5].error == "another value when run again"
    assert found[7].literal == "[7, 7]"
    assert found[8].literal is None
    assert {each.literal for each in none} == {"None"}
    # What is known is not run again: a closed sandbox would refuse.
    closed = Sandbox(workers=1)
    closed.close()
    assert outcomes(trials, (closed, closed), tmp_path / "outcomes.jsonl") == [found, none]


def test_one_endless_call_does_not_cost_the_others_their_values(
    sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path
) -> None:
    programme = (
        "import os\ndef f(x):\n    if x == 1: os._exit(1)\n    while x == 2: x = [x] * 10**10\n    return x\n"
    )
    trial = Trial(programme, "f", ("f(0)", "f(2)", "f(3)"))
    (found,) = outcomes([trial], sandboxes, tmp_path / "outcomes.jsonl")
    assert [each.literal for each in found] == ["0", None, "3"]


def test_equal_values_are_spelled_alike() -> None:
    assert spelled({"b": [{2, 1}], "a": ()}) == "{'a': (), 'b': [{1, 2}]}"
    assert spelled((1,)) == "(1,)"
    assert spelled(set()) == "set()"
    for value in (math.inf, [math.nan], [...], {"a": frozenset()}, object()):
        with pytest.raises(ValueError, match="has no literal"):
            spelled(value)


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (1, 1.0, True), (1, True, False), (0.1 + 0.2, 0.3, True), (1.0, 1.1, False), ([1], (1,), False),
        ([1.0, [2]], [1, [2.0]], True), ({"a": 0.3}, {"a": 0.1 + 0.2}, True), ({1}, {1}, True),
        ("a", "b", False), (None, 0, False), ([1], [1, 2], False), ({"a": 1}, {"b": 1}, False),
        (10**400, 1.5, False),
    ],
)  # fmt: skip
def test_sameness(a: object, b: object, equal: bool) -> None:
    assert same(a, b) is equal
    assert same(b, a) is equal


def test_programmes_that_differ_in_names_alone_count_once() -> None:
    programmes = [
        "def f(x):\n    total = x + 1\n    return total\n",
        'def f(y: int) -> int:\n    """Add one."""\n    t = y + 1  # one more\n    return t\n',
        "def f(x):\n    return x + 1\n",
        "def f(x:\n",
        "def f(x):\n    return len(x)\n",
        "def f(x):\n    return sum(x)\n",
    ]
    assert distinct(programmes, "f") == [0, 2, 4, 5]


def test_one_programme_with_other_things_beside_it_is_one_programme() -> None:
    programmes = [
        "def helper(x):\n    return x + 1\n\ndef f(x):\n    return helper(x)\n",
        "import math\nfrom typing import List\n\ndef step(x):\n    return x + 1\n\n"
        "def f(x):\n    return step(x)\n\nprint(f(1))\n",
        "def helper(x):\n    return x + 1\n\ndef f(n):\n    return helper(n)\n\ndef test():\n    f(3)\n\n"
        'EXAMPLE = 3\nassert f(1) == 2\nif __name__ == "__main__":\n    test()\n',
        "ONE = 2\n\ndef helper(x):\n    return x + ONE\n\ndef f(x):\n    return helper(x)\n",
        "ONE = 1\n\ndef helper(x):\n    return x + ONE\n\ndef f(x):\n    return helper(x)\n",
        "def f(x):\n    return x" + "".join(f"\n    if x == {n}: pass" for n in range(3)),
        "def f(x):\n    if x: pass\n" + "".join(f"    elif x == {n}: pass\n" for n in range(400)),
    ]
    # The last one parses and is nested more deeply than it can be compared.
    assert distinct(programmes, "f") == [0, 3, 4, 5]


def _rows(*columns: Sequence[str | None]) -> dict[int, list[Outcome]]:
    return {at: [Outcome(literal) for literal in row] for at, row in enumerate(columns)}


CALLS = ("f(0)", "f(1)", "f(2)")


def test_what_a_majority_returns_is_expected_and_those_that_return_all_of_it_agree() -> None:
    rows = _rows("123", "123", "123", "124", ("9", "9", None), (None, None, None))
    agreed = agree(CALLS, rows, Rule(majority=0.6))
    # f(2) has 3 of 5 voters: exactly the majority of 0.6; the last one returned nothing and has no vote.
    assert agreed.expected == {"f(0)": "1", "f(1)": "2", "f(2)": "3"}
    assert agreed.agreeing == (0, 1, 2)
    assert agreed.programmes == 5


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (_rows("123", "123", "123"), "too few programmes"),
        (_rows("123", "123", "123", (None, None, None)), "too few programmes"),
        (_rows("123", "123", "456", "456"), "too few agreed calls"),
        (_rows("123", "124", "163", "523"), "no common programmes"),
        (_rows("111", "111", "111", "111"), "one value for all"),
    ],
)
def test_disagreement_has_a_reason(rows: dict[int, list[Outcome]], reason: str) -> None:
    with pytest.raises(Disagreement) as error:
        agree(CALLS, rows, Rule(majority=0.6))
    assert error.value.reason == reason


def test_programmes_that_fail_the_tasks_own_examples_do_not_count() -> None:
    rows = _rows("123", "123", "143", "143", "923", "943", "943", "943")
    few = Rule(least_programmes=3, least_agreeing=2, majority=0.6)
    assert agree(CALLS, rows, few, {"f(1)": "2"}).agreeing == (0, 1)
    with pytest.raises(Disagreement, match="fail the task's examples: 5 of 8"):
        agree(CALLS, rows, Rule(), {"f(1)": "2"})
    with pytest.raises(Disagreement, match="fail the task's examples: 8 of 8"):
        agree(CALLS, rows, Rule(), {"f(2)": "None"})


def test_at_most_so_many_tests_and_rare_values_first() -> None:
    rows = _rows(*["0000010002"] * 4)
    calls = [f"f({number})" for number in range(10)]
    agreed = agree(calls, rows, Rule(most_tests=3))
    assert agreed.expected == {"f(0)": "0", "f(5)": "1", "f(9)": "2"}


@pytest.mark.parametrize(
    ("literal", "test"),
    [
        ("3", "assert f(1) == 3"), ("None", "assert f(1) is None"), ("True", "assert f(1) == True"),
        ("[1.5]", "assert close(f(1), [1.5])"), ("{'a': (0.5,)}", "assert close(f(1), {'a': (0.5,)})"),
    ],
)  # fmt: skip
def test_assertions(literal: str, test: str) -> None:
    assert assertion("f(1)", literal) == test


@pytest.mark.parametrize(
    "change",
    [{"majority": 0.5}, {"least_agreeing": 1}, {"least_agreeing": 9}, {"least_tests": 0}, {"most_tests": 1}],
)
def test_a_rule_that_makes_no_sense_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(change)).replace('_', '-')}"):
        replace(Rule(), **change)


class Scripted:
    """A sampler whose answers are written down: by a word of the message, one for each index."""

    model = "scripted"
    digest = "0"

    def __init__(self, answers: dict[tuple[str, str], list[str]], stop_after: int | None = None) -> None:
        self.answers = answers
        self.asked = 0
        self.stop_after = stop_after

    def settings(self) -> dict[str, Any]:
        return {}

    def provenance(self) -> dict[str, Any]:
        return {"engine": "scripted"}

    def check(self, prompts: Sequence[Prompt]) -> None:
        pass

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        for at, ask in enumerate(asks):
            if at in done:
                continue
            if self.asked == self.stop_after:
                raise SamplerError("the line is dead")
            self.asked += 1
            kind = {"signature": "header", "calls": "calls"}.get(ask.prompt.format, "code")
            several = next(
                texts
                for (word, of), texts in self.answers.items()
                if of == kind and word in ask.prompt.message
            )
            yield at, Response(several[ask.index % len(several)], "stop", 5)


def _block(code: str) -> str:
    return f"Here:\n```python\n{code}\n```\n"


ADD = [
    _block(f"def add(a, b):\n{body}")
    for body in (
        "    return a + b", "    return sum([a, b])", "    c = a\n    c += b\n    return c",
        "    return b - -a", "    return a - b", "    total = a + b\n    return total",
    )
]  # fmt: skip
ANSWERS: dict[tuple[str, str], list[str]] = {
    ("Add two", "header"): [_block("def add(a, b):\n    ...")],
    ("Add two", "calls"): [_block("add(1, 2)\nadd(-1, 1)\nadd(1.5, 0.25)\nadd(0, 0)\nadd('a', 'b')")],
    ("Add two", "code"): ADD,
    ("Copy", "calls"): [_block("copy([1])\ncopy([])\ncopy([1, 2])")],
    ("Copy", "code"): [_block("def copy(x):\n    return list(x)")],
    ("Guess", "calls"): [_block("guess(1)\nguess(2)\nguess(3)")],
    ("Guess", "code"): [_block(f"def guess(x):\n    return x + {n}") for n in range(6)],
    ("Nothing", "header"): ["no idea"],
}
TASKS = [
    Task("t/add", "Add two things.", licence="MIT", lineage={"seed": "s"}),
    Task("t/copy", "Copy a list.", "def copy(x):"),
    Task("t/guess", "Guess what.", "def guess(x):"),
    Task("t/nothing", "Nothing that is a function."),
]


def _source(sampler: Scripted, name: str = "one") -> Source:
    return Source(name, lambda: contextlib.nullcontext(sampler))


def test_tasks_get_tests_or_a_reason(sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path) -> None:
    options = TestOptions(solutions=6, call_answers=1, rule=Rule(least_programmes=4))
    with pytest.raises(SamplerError, match="dead"):
        write_tests(TASKS, [_source(Scripted(ANSWERS, stop_after=9))], options, sandboxes, tmp_path)
    assert not (tmp_path / "problems.jsonl").exists()
    sampler = Scripted(ANSWERS)
    report = write_tests(TASKS, [_source(sampler)], options, sandboxes, tmp_path)
    assert sampler.asked == 2 + 3 + 18 - 9  # headers, calls, solutions; what was answered is not asked again
    assert report["problems"] == 1
    assert dropped_of(tmp_path) == {
        "t/copy": "copies of one another", "t/guess": "too few agreed calls", "t/nothing": "no signature",
    }  # fmt: skip
    (line,) = (tmp_path / "problems.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["test_list"] == [
        "assert add(1, 2) == 3", "assert add(-1, 1) == 0", "assert close(add(1.5, 0.25), 1.75)",
        "assert add(0, 0) == 0",
    ]  # fmt: skip
    assert record["licence"] == "MIT"
    assert record["lineage"] == {"seed": "s"}
    assert record["tests_by"]["agreeing"] == 5
    assert record["tests_by"]["programmes"] == 6
    assert record["tests_by"]["caught"] > 0
    # The file is one that every command reads, and its tests tell right from wrong.
    problem = load_user_file(tmp_path / "problems.jsonl").problems["t/add"]
    again = write_tests(TASKS, [_source(sampler)], options, sandboxes, tmp_path)
    assert again == report
    assert sampler.asked == 14
    assert problem.entry_point == "add"


# Of a programme, of its calls alone, and of what mutation makes out of it ("a - b" becomes "a + b").
@pytest.mark.parametrize("word", ["return", "return b + -a"])
def test_a_sandbox_that_fails_is_no_wrong_answer(
    word: str, sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path
) -> None:
    options = TestOptions(solutions=6, call_answers=1, rule=Rule(least_programmes=4))
    answers = {**ANSWERS, ("Add two", "code"): [_block("def add(a, b):\n    return b - -a"), *(
        each.replace("return", "answer = 0\n    return") for each in ADD if "-a" not in each
    )]}  # fmt: skip
    failing: Any = Failing(sandboxes[0], word)
    both = (failing, sandboxes[1])
    report = write_tests(TASKS[:1], [_source(Scripted(answers))], options, both, tmp_path)
    assert failing.failed > 0
    assert (report["problems"], report["dropped"]) == (0, {"the sandbox failed": 1})
    # It says nothing of the task: the next run finds out.
    assert write_tests(TASKS[:1], [_source(Scripted(answers))], options, sandboxes, tmp_path)["problems"] == 1


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("outcomes.jsonl", '{"key": "k", "outcomes": [{"literal": 1, "error": ""}]}'),
        ("proposals.jsonl", '{"key": "k", "response": null}'),
    ],
)
def test_a_journal_of_something_else_is_named(
    name: str, line: str, sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(line + "\n")
    with pytest.raises(ValueError, match=rf"{name}:1: not a line of this journal \(no "):
        write_tests(TASKS[:1], [_source(Scripted(ANSWERS))], TestOptions(), sandboxes, tmp_path)


def test_tasks_that_have_tests_do_not_lose_them(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text('{"task_id": "a", "text": "Fold a strip.", "test_list": ["assert f(1)"]}\n')
    with pytest.raises(ValueError, match=r"tasks\.jsonl:1: has tests already \(test_list\)"):
        read_tasks(path)


def test_tasks_files_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    for line, message in [
        ('{"task_id": "a"}', "text is missing"),
        ('{"text": "a"}', "task_id is missing"),
        ('{"task_id": "a", "text": "b", "signature": "f(x)"}', "signature is no header"),
        ('{"task_id": "a", "text": "b"}\n{"task_id": "a", "text": "b"}', "comes twice"),
        ("", "no tasks"),
    ]:
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match=message):
            read_tasks(path)
    path.write_text('{"task_id": "a", "text": " b ", "signature": "def f(x): pass", "more": 1}\n')
    assert read_tasks(path) == [Task("a", "b", "def f(x):")]


@pytest.mark.parametrize(
    "change", [{"temperature": 0.0}, {"solutions": 0}, {"top_p": 0.0}, {"most_calls": 0}]
)
def test_options_name_their_flag(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(change)).replace('_', '-')}"):
        replace(TestOptions(), **change)


def test_sources_need_names_of_their_own(sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path) -> None:
    sources = [_source(Scripted(ANSWERS)), _source(Scripted(ANSWERS))]
    with pytest.raises(ValueError, match="--model"):
        write_tests(TASKS, sources, TestOptions(), sandboxes, tmp_path)


def test_agreed_tests_are_held_against_hidden_ones(
    sandboxes: tuple[Sandbox, Sandbox], tmp_path: Path
) -> None:
    problems = tmp_path / "suite.jsonl"
    lines = [
        {"task_id": "s/add", "text": "Add two things.", "code": "def add(a, b):\n    return a + b\n",
         "test_list": ["assert add(1, 1) == 2"]},
        {"task_id": "s/off", "text": "Add two by mistake.", "code": "def off(a, b):\n    return a - b\n",
         "test_list": ["assert off(1, 0) == 1", "assert off(2, 1) == 1"]},
    ]  # fmt: skip
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    suite = load_user_file(problems)
    assert hide_tests(suite)[0].text == "Add two things.\n\nFor example:\nassert add(1, 1) == 2"
    tasks = hide_tests(suite, shown=0)
    assert [task.signature for task in tasks] == ["def add(a, b):", "def off(a, b):"]
    assert hide_tests(suite, 1, shown=0) == tasks[:1]
    answers = {
        ("mistake", "calls"): [_block("assert off(1, 0) == 1\nassert off(2, 1) == 1\nassert off(5, 5) == 1")],
        ("mistake", "code"): [each.replace("add", "off") for each in ADD],
        **{key: several for key, several in ANSWERS.items() if key[0] == "Add two"},
    }
    options = TestOptions(solutions=6, call_answers=1)
    report = write_tests(tasks, [_source(Scripted(answers))], options, sandboxes, tmp_path / "run")
    assert report["problems"] == 2
    found = compare(tmp_path / "run", suite, ["one"], sandboxes[0])
    # All but one programme add: right for the first, and agreed on for the second, which subtracts.
    assert found["problems"] == 2
    assert found["rejected_references"] == ["s/off"]
    assert (found["false_rejects"]["count"], found["false_rejects"]["of"]) == (1, 2)
    assert (found["false_accepts"]["count"], found["false_accepts"]["of"]) == (5, 10)
    assert found["accepted_wrong_problems"]["count"] == 1
    assert (found["wrong_programmes_caught"]["count"], found["wrong_programmes_caught"]["of"]) == (1, 6)
    assert (found["right_programmes_failed"]["count"], found["right_programmes_failed"]["of"]) == (1, 6)
    assert 0.1 < found["false_accepts"]["low"] < 0.5 < found["false_accepts"]["high"] < 0.9


def test_only_plain_functions_in_words_can_be_hidden(tmp_path: Path) -> None:
    problems = tmp_path / "suite.jsonl"
    problems.write_text('{"task_id": "s/1", "text": "t", "test_list": ["assert f(1)"], "entry_point": "f"}\n')
    with pytest.raises(ValueError, match="s/1: needs a task in words and a plain function"):
        hide_tests(load_user_file(problems))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m"], "either TASKS or --hidden"),
        (["tasks.jsonl"], "--model"),
        (["--hidden", "humaneval", "--model", "m"], "--hidden humaneval: not a suite to train on"),
        (["tasks.jsonl", "--model", "m", "--temperature", "0"], "--temperature"),
        (["tasks.jsonl", "--model", "m", "--majority", "0.4"], "--majority"),
        (["tasks.jsonl", "--model", "m", "--url", "http://h", "--api-key-env", "NOT_SET_ANYWHERE"],
         "NOT_SET_ANYWHERE"),
    ],
)  # fmt: skip
def test_the_command_names_what_is_wrong(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["tests", *arguments, "-o", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
