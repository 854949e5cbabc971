"""`rrtf-bench table` from the command line to its files, on a tiny model in real processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_gguf, write_small

from benchmarks import table_rounds
from benchmarks.cli import main
from benchmarks.spread import summary
from benchmarks.table import TableConfig, measure_table
from benchmarks.table_children import Child
from benchmarks.table_page import markdown
from benchmarks.table_report import targets
from benchmarks.table_rows import default_rows, parse_row, prepare_row
from rrtf_serve.models.errors import ModelError
from rrtf_serve.sandbox.options import SandboxOptions

SMALL: dict[str, Any] = {
    "defaults": False, "prefill": 32, "batches": (1, 2), "prompt_tokens": 8, "new_tokens": 32, "threads": 1,
    "repeats": 2,
}  # fmt: skip
TASKS = ["prefill", "1", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small(tmp_path_factory.mktemp("hf") / "small")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path_factory.getbasetemp() / "home"))


def config(model: Path, output: Path, rows: tuple[str, ...], **options: Any) -> TableConfig:
    given = tuple(f"{row}:{model}" for row in rows)
    return TableConfig(str(model), rows=given, output=output, **(SMALL | options))


def rounds_of(output: Path) -> dict[str, list[dict[str, float]]]:
    rows = json.loads((output / "rounds.json").read_text("utf-8"))["rows"]
    return {name: row["rounds"] for name, row in rows.items()}


def test_a_table_from_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rows = [
        "f32=transformers-float32", "int8=ct2-int8", "wrong=torch-float32",
    ]  # fmt: skip
    flags = [flag for row in rows for flag in ("--row", f"{row}:{model if row[0] != 'w' else tmp_path}")]
    small = "--prefill 32 --batches 1 2 --prompt-tokens 8 --new-tokens 32 --threads 1 --repeats 2"
    command = ["table", "--no-default-rows", *flags, *small.split(), "-o", str(out), "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    first, second, failed = report["rows"]
    assert report["baseline"] == "f32" and failed["name"] == "wrong"
    # A row that can't be had is named with its reason, and stops no other.
    assert "no model recognised" in failed["failed"]
    for row in (first, second):
        assert list(row["figures"]) == TASKS and len(row["digest"]) == 64
        assert all(figure["n"] == 2 and figure["min"] > 0 for figure in row["figures"].values())
        assert row["tokens_per_s"]["2"]["median"] > 0 and row["load_s"]["n"] == 1
        memory = row["memory"]
        assert memory["base_mb"]["min"] < memory["loaded_mb"]["min"] <= memory["peak_mb"]["min"]
    # CTranslate2 runs in a process that never imports torch.
    assert second["memory"]["peak_mb"]["max"] < 200 < first["memory"]["base_mb"]["min"]
    ratio = second["against"]["1"]
    assert ratio["medians"] == pytest.approx(
        first["figures"]["1"]["median"] / second["figures"]["1"]["median"]
    )
    pairs = zip(*(rounds_of(out)[name] for name in ("f32", "int8")), strict=True)
    assert ratio["paired"] == summary([base["1"] / ours["1"] for base, ours in pairs])
    assert [target["met"] for target in report["targets"]] == [
        ratio["medians"] >= 2.27,
        max(second["memory"][n]["median"] / first["memory"][n]["median"] for n in ("peak_mb", "used_mb"))
        <= 0.5,
    ]
    assert report["machine"]["cores"] and "torch" in first["versions"]
    page = (out / "table.md").read_text("utf-8")
    assert "**wrong** was not measured: " in page and "| int8 |" in page
    for block in page.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1
    assert json.loads((out / "table.json").read_text("utf-8")) == report
    assert not list(out.glob(".*"))


def test_a_stopped_run_goes_on_with_the_next_round(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    settings = config(model, out, ("a=ct2-float32", "b=ct2-int8"), repeats=3)
    real, asked = table_rounds.figure, [0]

    def stopped(*arguments: Any) -> float:
        asked[0] += 1
        # Both alone, both warmed up, one whole round, and one task of the second.
        if asked[0] > 3 * 2 * len(TASKS) + 1:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(table_rounds, "figure", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure_table(settings, SandboxOptions())
    kept = rounds_of(out)
    assert [len(rounds) for rounds in kept.values()] == [1, 1]
    # The table is there after each round.
    assert json.loads((out / "table.json").read_text("utf-8"))["settings"]["repeats"] == 1
    monkeypatch.setattr(table_rounds, "figure", real)
    report = measure_table(settings, SandboxOptions())
    assert {name: rounds[0] for name, rounds in rounds_of(out).items()} == {
        name: rounds[0] for name, rounds in kept.items()
    }
    assert [row["figures"]["1"]["n"] for row in report["rows"]] == [3, 3]
    monkeypatch.setattr(table_rounds, "figure", stopped)  # nothing is left to measure
    assert measure_table(settings, SandboxOptions())["rows"] == report["rows"]
    with pytest.raises(ValueError, match="figures of another work"):
        measure_table(config(model, out, ("a=ct2-float32", "b=ct2-int8"), prefill=16), SandboxOptions())


def test_rows_that_do_not_fit_together_are_loaded_in_turn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_rounds, "fit_together", lambda jobs: False)
    started: list[str] = []
    real = Child.__init__

    def counted(self: Child, settings: dict[str, Any], *rest: Any) -> None:
        started.append(Path(settings["path"]).name)
        real(self, settings, *rest)

    monkeypatch.setattr(Child, "__init__", counted)
    rows = ("a=ct2-float32", "b=ct2-int8")
    report = measure_table(config(model, tmp_path / "out", rows), SandboxOptions())
    assert "loaded anew in each round" in report["notes"][0]
    assert [row["load_s"]["n"] for row in report["rows"]] == [2, 2]
    # Each alone, then two rounds, which begin with another row.
    a, b = started[:2]
    assert a != b and started[2:] == [a, b, b, a]


def test_a_row_that_is_killed_stops_no_other(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = table_rounds.figure, {"b": 0}

    def deadly(child: Child, *rest: Any) -> float:
        if child.described["compute_type"].startswith("int8"):
            asked["b"] += 1
            if asked["b"] == 3 * len(TASKS) + 1:  # in the second round
                os.kill(child.pid, signal.SIGKILL)
        return real(child, *rest)

    monkeypatch.setattr(table_rounds, "figure", deadly)
    rows = ("a=ct2-float32", "b=ct2-int8")
    report = measure_table(config(model, tmp_path / "out", rows, repeats=3), SandboxOptions())
    first, second = report["rows"]
    assert first["figures"]["1"]["n"] == 3
    assert "killed" in second["failed"] and "figures" not in second


def test_too_little_memory_is_found_before_loading(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_rounds, "available_memory", lambda: 500_000_000)
    report = measure_table(config(model, tmp_path / "out", ("a=ct2-int8",)), SandboxOptions())
    assert "needs about 0.6 GB of memory, 0.5 GB are available" in report["rows"][0]["failed"]


def test_no_row_at_all_is_an_error(tmp_path: Path) -> None:
    settings = TableConfig("x", rows=("a=ct2:/nowhere/at/all",), output=tmp_path / "out", **SMALL)
    with pytest.raises(ModelError, match=r"no row can be measured: a: no model '/nowhere/at/all'"):
        measure_table(settings, SandboxOptions())


def test_a_gguf_file_becomes_one_folder_for_all_rows(model: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model)
    rows = default_rows(str(file))
    folders = {prepare_row(row, tmp_path / "made").source.path for row in rows if row.engine != "ct2"}
    assert len(folders) == 1 and folders.pop().parent == tmp_path / "made"
    assert prepare_row(parse_row(f"x=llama:{file}"), tmp_path / "made").source.path == file
    with pytest.raises(ModelError, match=r"llama\.cpp reads GGUF files"):
        prepare_row(parse_row(f"x=llama:{model}"), tmp_path / "made")


def measured(engine: str, described: dict[str, str], step: float, peak: float) -> dict[str, Any]:
    memory = {each: {"median": peak} for each in ("peak_mb", "used_mb")}
    figures = {"1": {"median": step}}
    return {
        "name": engine, "engine": engine, "described": described, "figures": figures, "memory": memory
    }  # fmt: skip


def test_targets_are_told_as_they_come_out() -> None:
    base = measured("transformers", {"dtype": "float32"}, 227, 1000)
    ours = measured("ct2", {"compute_type": "int8_float32"}, 100, 500)
    assert [(each["figure"], each["met"]) for each in targets([base, ours])] == [
        ("2.27", True), ("0.50 and 0.50", True),
    ]  # fmt: skip
    slow = measured("ct2", {"compute_type": "int8_float32"}, 101, 501)
    slow["paired"] = {"a": "transformers", "difference": -0.02, "interval": {"low": -0.051, "high": 0.01}}
    assert [each["met"] for each in targets([slow, base])] == [False, False, False]
    assert [each["met"] for each in targets([base])] == [None, None]


def test_the_paper_is_set_beside_its_own_shape(model: Path, tmp_path: Path) -> None:
    report = measure_table(config(model, tmp_path / "out", ("a=ct2-int8",)), SandboxOptions())
    assert "Beside the paper" not in markdown(report)
    report["rows"][0]["paper"] = {"memory_gb": 16.29, "ms_per_token": 33}
    report["rows"][0]["memory"]["device_mb"] = {"median": 15_810.0, "min": 1.0, "max": 2.0, "n": 2}
    report["rows"][0]["figures"]["1"] = {"median": 8.0, "min": 7.9, "max": 8.1, "n": 2}
    assert "| a | 15.81 | 16.29 | 8.0 (7.9 to 8.1) | 33 |" in markdown(report)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": ("a",)}, "--row 'a': expected NAME=ENGINE"),
        ({"rows": ("a=vllm:b",)}, "engines: transformers, ct2, torch, llama"),
        ({"rows": ("a=ct2-int3:b",)}, "int3 is no type of ct2"),
        ({"rows": ("a=transformers:b",)}, "say the type, such as transformers-bfloat16:b"),
        ({"rows": ()}, "no rows"),
        ({"rows": ("a=ct2:b", "a=ct2:c")}, "two rows are called 'a'"),
        ({"rows": ("a=llama:b.gguf",)}, "--llama-python"),
        ({"baseline": "z"}, "--baseline 'z' is none of the rows: a"),
        ({"passk": ("z=/tmp",)}, "--passk 'z' is none of the rows"),
        ({"passk": ("a=/nowhere/at/all",)}, "--passk"),
        ({"device": "tpu"}, "--device tpu"),
        ({"repeats": 0}, "--repeats"),
        ({"new_tokens": 1}, "--new-tokens"),
    ],
)
def test_wrong_use_names_the_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableConfig("m", **(SMALL | {"rows": ("a=ct2:b",)} | options))


def test_a_row_replaces_the_default_of_its_name() -> None:
    rows = TableConfig("m", rows=("CTranslate2 int8=ct2:./mine", "gptq4=torch:./q4")).all_rows()
    assert [row.name for row in rows] == [
        "transformers float32", "transformers bfloat16", "CTranslate2 float32", "torch engine bfloat16",
        "CTranslate2 int8", "gptq4",
    ]  # fmt: skip
    assert rows[-2].spec == "ct2:./mine"
    assert TableConfig("m").base() == "transformers float32"
