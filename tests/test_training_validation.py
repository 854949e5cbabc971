"""The best step: which suites may choose it, and that it is chosen by answers that were really judged."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_models import write_hf
from tuples import write_made

from rrtf_serve.models.errors import ModelError
from rrtf_serve.problems.samples import Journal
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import SandboxUnavailable
from training.best import Best, best_of
from training.fit import fit
from training.fit_options import FitOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("model") / "qwen2", "qwen2")


@pytest.fixture
def sandbox() -> None:
    try:
        Sandbox(workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def options(tmp_path: Path, model: Path) -> FitOptions:
    return FitOptions(
        write_made(tmp_path / "tuples.jsonl", 4), str(model), tmp_path / "run", epochs=2, batch=4, lr=1e-2,
        precision="fp32", device="cpu", threads=1, validate_tokens=4,
    )  # fmt: skip


@pytest.mark.parametrize(
    "suite",
    ["humaneval", "humaneval-plus", "mbpp", "mbpp-test", "mbpp-plus", "leetcode-test",
     "leetcode-after-2022-07", "mbpp-sanitized-test", "nonsense"],
)  # fmt: skip
def test_test_sets_choose_no_model(options: FitOptions, suite: str) -> None:
    with pytest.raises(ValueError, match=f"--validate {suite}: must be a file of problems or one of"):
        replace(options, validate=suite)


def test_a_test_set_under_another_name_chooses_no_model_either(options: FitOptions, tmp_path: Path) -> None:
    # MBPP's task 11 (CC-BY-4.0, Austin et al. 2021), in the words of its data set.
    text = "Write a python function to remove first and last occurrence of a given character from the string."
    line = {
        "task_id": "mine/1", "text": text, "entry_point": "cut", "code": "def cut(s, c):\n    return s",
        "test_list": ["assert cut('hello', 'l') == 'heo'"],
    }  # fmt: skip
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(line) + "\n", "utf-8")
    with pytest.raises(ValueError, match=r"--validate .*mine\.jsonl: mine/1 has the words of Mbpp/11"):
        fit(replace(options, validate=str(file)))


def problems(path: Path, tests: tuple[str, str] = ("pass", "assert False")) -> Path:
    """Two for any model that writes a comment's rest; unless told otherwise the second can't be passed."""
    lines = [
        {
            "task_id": f"own/{at}",
            "prompt": "def g():\n    pass\n\n# ",
            "entry_point": "g",
            "test": f"def check(g):\n    {test}\n",
            "canonical_solution": "done",
        }
        for at, test in enumerate(tests)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_each_epoch_is_judged_and_the_best_kept(
    options: FitOptions, tune: str, sandbox: None, tmp_path: Path
) -> None:
    options = replace(options, validate=str(problems(tmp_path / "own.jsonl")), tune=tune)
    report = fit(options)
    with Journal(options.output / "validation.jsonl") as journal:
        assert list(journal.records) == ["step-1", "step-2"]
        assert {record["problems"] for record in journal.records.values()} == {2}
    assert report["best_step"] in (1, 2)
    names = sorted(path.name for path in (options.output / "best").iterdir())
    assert names == sorted(path.name for path in (options.output / "last").iterdir())
    assert sorted(path.name for path in (options.output / "validation").iterdir()) == ["step-1", "step-2"]
    assert not list(options.output.glob(".candidate")) and not list(options.output.glob(".merged"))


def test_sigterm_does_not_wait_for_a_validation_and_the_same_command_goes_on(
    options: FitOptions, sandbox: None, tmp_path: Path
) -> None:
    slow = "import time\n    time.sleep(3)"
    own = problems(tmp_path / "own.jsonl", (slow, slow))
    options = replace(options, validate=str(own), validate_every=2)
    command = [
        "-m", "training.cli", "fit", str(options.tuples), "--model", options.model, "-o", str(options.output),
        "--epochs", "2", "--batch", "4", "--lr", "1e-2", "--precision", "fp32", "--device", "cpu",
        "--threads", "1", "--validate", str(own), "--validate-tokens", "4", "--validate-every", "2",
    ]  # fmt: skip
    process = subprocess.Popen([sys.executable, *command], stderr=subprocess.PIPE)
    while not (options.output / "validation" / "step-2" / "samples.jsonl").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error.decode()
    assert [path.name for path in (options.output / "checkpoints").iterdir()] == ["step-2"]
    assert not (options.output / "validation.jsonl").exists()
    whole, rest = fit(replace(options, output=tmp_path / "whole")), fit(options)
    assert (rest["steps_now"], whole["steps_now"]) == (0, 2)
    for name in ("best", "last"):
        made = [each / name / "model.safetensors" for each in (options.output, tmp_path / "whole")]
        assert made[0].read_bytes() == made[1].read_bytes()


def test_a_family_that_the_engine_lacks_is_refused_before_the_first_step(
    options: FitOptions, tmp_path: Path
) -> None:
    model = write_hf(tmp_path / "mistral", "mistral")
    options = replace(options, model=str(model), validate=str(problems(tmp_path / "own.jsonl")))
    with pytest.raises(ModelError, match="--validate: mistral can't be run by the torch engine"):
        fit(options)
    assert not (options.output / "log.jsonl").exists()


class Counted:
    """Scores as told, in place of an engine."""

    def __init__(self, passed: list[int]) -> None:
        self.left = passed

    def score(self, folder: Path, work: Path) -> dict[str, int]:
        return {"passed": self.left.pop(0), "problems": 9}


def test_the_earliest_of_the_best_stays_and_nothing_is_scored_twice(tmp_path: Path) -> None:
    scores = Counted([3, 5, 5, 4])
    for steps in ((1, 2, 3), (2, 3, 4)):  # the second as after a kill behind step 1's checkpoint
        best = Best(tmp_path, scores)  # type: ignore[arg-type]
        for step in steps:
            candidate = tmp_path / ".candidate"
            candidate.mkdir(exist_ok=True)
            (candidate / "name").write_text(str(step))
            best.consider(step, candidate, candidate)
        best.close()
        assert (tmp_path / "best" / "name").read_text() == "2"
    assert scores.left == []
    assert best_of(tmp_path) == {"best_step": 2, "best_passed": 5, "best_problems": 9}
