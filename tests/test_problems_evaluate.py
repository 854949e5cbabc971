"""Sampling that resumes, samples that stay with their run, and scores that add up."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rrtf_serve.problems.evaluate import Run, draw, mean_tokens, per_problem, score
from rrtf_serve.problems.gold import Gold
from rrtf_serve.problems.judging import Tally
from rrtf_serve.problems.origins import json_lines
from rrtf_serve.problems.problem import FunctionTests, Problem, make_suite
from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.problems.samplers import Ask, Decoding, Response, SamplerError
from rrtf_serve.problems.samples import BusyError, Journal

TESTS = FunctionTests("def check(candidate):\n    assert candidate(2) == 4\n")
SUITE = make_suite(
    "toy", [Problem(f"t/{n}", f'def f{n}(x):\n    """Twice."""\n', f"f{n}", TESTS) for n in range(3)]
)
SAMPLED = Decoding(temperature=0.8)


@dataclass
class Scripted:
    """A sampler that counts what it is asked, last ask first, and breaks off on demand."""

    model: str = "m"
    digest: str = "d"
    breaks_after: int | None = None
    engine: str = "ct2"
    asked: list[Ask] = field(default_factory=list)

    def settings(self) -> dict[str, Any]:
        return {}

    def provenance(self) -> dict[str, Any]:
        return {"engine": self.engine, "batch": 16}

    def check(self, prompts: Sequence[Prompt]) -> None:
        if self.engine == "strict":
            raise ValueError("can't be asked this")

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        for count, position in enumerate(at for at in reversed(range(len(asks))) if at not in done):
            if count == self.breaks_after:
                raise SamplerError("gone")
            self.asked.append(asks[position])
            yield position, Response("```python\nx = 1\n```", "stop", 3)


def records(path: Path) -> list[dict[str, Any]]:
    return [record for _, record in json_lines(path)]


def test_a_sample_says_where_it_comes_from(tmp_path: Path) -> None:
    draw(Scripted(), Run(SUITE, "chat", Decoding()), tmp_path / "s.jsonl")
    found = records(tmp_path / "s.jsonl")
    assert [record["task_id"] for record in found] == ["t/2", "t/1", "t/0"]
    record = found[0]
    assert record["response"] == "```python\nx = 1\n```"
    assert record["completion"] == "    x = 1\n"
    assert (record["model"], record["model_digest"], record["prompt_format"]) == ("m", "d", "chat")
    assert record["sampler"] == {"engine": "ct2", "batch": 16}
    assert record["decoding"] == {"temperature": 0.0, "top_p": 1.0, "max_tokens": 512, "seed": None}


def test_a_broken_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    run = Run(SUITE, "chat", SAMPLED, n=4)
    with pytest.raises(
        SamplerError, match=r"^gone .5 of 12 samples are kept in .*s\.jsonl; the same command"
    ):
        draw(Scripted(breaks_after=5), run, path)
    assert len(records(path)) == 5
    # A kill in the middle of a line.
    with path.open("a") as file:
        file.write('{"task_id": "t/0", "compl')
    second = Scripted()
    draw(second, run, path)
    assert len(second.asked) == 12 - 5
    assert len({(r["task_id"], r["index"]) for r in records(path)}) == 12
    third = Scripted()
    draw(third, run, path)
    assert third.asked == []


def test_a_run_can_grow(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    draw(Scripted(), Run(SUITE, "chat", SAMPLED, n=1, limit=2), path)
    grown = Scripted()
    draw(grown, Run(SUITE, "chat", SAMPLED, n=2), path)
    assert len(grown.asked) == 4
    # And a smaller one finds all it needs.
    smaller = Scripted()
    keys = draw(smaller, Run(SUITE, "chat", SAMPLED, n=1, limit=1), path)
    assert smaller.asked == []
    # Which are its own among those that the file holds.
    own = [(record["task_id"], record["index"]) for record in records(path) if record["key"] in keys]
    assert own == [("t/0", 0)]


CHANGED = make_suite("toy", [Problem(f"t/{n}", f"def f{n}(x):\n", f"f{n}", TESTS) for n in range(3)])
SMALLER = make_suite("toy", [Problem("t/0", "changed", "f0", TESTS)])


@pytest.mark.parametrize(
    ("sampler", "run", "difference"),
    [
        (Scripted(model="other"), Run(SUITE, "chat", SAMPLED), "model m there, other here"),
        (Scripted(digest="other"), Run(SUITE, "chat", SAMPLED), "model digest d there, other here"),
        (Scripted(engine="http"), Run(SUITE, "chat", SAMPLED), "engine ct2 there, http here"),
        (Scripted(), Run(SUITE, "completion", SAMPLED), "prompt format chat there, completion here"),
        (Scripted(), Run(SUITE, "chat", Decoding(temperature=0.7)), "temperature 0.8 there, 0.7 here"),
        (
            Scripted(),
            Run(SUITE, "chat", Decoding(0.8, max_tokens=9, seed=1)),
            "max_tokens 512 there, 9 here; seed none there, 1 here",
        ),
        (Scripted(), Run(CHANGED, "chat", SAMPLED), "the problem or its prompt has changed since"),
        (Scripted(), Run(SMALLER, "chat", SAMPLED), "task 't/2' is not in toy"),
    ],
)
def test_samples_made_otherwise_are_refused_with_what_differs(
    tmp_path: Path, sampler: Scripted, run: Run, difference: str
) -> None:
    path = tmp_path / "s.jsonl"
    draw(Scripted(), Run(SUITE, "chat", SAMPLED), path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=re.escape(f"otherwise ({difference}); give another --output")):
        draw(sampler, run, path)
    assert sampler.asked == []
    assert path.read_bytes() == before


def test_samples_that_do_not_say_how_they_were_made_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    draw(Scripted(), Run(SUITE, "chat", SAMPLED), path)
    old = [{**record, "key": "old"} for record in records(path)]
    for record in old:
        del record["sampler"]
    path.write_text("".join(json.dumps(record) + "\n" for record in old))
    with pytest.raises(ValueError, match="sampler none there, recorded with each sample here"):
        draw(Scripted(), Run(SUITE, "chat", SAMPLED), path)


def test_what_can_not_be_asked_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be asked"):
        draw(Scripted(engine="strict"), Run(SUITE, "chat", SAMPLED), tmp_path / "new" / "s.jsonl")
    with pytest.raises(SamplerError):
        draw(Scripted(breaks_after=0), Run(SUITE, "chat", SAMPLED), tmp_path / "s.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_one_run_at_a_time_samples_into_a_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with Journal(path) as journal:
        journal.add({"key": "a"})
        second = Scripted()
        with pytest.raises(BusyError, match=r"s\.jsonl: another run is writing here"):
            draw(second, Run(SUITE, "chat", SAMPLED), path)
    assert second.asked == []
    assert records(path) == [{"key": "a"}]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 0}, "--n"), ({"n": 2, "decoding": Decoding()}, "greedy"), ({"limit": 0}, "--limit")],
)
def test_a_run_names_the_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Run(SUITE, "chat", **{"decoding": SAMPLED, **options})


def tally(**counts: list[int]) -> Tally:
    return Tally(counts={name.replace("_", "/"): value for name, value in counts.items()})


def test_scores() -> None:
    counted = tally(t_0=[4, 4], t_1=[4, 1], t_2=[4, 0])
    counted.groups = {"base": {"t/0": [4, 4], "t/1": [4, 4], "t/2": [4, 0]}}
    report = score(counted, SUITE.problems, {}, ks=(1, 4, 10))
    assert report["scores"]["pass@1"]["value"] == pytest.approx((1 + 0.25 + 0) / 3)
    assert report["scores"]["pass@4"]["value"] == pytest.approx(2 / 3)
    assert "pass@10" not in report["scores"]
    assert report["scores"]["base: pass@1"]["value"] == pytest.approx(2 / 3)
    assert (report["problems"], report["samples"], report["passed_samples"]) == (3, 12, 5)
    assert "passed" not in report["scores"]["pass@1"]
    assert json.dumps(report)


def test_failing_references_and_missing_problems_are_named() -> None:
    golds = {"t/0": Gold(False, 1.0, "RUNTIME_ERROR", "broken"), "t/1": Gold(True, 1.0, "passed")}
    report = score(tally(t_0=[1, 1], t_1=[1, 1]), SUITE.problems, golds)
    assert report["excluded_because_their_reference_fails"] == {"t/0": "broken"}
    assert report["without_samples"] == ["t/2"]
    assert report["scores"]["pass@1"]["problems"] == 1
    assert report["scores"]["pass@1"]["passed"] == 1


def test_no_samples_give_no_score() -> None:
    report = score(Tally(), SUITE.problems, {})
    assert (report["scores"], report["problems"]) == ({}, 0)


def test_small_parts() -> None:
    assert per_problem({"a": [4, 1], "b": [1, 1]}, 1) == {"a": 0.25, "b": 1.0}
    with pytest.raises(ValueError, match="pass@2"):
        per_problem({"b": [1, 1]}, 2)
    assert mean_tokens([{"tokens": 2}, {"tokens": None}, {"tokens": 4}, {}]) == 3
    assert mean_tokens([]) is None
