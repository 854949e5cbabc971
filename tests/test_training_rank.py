"""`rank`: levels, ties, drops and picks, on verdicts written by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_problems import write_problems

from rrtf_serve.sandbox.verdict import Status
from training.cli import main
from training.judge import judged_path
from training.rank import RankOptions, _rank_one, rank, weight_of
from training.records import Candidate, Tuple, read_tuples
from training.sample import write_json

C, R, P, A = "COMPILE_ERROR", "RUNTIME_ERROR", "PARTIAL", "ALL_PASS"
Answers = dict[str, dict[str, list[Any]]]  # source -> task -> statuses, or (status, response)


def make(folder: Path, answers: Answers, *, teachers: tuple[str, ...] = ("big",), **index: Any) -> Path:
    """A run's folder as `sample` and `judge` leave it."""
    folder.mkdir(exist_ok=True)
    problems = write_problems(folder / "toy.jsonl")
    files = [
        {"stem": name, "source": name, "role": "teacher" if name in teachers else "student"}
        for name in answers
    ]
    record = {"problems": [str(problems)], "format": "chat", "limit": None, "files": files, **index}
    write_json(folder / "samples" / "index.json", record)
    write_json(folder / "judged" / "dropped.json", {})
    for name, tasks in answers.items():
        path = judged_path(folder, name)
        path.write_text("".join(_lines(name, tasks)))
    return folder


def _lines(source: str, tasks: dict[str, list[Any]]) -> list[str]:
    found = []
    for task, entries in tasks.items():
        for number, entry in enumerate(entries):
            status, response = entry if isinstance(entry, tuple) else (entry, None)
            code = f"def {task}(n):\n    return '{source} {number}'"
            record = {
                "task_id": f"t/{task}",
                "response": f"```python\n{code}\n```" if response is None else response,
                "completion": f"\n{code}\n",
                "prompt_format": "chat",
                "finish": "stop",
                "key": f"{source}-{task}-{number}",
                "passed": None if status == "INFRA_ERROR" else status == A,
                "result": "",
                "verdict": {"status": status, "tests_passed": {P: 1, A: 2}.get(status, 0), "tests": 2},
            }
            found.append(json.dumps(record) + "\n")
    return found


def ranked(folder: Path, **options: Any) -> tuple[dict[str, Tuple], dict[str, Any]]:
    report = rank(folder, RankOptions(**options))
    return {item.task_id[2:]: item for item in read_tuples(folder / "tuples.jsonl")}, report


def pair_of(item: Tuple) -> tuple[str, str, float]:
    [(teacher, student, weight)] = item.pairs
    assert teacher == item.chosen
    return item.candidates[teacher].key, item.candidates[student].key, weight


def test_levels_ties_and_the_drop(tmp_path: Path) -> None:
    folder = make(
        tmp_path,
        {
            "big": {"double": [A], "triple": [A], "square": [P]},
            "small": {"double": [R], "triple": [A], "square": [A]},
        },
    )
    found, report = ranked(folder)
    assert pair_of(found["double"]) == ("big-double-0", "small-double-0", pytest.approx(2 / 3))
    # The teacher is ranked higher within a level, by the gap that the paper leaves open.
    assert pair_of(found["triple"]) == ("big-triple-0", "small-triple-0", 0.05)
    assert list(found) == ["double", "triple"]
    assert report["dropped"]["its best teacher is below the student"]["tasks"] == ["t/square"]
    assert (report["pairs"], report["ties"]) == (2, 1)
    assert found["double"].candidates[0].text == "```python\ndef double(n):\n    return 'big 0'\n```"
    small = report["sources"]["small"]
    assert (small["levels"], small["solved"], small["pass@1"]) == ({C: 0, R: 1, P: 0, A: 2}, 2, 0.666667)
    assert json.loads((folder / "tuples.stats.json").read_text()) == json.loads(json.dumps(report))


def test_without_a_tie_gap_an_equal_student_leaves_no_pair(tmp_path: Path) -> None:
    folder = make(tmp_path, {"big": {"double": [A], "triple": [A]}, "small": {"double": [A], "triple": [C]}})
    found, report = ranked(folder, tie_gap=0.0)
    assert found["double"].pairs == ()
    assert [each.key for each in found["double"].candidates] == ["big-double-0"]
    assert (report["without_rejected"], report["share_without_rejected"]) == (1, 0.5)


def test_level_scores_and_shares_of_tests(tmp_path: Path) -> None:
    folder = make(tmp_path, {"big": {"double": [A]}, "small": {"double": [P]}})
    found, _ = ranked(folder, level_scores=(0.0, 0.2, 0.4, 1.0))
    assert pair_of(found["double"])[2] == pytest.approx(0.6)
    found, _ = ranked(folder, level_scores=(0.0, 0.2, 0.4, 1.0), partial_share=True)
    assert pair_of(found["double"])[2] == pytest.approx(0.3)  # one test of two: half way from 0.4 to 1


def test_an_unsolved_problem_is_dropped_unless_less_will_do(tmp_path: Path) -> None:
    folder = make(
        tmp_path, {"big": {"double": [P, R], "triple": [A]}, "small": {"double": [C], "triple": [C]}}
    )
    _, report = ranked(folder)
    assert report["dropped"]["no answer to choose reaches ALL_PASS"]["tasks"] == ["t/double"]
    found, _ = ranked(folder, chosen_status="PARTIAL")
    assert pair_of(found["double"])[:2] == ("big-double-0", "small-double-0")


def test_pairs_picks_and_whose_answers_are_rejected(tmp_path: Path) -> None:
    answers: Answers = {"big": {"double": [A, A, P]}, "small": {"double": [A, P, R, C]}}
    folder = make(tmp_path, answers)

    def rejected(**options: Any) -> list[str]:
        item = ranked(folder, **options)[0]["double"]
        return [item.candidates[pair.student].key for pair in item.pairs]

    assert rejected(rejected_pick="worst") == ["small-double-3"]
    assert rejected(rejected_pick="nearest") == ["small-double-1"]
    # A student's answer of the same level comes last however they are picked.
    for pick in ("random", "worst", "nearest"):
        assert rejected(rejected_pick=pick, pairs_per_prompt=9)[-1] == "small-double-0"
        assert len(rejected(rejected_pick=pick, pairs_per_prompt=9)) == 4
    assert set(rejected(pairs_per_prompt=9, rejected_from="all")) == {
        "small-double-0", "small-double-1", "small-double-2", "small-double-3", "big-double-2",
    }  # fmt: skip
    item = ranked(folder, pairs_per_prompt=4, teacher_answers=2)[0]["double"]
    assert {item.candidates[pair.teacher].key for pair in item.pairs} == {"big-double-0", "big-double-1"}
    assert len({pair[:2] for pair in item.pairs}) == 4


def test_which_of_equal_teachers_is_chosen(tmp_path: Path) -> None:
    short = (A, "```python\ndef double(n):\n    return n*2\n```")
    answers: Answers = {name: {"double": [A, A, A, *([short] if name == "b" else [])]} for name in ("b", "a")}
    folder = make(tmp_path, answers, teachers=("a", "b"))
    chosen = [
        ranked(folder, teacher_pick="random", seed=seed)[0]["double"].candidates[0].key for seed in range(20)
    ]
    assert len(set(chosen)) > 2
    assert ranked(folder, teacher_pick="shortest")[0]["double"].candidates[0].key == "b-double-3"
    assert ranked(folder, teacher_pick="first")[0]["double"].candidates[0].key == "b-double-0"


def test_without_teachers_the_students_best_is_chosen(tmp_path: Path) -> None:
    folder = make(tmp_path, {"small": {"double": [A, R], "triple": [A, A], "square": [P, R]}})
    with pytest.raises(ValueError, match="no source is a teacher"):
        ranked(folder)
    found, _ = ranked(folder, chosen_from="student")
    assert pair_of(found["double"])[:2] == ("small-double-0", "small-double-1")
    # Nobody's answer ranks above another of its own role and level.
    assert found["triple"].pairs == ()
    assert "square" not in found


def test_a_students_answer_is_chosen_where_the_teachers_fail(tmp_path: Path) -> None:
    folder = make(tmp_path, {"big": {"double": [R]}, "small": {"double": [A, P]}})
    found, _ = ranked(folder, chosen_from="all")
    assert pair_of(found["double"])[:2] == ("small-double-0", "small-double-1")


def test_of_equal_answers_the_teachers_is_chosen_whoever_may_be(tmp_path: Path) -> None:
    """The paper ranks a teacher's answer above a student's of the same level."""
    folder = make(tmp_path, {"small": {"double": [A, A, A]}, "big": {"double": [A]}})
    for seed in range(8):
        found, _ = ranked(folder, chosen_from="all", seed=seed)
        assert pair_of(found["double"])[::2] == ("big-double-0", 0.05)


def test_samples_without_verdicts_are_not_passed_over(tmp_path: Path) -> None:
    folder = make(tmp_path, {"big": {"double": [A]}, "small": {"double": [C]}})
    judged = judged_path(folder, "small").read_bytes()
    drawn = folder / "samples" / "small.jsonl"
    drawn.write_bytes(judged)
    ranked(folder)
    others = b"".join(judged.replace(b"small-double-0", b"small-double-%d" % number) for number in (1, 2))
    drawn.write_bytes(judged + others)
    with pytest.raises(ValueError, match=r"small\.jsonl: lacks 2 of the samples; `rrtf-train judge` comes"):
        ranked(folder)
    judged_path(folder, "small").write_bytes(judged + others)
    drawn.write_bytes(judged)
    with pytest.raises(ValueError, match=r"2 of its verdicts are of samples that .* no longer holds"):
        ranked(folder)


def test_a_second_round_takes_the_sources_that_it_names(tmp_path: Path) -> None:
    answers: Answers = {
        name: {"double": [status]} for name, status in (("big", A), ("small", C), ("small-2", P))
    }
    folder = make(tmp_path, answers)
    found, report = ranked(folder, sources=("big", "small-2"))
    assert pair_of(found["double"])[1] == "small-2-double-0"
    assert list(report["sources"]) == ["big", "small-2"]
    with pytest.raises(ValueError, match=r"--source nobody: .* has samples of big, small, small-2"):
        ranked(folder, sources=("nobody",))


def test_answers_that_are_no_candidates(tmp_path: Path) -> None:
    same = (A, "```python\ndef double(n):\n    return n + n\n```")
    answers: Answers = {
        "big": {"double": [same, same, ("RUNTIME_ERROR", "I would rather not."), ("COMPILE_ERROR", "")]},
        "small": {"double": [same, "INFRA_ERROR", R]},
    }
    found, report = ranked(make(tmp_path, answers), pairs_per_prompt=9)
    assert [each.key for each in found["double"].candidates] == ["big-double-0", "small-double-2"]
    assert report["sources"]["big"]["left_out"] == {"duplicates": 1, "without code": 2}
    assert report["sources"]["small"]["left_out"] == {"duplicates": 1, "failed by the sandbox": 1}
    assert report["sources"]["small"]["samples"] == 2  # what the sandbox failed counts for nobody


def test_plain_formats_train_on_the_completion(tmp_path: Path) -> None:
    folder = make(tmp_path, {"big": {"double": [A]}, "small": {"double": [C]}}, format="completion")
    for name, completion in (("big", "    return n * 2\n\n\n"), ("small", "    return (\n")):
        path = judged_path(folder, name)
        record = json.loads(path.read_text())
        path.write_text(
            json.dumps({**record, "prompt_format": "completion", "completion": completion}) + "\n"
        )
    found, _ = ranked(folder)
    assert [each.text for each in found["double"].candidates] == ["    return n * 2\n", "    return (\n"]
    assert found["double"].prompt.text.startswith("def double")


def test_a_reference_becomes_a_whole_function_in_a_fence(tmp_path: Path) -> None:
    folder = make(tmp_path, {"big": {"double": [A]}})
    path = judged_path(folder, "big")
    record = json.loads(path.read_text()) | {"prompt_format": "reference", "completion": "    return n * 2\n"}
    del record["response"]
    path.write_text(json.dumps(record) + "\n")
    found, _ = ranked(folder)
    expected = '```python\ndef double(n: int) -> int:\n    """The double of n."""\n    return n * 2\n```'
    assert found["double"].candidates[0].text == expected


def test_warnings_and_refusals(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tied = make(tmp_path / "tied", {"big": {"double": [A]}, "small": {"double": [A]}})
    ranked(tied)
    assert "every pair is a tie with weight 0.05" in caplog.text
    ranked(tied, tie_gap=0.0)
    assert "no tuple has a pair" in caplog.text
    answers: Answers = {"big": {"double": [R]}, "other": {"double": [A]}, "small": {"double": [R]}}
    ranked(make(tmp_path / "weak", answers, teachers=("big", "other")))
    assert "big: none of its 1 answers passes" in caplog.text
    never = make(tmp_path / "never", {"big": {"double": [R]}, "small": {"double": [C]}})
    with pytest.raises(
        ValueError, match=r"none of 3 problems gives a tuple \(1: no answer .*, 2: no usable .* Sample more"
    ):
        ranked(never)
    assert not (never / "tuples.jsonl").exists()
    judged_path(tied, "small").unlink()
    with pytest.raises(ValueError, match=r"small\.jsonl: not there; `rrtf-train judge` comes first"):
        ranked(tied)
    judged_path(tied, "small").write_text('{"task_id": "t/double"}\n')
    with pytest.raises(ValueError, match=r"small\.jsonl:1: not a judged sample"):
        ranked(tied)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"level_scores": (0.0, 1.0, 0.5, 1.0)}, "--level-scores"),
        ({"level_scores": (1.0, 1.0, 1.0, 1.0)}, "--level-scores"),
        ({"level_scores": (0.0, 0.5, 1.0)}, "--level-scores"),
        ({"tie_gap": -0.1}, "--tie-gap"),
        ({"tie_gap": float("nan")}, "--tie-gap"),
        ({"pairs_per_prompt": 0}, "--pairs-per-prompt"),
        ({"teacher_answers": 0}, "--teacher-answers"),
        ({"teacher_pick": "best"}, "--teacher-pick best"),
        ({"chosen_status": "GOOD"}, "--chosen-status GOOD"),
    ],
)
def test_options_that_make_no_sense_name_their_flag(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        RankOptions(**options)


def candidate(number: int, role: str, level: int) -> Candidate:
    scores = RankOptions().level_scores
    return Candidate("s", role, f"text {number}", Status(level).name, level, 3, scores[level], str(number))


pools = st.lists(st.tuples(st.sampled_from(["teacher", "student"]), st.integers(0, 3)), max_size=8)


@settings(max_examples=200, deadline=None)
@given(pools, st.integers(1, 5), st.integers(1, 3), st.sampled_from(["student", "all"]), st.integers(0, 3))
def test_whatever_is_ranked_is_in_order(
    pool: list[tuple[str, int]], pairs: int, teachers: int, rejected: str, seed: int
) -> None:
    from random import Random

    candidates = [candidate(number, *each) for number, each in enumerate(pool)]
    options = RankOptions(pairs_per_prompt=pairs, teacher_answers=teachers, rejected_from=rejected)
    found = _rank_one(candidates, options, Random(seed))
    assert found == _rank_one(candidates, options, Random(seed))
    solved = any(each.role == "teacher" and each.status == A for each in candidates)
    assert isinstance(found, str) is not solved
    if isinstance(found, str):
        return
    chosen, made = found
    assert (chosen.role, chosen.status) == ("teacher", A)
    assert len(made) <= pairs and len({(one.key, other.key) for one, other, _ in made}) == len(made)
    for one, other, weight in made:
        assert weight == weight_of(one, other, options) > 0
        assert Status[one.status] >= Status[other.status]
        assert weight_of(other, one, options) == 0
        assert other.role == "student" or rejected == "all"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make(tmp_path, {"big": {"double": [A]}, "small": {"double": [R]}})
    out = tmp_path / "other.jsonl"
    assert main(["rank", str(folder), "-o", str(out), "--tie-gap", "0", "--partial-share", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["options"]["tie_gap"], report["options"]["partial_share"]) == (0, True)
    assert len(read_tuples(out)) == report["tuples"] == 1
    assert main(["rank", str(folder)]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "source  role     answers" in shown.err and "1 tuples, 1 pairs (0 ties)" in shown.err
    first = (folder / "tuples.jsonl").read_bytes()
    assert main(["rank", str(folder)]) == 0
    assert (folder / "tuples.jsonl").read_bytes() == first
    assert main(["rank", str(folder), "--pairs-per-prompt", "0"]) == 2
    assert main(["rank", str(tmp_path / "nothing")]) == 2
