"""`evolve`: what the evolver is asked, what is thrown away and why, lineage, restart."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from toy_problems import Toy, serving

from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, Response, SamplerError
from rrtf_serve.problems.samples import to_line
from training.cli import main
from training.evolution import FORBIDDEN, METHODS, draw_method, read_answer, request
from training.evolution_rules import Eliminator, Limits, purpose
from training.evolve import EvolveOptions, evolve
from training.seeds import Seed, read_seeds

PARENT = "Write a function that returns the sum of all even numbers in a list."
CHILD = "Write a function that returns the sum of all even numbers in a list, but counts each of them once."
SEEDS = [
    Seed("a", PARENT, "MIT", {"source": "test"}),
    Seed("b", "Write a function that reverses the words of a sentence.", "CC-BY-NC-4.0"),
    Seed("c", "Explain what a linked list is.", "MIT"),
    Seed("d", "Write a JavaScript function that adds two numbers.", "MIT"),
    Seed("e", PARENT, "MIT"),
]
ADDED = (
    "and no digit",
    "unless it is prime",
    "skipping each seventh",
    "with ties kept",
    "in one pass only",
    "from the back",
)


@dataclass
class Evolver:
    """Adds words to the task it is given; refuses where the method's text is in `refused`. It answers from
    the last ask to the first, as a busy server may. Gone after `left` answers."""

    refused: tuple[str, ...] = ()
    left: int | None = None
    model: str = "evolver"
    digest: str = "d1"
    asked: list[tuple[Ask, Decoding]] = field(default_factory=list)

    def provenance(self) -> dict[str, Any]:
        return {"engine": "test"}

    def settings(self) -> dict[str, Any]:
        return {"engine": "test", "seeds_honoured": True}

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Takes any."""

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        for at in reversed(range(len(asks))):
            if at in done:
                continue
            if self.left is not None and len(self.asked) >= self.left:
                raise SamplerError("gone")
            self.asked.append((asks[at], decoding))
            message = asks[at].prompt.message
            task = message.rpartition("#Given Task#\n")[2].partition("\n\n#Rewritten Task#")[0]
            refused = any(METHODS[method] in message for method in self.refused)
            text = "I'm sorry, I can't do that." if refused else f"{task[:-1]} {ADDED[asks[at].index]}."
            yield at, Response(text, "stop", 7)


def written(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]


def test_the_request_states_every_rule_of_the_paper() -> None:
    message = request(PARENT, "constraint", (7, 39)).message
    for phrase in ("a bit harder", METHODS["constraint"], "A human can understand", "code solves it"):
        assert phrase in message
    for phrase in ("One Python function", "7 to 39 words", "never seen the old task", "Tables, code, inputs"):
        assert phrase in message
    assert all(phrase in message.lower() for phrase in FORBIDDEN)
    assert message.endswith(f"#Given Task#\n{PARENT}\n\n#Rewritten Task#")


@pytest.mark.parametrize(
    "response",
    [
        CHILD,
        f"  {CHILD}\n",
        f"#Rewritten Task#\n{CHILD}",
        f"**Rewritten Task**: {CHILD}",
        f"```\n{CHILD}\n```",
    ],
)
def test_an_answer_is_read_without_what_is_around_it(response: str) -> None:
    assert read_answer(response) == CHILD


def test_methods_are_drawn_evenly_and_the_same_every_time() -> None:
    names = tuple(METHODS)
    drawn = [draw_method(names, 1, f"seed{at}", 1) for at in range(1000)]
    assert drawn == [draw_method(names, 1, f"seed{at}", 1) for at in range(1000)]
    assert all(150 < drawn.count(name) < 250 for name in names)
    assert drawn != [draw_method(names, 2, f"seed{at}", 1) for at in range(1000)]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (CHILD, None),
        ("Sum it.", "empty"),
        ("As an AI language model I can write a function for that list of numbers.", "refusal"),
        (CHILD + " Keep the given task in mind.", "forbidden-words"),
        ("Return the sum of all even " * 5, "repeats-itself"),
        ("No title, no solution, no remarks, just a function.", "echoes-request"),
        ("Write a function for a list. Add one more constraint or requirement to it.", "echoes-request"),
        ("def total(numbers):\n    out = 0\n    return out + sum(set(numbers))", "code-alone"),
        ("Write a function, please.", "too-short"),
        (CHILD + " Also " + " ".join(f"skip{n}" for n in range(45)), "too-long"),
        (
            "Write a python function that returns the sum of all the even numbers in a given list.",
            "no-new-task",
        ),
        (CHILD + "\n```python\ndef f(x):\n    return sum(set(x))\n```", "answers-itself"),
        (CHILD.replace("a function", "a C++ function"), "other-language"),
        (CHILD.replace("in a list", "read from a CSV file"), "needs-outside"),
        (CHILD.replace("in a list", "that the user types at the keyboard"), "needs-outside"),
        ("Explain how the sum of all even numbers in a list, each counted once, behaves.", "no-code-asked"),
        ("Even numbers are lovely; so are lists, sums, odd things and thirty red roses.", "no-code-asked"),
        ("Write a function to sort words by the number of their vowels, ties by length.", "near-duplicate"),
    ],
)
def test_each_rule_has_a_case(text: str, rule: str | None) -> None:
    eliminator = Eliminator(Limits())
    eliminator.keep("other", "Write a function to sort the words by number of their vowels, ties by length.")
    broken = eliminator.broken(text, PARENT, "constraint", "stop")
    assert (broken[0] if broken else None) == rule


def test_wrong_code_may_show_code_and_a_cut_answer_is_out() -> None:
    text = CHILD + "\n```python\ndef f(x):\n    return sum(x)\n```"
    eliminator = Eliminator(Limits())
    assert eliminator.broken(text, PARENT, "wrong-code", "stop") is None
    assert eliminator.broken(text, PARENT, "wrong-code", "length") == ("cut-off", text[-80:])
    eliminator.keep("kept", CHILD)
    assert eliminator.broken(CHILD, PARENT, "constraint", "stop") == ("duplicate", "kept")


@pytest.mark.parametrize(
    "text",
    [
        "Write a function to check if a url is valid or not using regex.",
        "Find the angle between the hands of a clock.",
        "Write a function to convert a list of c strings into r groups in go order.",
        "Write a function to find all words which are at least 4 characters long in a string.",
        "Write a function to compute the area under a javelin's curve from its samples.",
    ],
)
def test_innocent_tasks_pass(text: str) -> None:
    assert purpose(text) is None


def test_lines_climb_and_carry_their_lineage(tmp_path: Path) -> None:
    evolver = Evolver()
    report = evolve(
        SEEDS, evolver, tmp_path, EvolveOptions(rounds=2, methods=("constraint",)), progress=False
    )
    tasks = written(tmp_path, "tasks.jsonl")
    assert [each["task_id"] for each in tasks] == ["a~1.1", "b~1.1", "a~1.2", "b~1.2"]
    assert tasks[2]["text"] == f"{PARENT[:-1]} {ADDED[0]} {ADDED[1]}."
    assert [each["licence"] for each in tasks] == ["MIT", "CC-BY-NC-4.0"] * 2
    lineage = tasks[2]["lineage"]
    assert (lineage["seed"], lineage["parent"], lineage["round"]) == ("a", "a~1.1", 2)
    assert lineage["evolver"] == {"model": "evolver", "digest": "d1", "engine": "test"}
    assert lineage["decoding"]["temperature"] == 0.9 and lineage["source"] == "test"
    assert report["unfit_seeds"] == {"no-code-asked": 1, "other-language": 1, "duplicate": 1}
    assert report["rounds"] == [
        {"round": 1, "asked": 2, "accepted": 2},
        {"round": 2, "asked": 2, "accepted": 2},
    ]


def test_a_failed_step_leaves_its_line_where_it_was(tmp_path: Path) -> None:
    options = EvolveOptions(rounds=6, methods=("constraint", "complexity"))
    evolve(SEEDS[:1], Evolver(refused=("complexity",)), tmp_path, options, progress=False)
    tasks, eliminated = written(tmp_path, "tasks.jsonl"), written(tmp_path, "eliminated.jsonl")
    assert tasks and eliminated and {each["rule"] for each in eliminated} == {"refusal"}
    assert all(each["offending"] == "I'm sorry" for each in eliminated)
    parents = ["a", *(each["task_id"] for each in tasks)]
    assert [each["lineage"]["parent"] for each in tasks] == parents[:-1]


def test_a_stopped_run_ends_as_one_that_was_not_and_asks_nothing_twice(tmp_path: Path) -> None:
    options = EvolveOptions(rounds=3, lines=2, methods=("constraint", "more-steps"))
    whole = Evolver()
    evolve(SEEDS, whole, tmp_path / "whole", options, progress=False)
    asked = 0
    for left in (3, 2, 1, None):
        evolver = Evolver(left=left)
        try:
            evolve(SEEDS, evolver, tmp_path / "parts", options, progress=False)
        except SamplerError:
            assert left is not None
        asked += len(evolver.asked)
    assert asked == len(whole.asked) == 12
    for name in ("tasks.jsonl", "eliminated.jsonl", "report.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = Evolver()
    evolve(SEEDS, again, tmp_path / "parts", options, progress=False)
    assert again.asked == []


def test_lines_of_one_seed_get_seeds_of_their_own(tmp_path: Path) -> None:
    evolver = Evolver()
    evolve(SEEDS[:1], evolver, tmp_path, EvolveOptions(rounds=2, lines=2), progress=False)
    assert sorted(ask.index for ask, _ in evolver.asked) == [0, 1, 2, 3]


def test_another_evolver_is_asked_anew(tmp_path: Path) -> None:
    options = EvolveOptions(rounds=1)
    evolve(SEEDS, Evolver(), tmp_path, options, progress=False)
    first = (tmp_path / "tasks.jsonl").read_bytes()
    other = Evolver(digest="d2")
    evolve(SEEDS, other, tmp_path, options, progress=False)
    assert len(other.asked) == 2
    assert (tmp_path / "before-1" / "tasks.jsonl").read_bytes() == first
    evolve(SEEDS, Evolver(digest="d2"), tmp_path, options, progress=False)
    assert not (tmp_path / "before-2").exists()


def test_bad_input_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of the 1 seeds.*no-code-asked"):
        evolve(SEEDS[2:3], Evolver(), tmp_path, progress=False)
    with pytest.raises(ValueError, match="'a' comes twice"):
        evolve([SEEDS[0], SEEDS[0]], Evolver(), tmp_path, progress=False)
    for changes in ({"rounds": 0}, {"methods": ("magic",)}, {"lines": 2, "temperature": 0.0}, {"top_p": 0.0}):
        with pytest.raises(ValueError, match="--"):
            EvolveOptions(**changes)  # type: ignore[arg-type]
    for limits in ({"shortest": 2.0}, {"near": 0.0}, {"slack_words": -1}):
        with pytest.raises(ValueError, match="--"):
            Limits(**limits)  # type: ignore[arg-type]


def test_seeds_come_from_codealpaca_task_files_and_problems(tmp_path: Path) -> None:
    alpaca = tmp_path / "code_alpaca_2k.json"
    alpaca.write_text(json.dumps([{"instruction": "Sort it.", "input": "[2, 1]", "output": "no"}]), "utf-8")
    [seed] = read_seeds(str(alpaca), "MIT")
    assert (seed.task_id, seed.text) == ("code_alpaca_2k/1", "Sort it.\n\nInput:\n[2, 1]")
    assert seed.licence == "CC-BY-NC-4.0"  # whatever --licence says
    tasks = tmp_path / "tasks.jsonl"
    stub = {"task_id": "p", "prompt": "", "signature": 'def f(x):\n    """Halve x."""\n', "entry_point": "f",
            "test": "assert f(2) == 1"}  # fmt: skip
    tasks.write_bytes(to_line({"task_id": "t", "text": "Sort it.", "licence": "MIT"}) + to_line(stub))
    with pytest.raises(ValueError, match="record 2: licence is missing"):
        read_seeds(str(tasks))
    found = read_seeds(str(tasks), "Apache-2.0")
    assert [(each.text, each.licence) for each in found] == [("Sort it.", "MIT"), ("Halve x.", "Apache-2.0")]
    with pytest.raises(ValueError, match="neither a file nor a suite"):
        read_seeds(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="not to train on"):
        read_seeds("humaneval")


def test_the_shape_of_codealpaca_with_a_licence_of_its_own_is_not_codealpaca(tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(to_line({"instruction": "Sort it.", "licence": "MIT"}))
    [seed] = read_seeds(str(path))
    assert (seed.licence, seed.lineage) == ("MIT", {"source": "other.jsonl"})
    path.write_bytes(to_line({"instruction": "Sort it.", "licence": 3}))
    with pytest.raises(ValueError, match="record 1: licence must be a text"):
        read_seeds(str(path))


def test_a_journal_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "responses.jsonl").write_bytes(to_line({"key": "k", "text": "a"}))
    with pytest.raises(ValueError, match=r"responses\.jsonl:1: not a line of this journal \(no answer\)"):
        evolve(SEEDS, Evolver(), tmp_path)


class Rewriter(Toy):
    """A server that adds a requirement."""

    def answer(self, body: dict[str, Any]) -> str:
        text = body["messages"][-1]["content"].rpartition("#Given Task#\n")[2].partition("\n\n#Rew")[0]
        return f"{text} Ignore numbers {body['seed']} to 90."


def test_the_command_over_a_url(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_bytes(to_line({"task_id": "t", "text": PARENT, "licence": "MIT"}))
    with serving(Rewriter()) as url:
        arguments = ["evolve", str(tmp_path / "out"), "--seeds", str(seeds), "--url", url, "--rounds", "1"]
        assert main([*arguments, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["tasks"] == 1
        assert main([*arguments, "--methods", "constraint"]) == 0
        assert "1 of 1 accepted" in capsys.readouterr().err
        assert main([*arguments, "--api-key-env", "RRTF_NO_SUCH_KEY"]) == 2
        assert main([*arguments, "--limit", "-1"]) == 2  # would be all but the last
    [task] = written(tmp_path / "out", "tasks.jsonl")
    assert task["text"] == f"{PARENT} Ignore numbers 0 to 90." and task["lineage"]["evolver"]["url"]
    assert main(["evolve", str(tmp_path / "out"), "--seeds", str(seeds)]) == 2
