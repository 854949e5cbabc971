"""`judge`: verdicts in the real sandbox, references that fail, and a sandbox that fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_problems import Toy, lines, serving, write_problems

from rrtf_serve.problems import gold
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import SandboxUnavailable
from rrtf_serve.sandbox.verdict import Status, Verdict
from training.cli import main
from training.judge import JudgeOptions, _judge_file, judge, read_dropped
from training.problem_sets import load_problem_set
from training.sample import SampleOptions, sample
from training.sources import Source

EXPERTS = Source("experts", "teacher", kind="reference")


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        Sandbox(workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture
def problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    return write_problems(tmp_path / "toy.jsonl")


def test_all_files_of_a_folder_are_judged(
    problems: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with serving(Toy(knows=("double",))) as url:
        student = Source("s", "student", kind="url", url=url, k=2)
        sample(SampleOptions((str(problems),), (EXPERTS, student)), folder)
    assert main(["judge", str(folder), "--workers", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["files"]["experts"]["passed"] == 3
    found = report["files"]["s-t0.8"]
    assert (found["passed"], found["solved"], found["samples"], found["problems"]) == (2, 1, 6, 3)
    assert found["pass@1"] == pytest.approx(1 / 3, abs=1e-6)
    statuses = {
        each["task_id"]: each["verdict"]["status"] for each in lines(folder / "judged" / "s-t0.8.jsonl")
    }
    assert statuses == {"t/double": "ALL_PASS", "t/triple": "PARTIAL", "t/square": "PARTIAL"}
    assert main(["judge", str(folder), "--workers", "0"]) == 2
    assert "--workers" in capsys.readouterr().err


def test_problems_whose_reference_fails_are_dropped_and_named(
    problems: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    problems.write_text(problems.read_text().replace("return n * 3", "return n"))
    folder = tmp_path / "run"
    sample(SampleOptions((str(problems),), (EXPERTS,)), folder)
    report = judge(folder, JudgeOptions(workers=1))
    assert list(report["dropped"]) == ["t/triple"] == list(read_dropped(folder))
    assert "t/triple: dropped, its reference solution fails here" in caplog.text
    text = problems.read_text()
    for body in ("n * 2", "n * n"):
        text = text.replace(f"return {body}", "return -1")
    problems.write_text(text)
    other = tmp_path / "other"
    sample(SampleOptions((str(problems),), (EXPERTS,)), other)
    with pytest.raises(ValueError, match="the reference solutions of all problems fail here"):
        judge(other, JudgeOptions(workers=1))


def test_nothing_to_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["judge", str(tmp_path)]) == 2
    assert "holds no samples; `rrtf-train sample` draws them" in capsys.readouterr().err


class Flaky(Sandbox):
    """Fails on everything in its first `failures` rounds."""

    failures = 1

    def judge_as_completed(self, jobs: Any, limits: Any = None) -> Iterator[tuple[int, Verdict]]:
        if not self.failures:
            yield from super().judge_as_completed(jobs, limits)
            return
        self.failures -= 1
        for position, _ in enumerate(jobs):
            yield position, Verdict(Status.INFRA_ERROR, self.level, message="out of order")


@pytest.mark.parametrize(("retries", "failed"), [(0, 3), (1, 0)])
def test_what_the_sandbox_fails_is_tried_again(
    problems: Path, tmp_path: Path, retries: int, failed: int
) -> None:
    folder = tmp_path / "run"
    sample(SampleOptions((str(problems),), (EXPERTS,)), folder)
    suite = load_problem_set([str(problems)]).suite
    out = folder / "judged" / "experts.jsonl"
    out.parent.mkdir()
    with Flaky(workers=1) as sandbox:
        golds = gold.measure(suite, sandbox)
        report = _judge_file(
            folder / "samples" / "experts.jsonl", out, suite, sandbox, golds, retries=retries
        )
    assert len(report["failed_by_the_sandbox"]) == failed
    assert [each["passed"] for each in lines(out)] == [None if failed else True] * 3
