"""The measurement at StarCoder's shape, with a shape that takes a second."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from benchmarks.large_conversion import Shape, main, measure, require_disk
from rrtf_serve.models.errors import ModelError

TINY = Shape(layers=2, hidden=64, heads=4, ffn=256, vocabulary=512, positions=128)


def test_the_shape_is_starcoders() -> None:
    assert Shape().parameters() == 15_517_456_384
    assert Shape().tensors()["transformer.h.39.attn.c_attn.weight"] == (6400, 6144)


def test_a_tiny_shape_runs_through(tmp_path: Path) -> None:
    report = measure(TINY, tmp_path, limit_bytes=4_000_000_000)
    assert report["checkpoint_bytes"] == 2 * TINY.parameters()
    assert report["convert_peak_rss_bytes"] > 20e6
    assert report["load_seconds"] > 0 and report["two_tokens_seconds"] > 0
    assert TINY.parameters() < report["model_bytes"] < 1.2 * TINY.parameters()


def test_the_limit_is_real(tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        measure(TINY, tmp_path, limit_bytes=100_000_000, decode=False)


def test_no_two_tensors_are_alike(tmp_path: Path) -> None:
    """Equal ones would become aliases, and the result too small."""
    report = measure(TINY, tmp_path, limit_bytes=4_000_000_000, decode=False)
    assert not (tmp_path / "int8" / ".lock").exists()
    matrices = sum(rows[0] * rows[1] for rows in TINY.tensors().values() if len(rows) == 2)
    assert report["model_bytes"] > matrices


def test_a_short_disk_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=30_000_000_000))
    with pytest.raises(ModelError, match=r"30\.0 GB free, 40 layers need 47\.\d GB; --layers 25 fits"):
        require_disk(Shape(), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000_000))
    with pytest.raises(ModelError, match="not even one layer fits"):
        require_disk(Shape(), tmp_path)


def test_the_command_cleans_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--folder", str(tmp_path / "work"), "--layers", "1", "--no-decode"], TINY) == 0
    shape = json.loads(capsys.readouterr().out)["shape"]
    assert (shape["layers"], shape["hidden"]) == (1, 64)
    assert list((tmp_path / "work").iterdir()) == []
