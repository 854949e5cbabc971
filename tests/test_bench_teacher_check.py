"""`rrtf-bench teacher-check`: who solves what, who is better, and what may not be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from toy_problems import Toy, serving, write_problems

from benchmarks.cli import main
from benchmarks.teacher_check import TeacherCheckConfig, compared, markdown, teacher_check
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import SandboxUnavailable
from rrtf_serve.sandbox.options import SandboxOptions


def judged(folder: Path, name: str, passed: dict[str, list[bool]]) -> None:
    place = folder / name
    place.mkdir(parents=True)
    lines = [
        {"task_id": task, "completion": "", "passed": each, "result": "passed" if each else "failed: x"}
        for task, several in passed.items()
        for each in several
    ]
    (place / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_best_teacher_of_each_problem_counts(tmp_path: Path) -> None:
    judged(
        tmp_path, "student", {"a": [True, False], "b": [True, True], "c": [False, False], "d": [False, False]}
    )
    judged(tmp_path, "one", {"a": [False, False], "b": [True, False], "c": [True, True], "d": [False, False]})
    judged(tmp_path, "two", {"a": [True, True], "b": [False, False], "c": [False, False], "d": [False] * 2})
    found = compared(tmp_path, ["one", "two"])
    assert found["below_student"]["problems"] == ["b"]
    assert found["below_student"]["share"] == 0.25
    assert found["solved_by"] == {
        "both": 2,
        "a teacher alone": 1,
        "the student alone": 0,
        "nobody": 1,
    }
    assert found["per_problem"]["a"] == {"student": 0.5, "one": 0.0, "two": 1.0}
    assert found["teachers"]["one"]["difference"] == 0
    assert found["teachers"]["two"]["is"] == "not resolved"


def test_a_teacher_that_solves_much_more_is_better_and_the_other_way_about(tmp_path: Path) -> None:
    some = {f"t{number}": [number % 10 == 0] for number in range(60)}
    every = {task: [True] for task in some}
    judged(tmp_path / "up", "student", some)
    judged(tmp_path / "up", "big", every)
    judged(tmp_path / "down", "student", every)
    judged(tmp_path / "down", "big", some)
    assert compared(tmp_path / "up", ["big"])["teachers"]["big"]["is"] == "better"
    worse = compared(tmp_path / "down", ["big"])
    assert worse["teachers"]["big"]["is"] == "worse"
    assert worse["below_student"]["share"] == 0.9
    assert worse["solved_by"]["the student alone"] == 54


def test_without_a_common_problem_nothing_is_compared(tmp_path: Path) -> None:
    judged(tmp_path, "student", {"a": [True]})
    judged(tmp_path, "big", {"b": [True]})
    with pytest.raises(ValueError, match="no problem in common"):
        compared(tmp_path, ["big"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"suite": "humaneval"}, "--suite humaneval: is a test"), ({"teachers": ()}, "--teacher: name at least"),
     ({"teachers": ("s",)}, "--teacher: each model once"), ({"engine": "http"}, "--engine http: must be"),
     ({"teachers": ("a", "a")}, "--teacher: each model once"), ({"batch": 0}, "--batch must be"),
     ({"temperature": -1.0}, "--temperature must be")],
)  # fmt: skip
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TeacherCheckConfig(**{"student": "s", "teachers": ("t",), **changes})


def test_folders_are_named_after_the_models() -> None:
    config = TeacherCheckConfig("s", ("org/big-7b", "http://127.0.0.1:8000/", "./fit/last"))
    assert list(config.names()) == [
        "student",
        "teacher-1-big-7b",
        "teacher-2-127.0.0.1-8000",
        "teacher-3-last",
    ]


def test_a_check_of_two_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        Sandbox(workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    problems = write_problems(tmp_path / "toy.jsonl")
    student, teacher = Toy(knows=("double",)), Toy(knows=("triple", "square"))
    with serving(student) as one, serving(teacher) as two:
        config = TeacherCheckConfig(one, (two,), str(problems), output=tmp_path / "check")
        said: list[str] = []
        report = teacher_check(config, SandboxOptions(workers=1), said.append)
        assert said[0] == "3 problems of toy.jsonl, 1 answers each, of 2 models"
        asked = len(student.asked) + len(teacher.asked)
        # Asked once more, nothing is drawn again.
        assert main(["teacher-check", "--student", one, "--teacher", two, "--suite", str(problems), "-o",
                     str(tmp_path / "check"), "--workers", "1", "--json"]) == 0  # fmt: skip
        assert len(student.asked) + len(teacher.asked) == asked == 6
    [name] = report["teachers"]
    assert report["models"]["student"]["pass@1"]["passed"] == 1
    assert report["teachers"][name]["mean_b"] == pytest.approx(2 / 3)
    assert report["below_student"]["problems"] == ["t/double"]
    assert report["teachers"][name]["test"].startswith("McNemar")
    page = (tmp_path / "check" / "teacher-check.md").read_text()
    assert page == markdown(report)
    assert "below the student: 1 of 3 (33.3%" in page
    assert "| t/double | 1 | 0 |" in page
    assert json.loads((tmp_path / "check" / "teacher-check.json").read_text())["ok"]


def test_a_test_suite_is_refused_by_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["teacher-check", "--student", "a", "--teacher", "b", "--suite", "mbpp-test"]) == 2
    assert "is a test" in capsys.readouterr().err
