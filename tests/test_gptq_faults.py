"""The suspects of benchmarks.gptq_faults: each fault does what its name says, and all are measured."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from packed_gptq import write_packed
from tiny_models import write_hf

from benchmarks import gptq_faults
from benchmarks.gptq_faults import (
    SUSPECTS,
    FaultyGptq,
    Rounded,
    Rounding,
    ignored_order,
    measure_faults,
    one_group,
    shifted_zeros,
)
from convert.gptq_source import GptqSource
from convert.safetensors_source import SafetensorsSource
from convert.verify import Options
from rrtf_serve.models.errors import ModelError

NAME = "model.layers.0.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "tiny", "qwen2")


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(tmp_path_factory.mktemp("gptq") / "tiny8", model, shuffled=True)


def test_zero_points_off_by_one_move_every_weight_by_its_scale(checkpoint: Path) -> None:
    with (
        closing(GptqSource(checkpoint)) as right,
        closing(FaultyGptq(checkpoint, lambda layer, _: shifted_zeros(layer, -1))) as wrong,
    ):
        rows = right.shape(NAME)[0]
        layer = right.layer(NAME)
        moved = wrong.rows(NAME, 0, rows) - right.rows(NAME, 0, rows)
        assert np.allclose(moved, layer.scales[layer.groups].T, rtol=1e-3)


def test_ignoring_the_order_changes_only_a_shuffled_checkpoint(
    model: Path, checkpoint: Path, tmp_path: Path
) -> None:
    plain = write_packed(tmp_path / "plain", model)
    for folder, same in ((plain, True), (checkpoint, False)):
        with closing(GptqSource(folder)) as right, closing(FaultyGptq(folder, ignored_order)) as wrong:
            rows = right.shape(NAME)[0]
            assert np.array_equal(right.rows(NAME, 0, rows), wrong.rows(NAME, 0, rows)) is same
    with closing(GptqSource(checkpoint)) as source:
        assert set(one_group(source.layer(NAME)).groups) == {0}


def test_rounding_is_that_of_gptq(model: Path, tmp_path: Path) -> None:
    """The same values as an 8-bit checkpoint that was rounded to nearest."""
    folder = write_packed(tmp_path / "plain", model)
    with closing(GptqSource(folder)) as packed, closing(SafetensorsSource(model)) as source:
        rows = source.shape(NAME)[0]
        rounded = Rounded(source, Rounding(bits=8, group=16))
        assert np.allclose(rounded.rows(NAME, 0, rows), packed.rows(NAME, 0, rows), atol=1e-6)
        for name in ("model.embed_tokens.weight", "model.norm.weight"):
            rows = source.shape(name)[0]
            assert np.array_equal(rounded.rows(name, 0, rows), source.rows(name, 0, rows))


def test_fewer_bits_and_coarser_scales_err_more() -> None:
    rows = np.random.default_rng(0).normal(size=(64, 256)).astype(np.float32)
    rows[3, 5] = 20  # an outlier, which a scale for the whole matrix pays for everywhere
    largest = float(np.abs(rows).max())

    def error(rounding: Rounding) -> float:
        return float(
            np.square(rounding.applied(rows, largest if rounding.group == -1 else None) - rows).mean()
        )

    order = [Rounding(), Rounding(group=0), Rounding(group=-1)]
    assert error(order[0]) < error(order[1]) < error(order[2])
    assert error(Rounding(bits=8)) < error(Rounding(bits=6)) < error(Rounding(bits=4))
    levels = np.unique(Rounding(bits=4, group=-1).applied(rows, largest))
    assert len(levels) <= 16


def test_every_suspect_is_measured_once(
    model: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    options = Options(tokens=640, length=64, prompts=4, continuation=8)
    report = measure_faults(str(model), checkpoint, tmp_path / "out", options)
    kl = {name: parity["mean_kl"]["value"] for name, parity in report["suspects"].items()}
    assert list(kl) == [suspect.name for suspect in SUSPECTS]
    right = kl["GPTQ checkpoint, read rightly"]
    assert 0 < right < 0.01
    assert kl["GPTQ, zero points one too low"] > 3 * right
    assert kl["GPTQ, g_idx ignored"] > 3 * right
    assert kl["rounded to nearest, 4 bits"] > 30 * kl["rounded to nearest, group 128"]
    page = (tmp_path / "out" / "faults.md").read_text("utf-8")
    assert all(f"| {name} |" in page for name in kl)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["faults.json", "faults.md"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(gptq_faults.Reference, "open", refuse)
    assert measure_faults(str(model), checkpoint, tmp_path / "out", options) == json.loads(
        (tmp_path / "out" / "faults.json").read_text("utf-8")
    )


def test_one_suspect_is_written_for_other_benchmarks(
    model: Path,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    command = ["--model", str(model), "--gptq", str(checkpoint), "--output", str(tmp_path)]
    assert gptq_faults.main([*command, "--write", "GPTQ, g_idx ignored"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert (folder / "model.bin").is_file() and folder.parent == tmp_path
    assert gptq_faults.main([*command, "--write", "nonsense"]) == 1
    assert "'nonsense' is no suspect; there are: GPTQ checkpoint, read rightly; " in capsys.readouterr().err


def test_a_folder_that_is_not_gptq_is_refused(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    with pytest.raises(ModelError, match="is no GPTQ folder but a huggingface model"):
        measure_faults(str(model), model, tmp_path / "out", Options())
