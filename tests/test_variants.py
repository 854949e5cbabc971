"""`rrtf-bench variants` on a tiny model: records, resuming, and the tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_gguf import sentencepiece_fields
from tiny_gguf import write_gguf as write_vocabulary
from tiny_models import write_gguf, write_hf

from benchmarks import variants
from benchmarks.variants import VariantsConfig, base_of, measure_variants
from benchmarks.variants_table import markdown
from convert.ct2 import convert
from rrtf_serve.models.folder import read_card, write_card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.sandbox.options import SandboxOptions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "tiny", "qwen2")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))


def config(model: Path, output: Path, **options: Any) -> VariantsConfig:
    return VariantsConfig(str(model), output=output, tokens=640, length=64, **options)


def test_every_variant_is_measured_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = convert(Source(model, Kind.HF, "tiny"), tmp_path / "made", quantization="int8", progress=False)
    card = read_card(made)
    assert card is not None
    write_card(replace(card, recipe={"seconds": 12.5, "peak_rss_bytes": 7}), made)
    settings = config(model, tmp_path / "out", ct2=("float32", "int8"), folders=(f"given={made}",))
    report = measure_variants(settings, SandboxOptions())
    rows = {row["name"]: row for row in report["variants"]}
    assert list(rows) == ["float32", "int8", "given"]
    assert rows["float32"]["parity"]["mean_kl"]["value"] < 1e-8
    assert rows["int8"]["parity"]["mean_kl"] == rows["given"]["parity"]["mean_kl"]
    assert rows["int8"]["parity"]["mean_kl"]["value"] > 1e-6
    # They differ by what the cards say of the source.
    assert rows["int8"]["size_bytes"] == pytest.approx(rows["given"]["size_bytes"], abs=500)
    assert rows["int8"]["size_bytes"] < rows["float32"]["size_bytes"] - 10_000
    # A process of its own: without torch it stays far below this one.
    assert 10e6 < rows["int8"]["peak_bytes"] < 200e6 and rows["int8"]["seconds"] > 0
    assert (rows["given"]["seconds"], rows["given"]["peak_bytes"]) == (12.5, 7)
    assert all(row["base"] == "Hugging Face folder in float32" for row in rows.values())
    left = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert left == ["float32.json", "given.json", "int8.json", "variants.json", "variants.md"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(variants.Reference, "open", refuse)
    again = measure_variants(settings, SandboxOptions())
    assert again["variants"] == report["variants"]
    with pytest.raises(AssertionError, match="measured again"):  # another setting is another measurement
        measure_variants(config(model, tmp_path / "out", ct2=("int8",), seed=1), SandboxOptions())


def test_the_table_names_the_base_in_every_row(model: Path, tmp_path: Path) -> None:
    measure_variants(config(model, tmp_path / "out", ct2=("float32", "int8")), SandboxOptions())
    page = (tmp_path / "out" / "variants.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith(("| float32", "| int8"))]
    assert len(rows) == 2
    assert all("| Hugging Face folder in float32 |" in row for row in rows)
    header = next(line for line in page.splitlines() if line.startswith("| variant"))
    assert all(row.count("|") == header.count("|") for row in rows)
    assert "≥ 64" in rows[0]


def comparison(difference: float, low: float, not_worse: bool) -> dict[str, Any]:
    return {
        "difference": difference,
        "interval": {"low": low, "high": 0.03},
        "only_a": 5,
        "only_b": 3,
        "p_value": 0.727,
        "not_worse": not_worse,
    }


def test_the_paired_table(model: Path, tmp_path: Path) -> None:
    report = measure_variants(config(model, tmp_path / "out", ct2=("float32", "int8")), SandboxOptions())
    suite = {"passed": 84, "problems": 164, "value": 84 / 164, "interval": {"low": 0.44, "high": 0.59}}
    report |= {"suite": "humaneval", "against": "float32", "margin": 0.05}
    for row, compared in zip(report["variants"], (None, comparison(-0.0122, -0.046, True)), strict=True):
        row |= {"suite": suite, "comparison": compared}
    page = markdown(report)
    assert "| int8 | Hugging Face folder in float32 | 84 of 164 | 51.2% (44.0% to 59.0%) | " in page
    assert "-1.2 points (-4.6 to +3.0) | 5 | 3 | 0.727 | shown |" in page
    assert "lies above -5 points" in page


def test_the_base_of_a_gguf_file_is_its_type(model: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "a.gguf", model)
    assert base_of(Source(file, Kind.GGUF, "a")) == "dequantised GGUF of an unknown type"
    fields = {f"ggml.{key}": value for key, value in {}.items()} | sentencepiece_fields(["a"])
    path = write_vocabulary(tmp_path / "b.gguf", fields)
    assert base_of(Source(path, Kind.GGUF, "b")).startswith("dequantised GGUF")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ct2": ("int4",)}, "--ct2 'int4'"),
        ({"ct2": (), "folders": ()}, "no variants"),
        ({"ct2": ("int8",), "folders": ("int8=/tmp",)}, "two variants are called 'int8'"),
        ({"ct2": ("int8",), "folders": ("/nowhere/at/all",)}, "--folder /nowhere/at/all"),
        ({"ct2": ("int8",), "suite": "humaneval"}, "--against 'float32' is none of the variants"),
        ({"margin": 5.0}, "--margin is 5.0"),
    ],
)
def test_wrong_use_names_the_flag(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        VariantsConfig("model", output=tmp_path, **options)
