"""`run`: every stage once, going on after a stop, and what a changed file is told."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_models import write_hf
from toy_problems import Toy, lines, serving, write_problems

from rrtf_serve.problems.samplers import SamplerError
from rrtf_serve.problems.samples import BusyError, open_alone
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import SandboxUnavailable
from training.cli import main
from training.config import RunConfig, config_of, read_config
from training.records import read_tuples
from training.run import read_state, run


@pytest.fixture(scope="module", autouse=True)
def _sandbox() -> None:
    try:
        Sandbox(workers=1).close()
    except SandboxUnavailable as error:
        pytest.skip(f"no sandbox here: {error}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    return tmp_path / "run"


def write_config(folder: Path, url: str) -> Path:
    problems = write_problems(folder.parent / "toy.jsonl")
    path = folder.parent / "run.toml"
    path.write_text(
        f"""
        folder = "{folder}"
        problems = ["{problems}"]
        [[source]]
        name = "s"
        role = "student"
        kind = "url"
        url = "{url}"
        k = 2
        batch = 1
        [[source]]
        name = "experts"
        role = "teacher"
        kind = "reference"
        [judge]
        workers = 1
        """
    )
    return path


def read(folder: Path, url: str, *settings: str) -> RunConfig:
    return read_config(write_config(folder, url), settings)


def test_a_run_goes_on_where_its_source_went_away(folder: Path) -> None:
    toy = Toy(knows=("double",), left=4)
    with serving(toy) as url:
        with pytest.raises(SamplerError, match="4 of 6 samples are kept"):
            run(read(folder, url))
        toy.left = None
        said: list[str] = []
        report = run(read(folder, url), say=said.append)
        assert (len(toy.asked), said) == (5 + 2, ["sample ...", "judge ...", "rank ..."])
        # Once more, nothing is done.
        tuples = (folder / "tuples.jsonl").read_bytes()
        said = []
        again = run(read(folder, url, "judge.workers=2"), say=said.append)
        assert said == ["sample: done before", "judge: done before", "rank: done before"]
        assert len(toy.asked) == 7
    assert again["rank"] == json.loads(json.dumps(report["rank"]))
    assert (folder / "tuples.jsonl").read_bytes() == tuples
    assert {item.task_id for item in read_tuples(folder / "tuples.jsonl")} == {
        "t/double",
        "t/triple",
        "t/square",
    }
    assert (report["rank"]["ties"], report["rank"]["pairs"]) == (1, 3)
    assert json.loads((folder / "run.json").read_text())["rank"]["config"]["tie_gap"] == 0.05
    assert "3 tuples with 3 pairs (1 ties)" in (folder / "summary.md").read_text()


def test_changed_settings_are_refused_with_the_difference(folder: Path) -> None:
    with serving(Toy(knows=())) as url:
        run(read(folder, url))
        with pytest.raises(ValueError, match=r"rank\.tie_gap: 0\.05, now 0\.1\n.*--redo rank"):
            run(read(folder, url, "rank.tie_gap=0.1"))
        with pytest.raises(ValueError, match=r"sample\.source\.s\.k: 2, now 3\n.*--redo sample"):
            run(read(folder, url, "source.s.k=3"), redo="rank")
        problems = folder.parent / "toy.jsonl"
        config = read(folder, url)
        problems.write_text(problems.read_text().replace("The double", "Twice"))
        with pytest.raises(ValueError, match=r"sample\.problems_digest: "):
            run(config)
        with pytest.raises(ValueError, match="--redo dinner"):
            run(config, redo="dinner")


def test_redo_keeps_what_there_was_and_what_still_holds(folder: Path) -> None:
    toy = Toy(knows=())
    with serving(toy) as url:
        run(read(folder, url))
        tuples, asked = (folder / "tuples.jsonl").read_bytes(), len(toy.asked)
        run(read(folder, url, "rank.tie_gap=0.1", "rank.level_scores=[0, 0.1, 0.2, 1]"), redo="rank")
        assert (folder / "before-1" / "tuples.jsonl").read_bytes() == tuples
        assert (folder / "tuples.jsonl").read_bytes() != tuples
        assert len(toy.asked) == asked
        # More answers of the same kind: only those are asked for.
        run(read(folder, url, "source.s.k=3"), redo="sample")
        assert len(toy.asked) == asked + 3
        assert len(lines(folder / "samples" / "s-t0.8.jsonl")) == 9
        # Another kind of answers takes the place of these.
        run(read(folder, url, "source.s.k=1", "source.s.top_p=0.5"), redo="sample")
        assert len(toy.asked) == asked + 6
        assert len(lines(folder / "samples" / "s-t0.8.jsonl")) == 3
        assert len(lines(folder / "before-3" / "samples" / "s-t0.8.jsonl")) == 9
        assert not (folder / "before-3" / "samples" / "experts.jsonl").exists()


def test_one_run_at_a_time_has_the_folder(folder: Path) -> None:
    with serving(Toy()) as url:
        config = read(folder, url)
        with open_alone(folder / ".lock"), pytest.raises(BusyError):
            run(config)


@pytest.mark.parametrize(
    "text", ["[]", '{"sample": 5}', '{"judge": {}}', '{"rank": {"config": 1, "done": 0}}']
)
def test_a_damaged_state_is_named(folder: Path, text: str) -> None:
    folder.mkdir()
    (folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        read_state(folder)


def test_what_was_taken_away_is_made_again_and_what_follows_too(folder: Path) -> None:
    with serving(Toy(knows=("double",))) as url:
        run(read(folder, url))
        (folder / "samples" / "experts.jsonl").unlink()
        said: list[str] = []
        run(read(folder, url), say=said.append)
        assert said == ["sample ...", "judge ...", "rank ..."]
        (folder / "judged" / "s-t0.8.jsonl").unlink()
        said = []
        run(read(folder, url), say=said.append)
        assert said == ["sample: done before", "judge ...", "rank ..."]


def test_run_is_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="run is one process"):
        run(read(folder, "http://127.0.0.1:9"))


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Toy(knows=("double",))) as url:
        file = str(write_config(folder, url))
        other = folder.parent / "other"
        assert main(["run", file, "-o", str(other), "--set", "source.s.k=1", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["rank"]["tuples"] == 3
        assert main(["run", file, "-o", str(other)]) == 2
        assert "sample.source.s.k: 1, now 2" in capsys.readouterr().err
        assert main(["run", file, "--set", "rank.seed"]) == 2
        assert main(["run", str(folder / "none.toml")]) == 2


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGKILL, -9)]
)
def test_a_stopped_run_leaves_nothing_half_written(folder: Path, number: int, status: int) -> None:
    class Slow(Toy):
        def answer(self, body: dict[str, object]) -> str:
            time.sleep(0.3)
            return super().answer(body)

    toy = Slow(knows=())
    with serving(toy) as url:
        file = write_config(folder, url)
        child = subprocess.Popen(
            [sys.executable, "-m", "training.cli", "run", str(file)],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 300
        while len(toy.asked) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        child.send_signal(number)
        assert child.wait(60) == status
        kept = len(lines(folder / "samples" / "s-t0.8.jsonl"))
        assert 1 <= kept < 6
        asked = len(toy.asked)
        assert run(read_config(file))["rank"]["tuples"] == 3
        assert len(toy.asked) - asked == 6 - kept


def test_all_stages_with_a_model_that_is_trained(folder: Path) -> None:
    model = write_hf(folder.parent / "tiny", "qwen2")
    problems = write_problems(folder.parent / "toy.jsonl")
    table = {
        "folder": str(folder),
        "problems": [str(problems)],
        "format": "completion",
        "source": [
            {"name": "s", "role": "student", "model": str(model), "engine": "torch", "dtype": "float32",
             "k": 1, "max_tokens": 4, "batch": 1, "threads": 1},
            {"name": "experts", "role": "teacher", "kind": "reference"},
        ],
        "judge": {"workers": 1},
        "fit": {"epochs": 1, "batch": 2, "threads": 1, "precision": "fp32", "lr": 1e-3},
    }  # fmt: skip
    report = run(config_of(table, "table"))
    assert (report["fit"]["tuples"], report["fit"]["steps"]) == (3, 2)
    assert (folder / "fit" / "last" / "model.safetensors").is_file()
    page = (folder / "summary.md").read_text()
    assert f"rrtf-convert ct2 {folder / 'fit' / 'last'} -o {folder / 'model'}" in page
    assert run(config_of(table, "table"))["fit"]["steps_now"] == 0
    table["fit"] = {**table["fit"], "lr": 2e-3}  # type: ignore[dict-item]  # a table
    with pytest.raises(ValueError, match=r"--lr 0\.001 there, 0\.002 here.*--redo fit keeps"):
        run(config_of(table, "table"))
    assert run(config_of(table, "table"), redo="fit")["fit"]["steps_now"] == 2
    assert (folder / "before-1" / "fit" / "last").is_dir()
