"""`rrtf-bench table --starcoder-shape` at a shape that takes seconds, on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.cli import main
from benchmarks.large_conversion import Shape
from benchmarks.table_rounds import Work
from benchmarks.table_starcoder import StarcoderConfig, measure_starcoder, write_packed
from convert.gptq_source import GptqSource
from rrtf_serve.models.source import Kind, detect_kind

TINY = Shape(layers=2, hidden=128, heads=4, ffn=512, vocabulary=512, positions=256)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_words_are_read_as_weights_of_the_right_spread(tmp_path: Path, bits: int) -> None:
    folder = write_packed(TINY, tmp_path / "packed", bits=bits)
    assert detect_kind(folder) is Kind.GPTQ
    source = GptqSource(folder)
    try:
        assert set(source.names) == set(TINY.tensors())
        assert source.settings.bits == bits and len(source.quantised) == 4 * TINY.layers
        for name, shape in TINY.tensors().items():
            assert source.shape(name) == shape
            values = source.rows(name, 0, shape[0])
            assert values.shape == shape and np.isfinite(values).all()
            if name in source.quantised:
                assert values.std() == pytest.approx(0.02, rel=0.05)
                # Half a step below 0: the range is even, the zero point one of it.
                assert abs(values.mean()) < 0.003
        first, second = (source.rows(f"transformer.h.{n}.attn.c_proj.weight", 0, 8) for n in range(2))
        assert not np.array_equal(first, second)
    finally:
        source.close()
    packed = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    linear = sum(s[0] * s[1] for n, s in TINY.tensors().items() if ".h." in n and len(s) == 2)
    assert packed > linear * bits / 8
    assert packed < 2 * TINY.parameters() - linear * (2 - bits / 8) + linear / 8 + 40_000


def test_sizes_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="whole number of groups of 128"):
        write_packed(replace(TINY, hidden=64, ffn=256), tmp_path / "packed", bits=4)


@pytest.mark.slow
def test_a_stand_in_is_measured_row_by_row(tmp_path: Path) -> None:
    work = Work(prefill=16, batches=(1,), prompt=8, new_tokens=32)
    config = StarcoderConfig(tmp_path / "out", work, repeats=2, threads=1, device="cpu", layers=1, shape=TINY)
    report = measure_starcoder(config)
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == [
        "transformers float16", "torch engine float16", "CTranslate2 int8", "torch engine GPTQ 8 bits",
        "torch engine GPTQ 4 bits",
    ]  # fmt: skip
    for name in list(rows)[:3]:
        assert rows[name]["figures"]["1"]["n"] == 2 and rows[name]["figures"]["1"]["min"] > 0
    # A GPTQ row is measured, or names what is missing; it stops no other.
    assert all("figures" in row or "gptqmodel" in row["failed"] for row in rows.values())
    page = (tmp_path / "out" / "table.md").read_text("utf-8")
    assert "**random weights**: memory and speed only" in page and "never calibrated" in page
    # What is no StarCoder is not held against the paper.
    assert "32.36" not in page and "stand-in of another size" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "rounds.json", "table.json", "table.md",
    ]  # fmt: skip
    again = measure_starcoder(config)
    assert again["rows"][0]["figures"] == report["rows"][0]["figures"]


def test_the_true_depth_needs_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["table", "--starcoder-shape", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "--starcoder-shape: needs a CUDA device" in error and "--layers 1" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--starcoder-shape", "--layers", "41"], "--layers 41"),
        (["--starcoder-shape", "--suite", "humaneval"], "--suite: --starcoder-shape"),
        (["--starcoder-shape", "--row", "a=ct2:b"], "--row: --starcoder-shape"),
        (["--layers", "1"], "--layers goes with --starcoder-shape"),
    ],
)
def test_wrong_use(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", *flags, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_the_configuration_says_gptq_in_both_places(tmp_path: Path) -> None:
    folder = write_packed(TINY, tmp_path / "packed", bits=4)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["n_layer"] == 2
    assert config["quantization_config"] == json.loads((folder / "quantize_config.json").read_text("utf-8"))
