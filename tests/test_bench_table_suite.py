"""Greedy scores in `rrtf-bench table`: sampled by each row's own process, judged, compared."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_small

from benchmarks import table_suite
from benchmarks.passk import PasskConfig, passk
from benchmarks.table import TableConfig, measure_table
from benchmarks.table_children import Child
from benchmarks.table_suite import score_of
from rrtf_serve.problems.samples import Journal
from rrtf_serve.sandbox.options import SandboxOptions

NAMES = ("double", "triple", "square", "half")
SMALL: dict[str, Any] = {
    "defaults": False, "prefill": 16, "batches": (1,), "prompt_tokens": 8, "new_tokens": 32, "threads": 1,
    "repeats": 1, "max_tokens": 12, "suite_batch": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("hf") / "small")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "small.jsonl"
    problems = [
        {
            "task_id": f"t/{name}",
            "prompt": f'def {name}(n):\n    """{name}"""\n',
            "entry_point": name,
            "test": "def check(candidate):\n    assert candidate(2) == 4\n",
            "canonical_solution": "    return 4\n",
        }
        for name in NAMES
    ]
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems), "utf-8")
    return path


def results(folder: Path, passed: tuple[str, ...]) -> Path:
    """A folder as `passk` leaves it, with these problems passed."""
    folder.mkdir()
    lines = [
        {"task_id": f"t/{name}", "passed": name in passed, "result": "passed" if name in passed else "failed"}
        for name in NAMES
    ]
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return folder


def test_every_row_is_sampled_judged_and_compared(
    model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (f"tf=transformers-float32:{model}", f"ct2=ct2-float32:{model}")
    settings = TableConfig(str(model), rows=rows, output=tmp_path / "out", suite=str(suite), **SMALL)
    report = measure_table(settings, SandboxOptions())
    first, second = report["rows"]
    assert first["suite"]["problems"] == 4 and first["suite"]["passed"] == 0
    assert first["suite"]["interval"]["low"] == 0 < first["suite"]["interval"]["high"] < 1
    assert second["paired"]["a"] == "tf" and second["paired"]["p_value"] == 1
    folders = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert len(folders) == 2
    answers = []
    for folder in folders:
        with Journal(folder / "samples.jsonl") as journal:
            answers.append({r["task_id"]: r["response"] for r in journal.records.values()})
    # Other libraries, equal weights and prompts in float32: equal answers.
    assert answers[0] == answers[1] and len(set(answers[0].values())) > 1
    # And the same that passk's own engine gives.
    run = passk(
        PasskConfig(str(model), str(suite), engine="torch", dtype="float32", device="cpu", threads=1,
                    max_tokens=12, output=tmp_path / "passk"),
        SandboxOptions(),
    )  # fmt: skip
    with Journal(tmp_path / "passk" / "samples.jsonl") as journal:
        assert {r["task_id"]: r["response"] for r in journal.records.values()} == answers[0]
    assert score_of(tmp_path / "passk")["passed"] == run["scores"]["pass@1"]["passed"]

    def refuse(*_: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(Child, "generate", refuse)
    again = measure_table(settings, SandboxOptions())
    assert [row["suite"]["passed"] for row in again["rows"]] == [0, 0]


def test_finished_runs_are_taken_and_compared(model: Path, tmp_path: Path) -> None:
    one = results(tmp_path / "one", ("double", "triple", "square"))
    other = results(tmp_path / "other", ("double", "half"))
    rows = (f"a=ct2-float32:{model}", f"b=ct2-int8:{model}")
    settings = TableConfig(
        str(model), rows=rows, output=tmp_path / "out", baseline="a", passk=(f"a={one}", f"b={other}"),
        **SMALL,
    )  # fmt: skip
    report = measure_table(settings, SandboxOptions())
    first, second = report["rows"]
    assert (first["suite"]["passed"], second["suite"]["passed"]) == (3, 2)
    test = second["paired"]
    assert (test["only_a"], test["only_b"], test["difference"]) == (2, 1, -0.25)
    page = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "| a | 3 of 4 | 75.0% (30.1% to 95.4%) | - | - | - | - |" in page
    assert "| b | 2 of 4 |" in page


def test_a_row_whose_suite_fails_stops_no_other(
    model: Path, suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (f"a=ct2-float32:{model}", f"b=ct2-int8:{model}")
    real = table_suite.draw

    def deadly(sampler: Any, *rest: Any) -> Any:
        if sampler.model == "a":
            os.kill(sampler._engine._child.pid, signal.SIGKILL)
        return real(sampler, *rest)

    monkeypatch.setattr(table_suite, "draw", deadly)
    settings = TableConfig(str(model), rows=rows, output=tmp_path / "out", suite=str(suite), **SMALL)
    report = measure_table(settings, SandboxOptions())
    assert "killed" in report["rows"][0]["suite_failed"]
    assert "figures" in report["rows"][0]
    assert report["rows"][1]["suite"]["problems"] == 4
    assert any("a: the suite failed" in note for note in report["notes"])


def test_a_run_of_several_samples_is_no_greedy_run(tmp_path: Path) -> None:
    folder = results(tmp_path / "run", ("double",))
    path = folder / "results.jsonl"
    path.write_text(path.read_text("utf-8") * 2, "utf-8")
    with pytest.raises(ValueError, match="one sample of each problem"):
        score_of(folder)
    with pytest.raises(ValueError, match=r"holds no results\.jsonl"):
        score_of(tmp_path)
