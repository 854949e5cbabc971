"""One TOML file for all stages: what is read, overridden, refused and compared."""

from pathlib import Path

import pytest

from training.config import apply, config_of, differences, read_config, resolved
from training.sources import Source
from training.tables import build, parse_value

TEXT = """
folder = "runs/a"
problems = ["mbpp-stubs-train"]
limit = 5

[[source]]
name = "small.v1"
role = "student"
model = "tiny"
temperatures = [0, 0.8]

[[source]]
name = "experts"
role = "teacher"
kind = "reference"

[judge]
site_packages = ["packages"]

[rank]
tie_gap = 1

[fit]
lr = 1e-5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    return path


def test_every_stage_gets_its_options(file: Path) -> None:
    config = read_config(file)
    assert (config.folder, config.sample.problems, config.sample.limit) == (
        Path("runs/a"), ("mbpp-stubs-train",), 5,
    )  # fmt: skip
    student, experts = config.sample.sources
    assert (student.temperatures, student.k, experts.kind) == ((0.0, 0.8), 8, "reference")
    assert config.judge.site_packages == (Path("packages"),)
    assert config.rank.tie_gap == 1.0
    assert config.fit is not None
    assert (config.fit.model, config.fit.lr, config.fit.output, config.fit.tuples) == (
        "tiny", 1e-5, Path("runs/a/fit"), Path("runs/a/tuples.jsonl"),
    )  # fmt: skip


def test_settings_override_the_file(file: Path) -> None:
    config = read_config(
        file,
        ["source.small.v1.k=16", "rank.tie_gap=0", "judge.workers=3", "fit.method=sft", "format=completion",
         'problems=["leetcode-fit"]', "fit.gradient_checkpointing=true"],
        Path("elsewhere"),
    )  # fmt: skip
    assert (config.sample.sources[0].k, config.rank.tie_gap, config.judge.workers) == (16, 0.0, 3)
    assert config.fit is not None
    assert (config.fit.method, config.fit.gradient_checkpointing) == ("sft", True)
    assert (config.sample.format, config.sample.problems) == ("completion", ("leetcode-fit",))
    assert (config.folder, config.fit.output) == (Path("elsewhere"), Path("elsewhere/fit"))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("rank", "--set rank: must be KEY=VALUE"),
        ("rank.=1", "--set rank.=1: must be KEY=VALUE"),
        ("source.nobody.k=1", "no source is called 'nobody'; there are: small.v1, experts"),
        ("limit.x=1", "--set limit.x=1: limit is no table"),
        ("rank.tie=1", r"\[rank\]: unknown key 'tie'; known: chosen_from, "),
        ("rank.tie_gap=much", r"\[rank\]: tie_gap must be float, not 'much'"),
        ("rank.tie_gap=-1", r"\[rank\]: --tie-gap must be 0 or more"),
        ("fit.epochs=true", r"\[fit\]: epochs must be int, not True"),
        ("fit.output=x", r"\[fit\]: unknown key 'output'"),
        ("source.experts.k=many", r"\[\[source\]\] experts: k must be int, not 'many'"),
        ("source.experts.role=boss", r"\[\[source\]\] experts: source experts: --role boss"),
        ("problems=mbpp-stubs-train", "problems must be a list, not 'mbpp-stubs-train'"),
        ("epochs=3", "unknown key 'epochs'; known: data_dir, fit, folder, format, judge, "),
        ("judge=3", r"judge is a table, \[judge\]"),
    ],
)
def test_what_is_wrong_is_named(file: Path, setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_config(file, [setting])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.toml: No such file"):
        read_config(tmp_path / "gone.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("folder = ")
    with pytest.raises(ValueError, match=r"broken\.toml: not valid TOML"):
        read_config(broken)
    with pytest.raises(ValueError, match="x: folder is missing"):
        config_of({"problems": ["a"]}, "x")
    with pytest.raises(ValueError, match="x: problems is missing"):
        config_of({"folder": "f"}, "x")
    with pytest.raises(ValueError, match=r"\[\[source\]\] 1: name is missing"):
        config_of({"folder": "f", "problems": ["a"], "source": [{"role": "student"}]}, "x")
    with pytest.raises(ValueError, match="two pairs of brackets"):
        config_of({"folder": "f", "problems": ["a"], "source": {"name": "s"}}, "x")
    experts = {"name": "e", "role": "teacher", "kind": "reference"}
    with pytest.raises(ValueError, match=r"\[fit\]: model is missing, .* are none"):
        config_of({"folder": "f", "problems": ["a"], "source": [experts], "fit": {}}, "x")


def test_only_what_decides_a_result_counts_as_a_difference(file: Path) -> None:
    def of(*settings: str) -> dict[str, dict[str, object]]:
        return resolved(read_config(file, settings))

    before = of()
    assert differences(before["judge"], of("judge.workers=7")["judge"], "judge") == []
    assert differences(before["sample"], of("data_dir=/d")["sample"], "sample") == []
    assert differences(before["sample"], of("source.small.v1.k=9")["sample"], "sample") == [
        "source.small.v1.k: 8, now 9"
    ]
    table = {"folder": "f", "problems": ["mbpp-train"]}
    one = {"name": "a", "role": "student", "model": "m"}
    first = resolved(config_of({**table, "source": [one]}, "x"))["sample"]
    second = resolved(config_of({**table, "source": [one, {**one, "name": "b"}]}, "x"))["sample"]
    assert differences(first, second, "sample") == ["source.b: absent, now present"]


def test_values_are_read_as_toml_has_them() -> None:
    assert [parse_value(text) for text in ("1", "1e-5", "true", "[1, 2]", '"1"', "qwen2.5-coder")] == [
        1, 1e-5, True, [1, 2], "1", "qwen2.5-coder",
    ]  # fmt: skip
    table: dict[str, object] = {}
    apply(table, "rank.seed=4")
    assert table == {"rank": {"seed": 4}}
    with pytest.raises(ValueError, match=r"here: temperatures must be float, not 'hot'"):
        build(Source, {"name": "a", "role": "student", "temperatures": ["hot"]}, "here")


@pytest.mark.parametrize("source", ["[source]\nname = 's'", "source = 5", "source = [5]"])
def test_sources_that_are_no_tables_are_refused_before_a_setting_looks_for_one(
    source: str, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"folder = 'f'\nproblems = ['p']\n{source}\n")
    with pytest.raises(ValueError, match=r"run\.toml: sources are \[\[source\]\] tables"):
        read_config(path, ["source.s.k=1"])


@pytest.mark.parametrize("value", ["[" * 3000, "9" * 5000, "\x00"])
def test_what_the_parser_of_toml_chokes_on_names_the_file(value: str, tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"folder = {value}")
    with pytest.raises(ValueError, match=r"run\.toml: not valid TOML"):
        read_config(path)
