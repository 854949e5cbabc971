"""`python -m benchmarks.output_bits` on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_native_decoder import write

from benchmarks.output_bits import main
from rrtf_serve.engine.torch.native import library

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C++ compiler")


def test_fewer_bits_cost_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "qwen2", "qwen2", vocab_size=128)
    assert main([str(folder), "--tokens", "256", "--length", "32", "--kv-dtype", "float32"]) == 0
    report = json.loads(capsys.readouterr().out)
    rows = {row["output_bits"]: row for row in report["rows"]}
    assert list(rows) == [16, 8, 4]
    costs = [rows[bits]["mean_kl"]["value"] for bits in (16, 8, 4)]
    assert 0 < costs[0] < costs[1] < costs[2] < 0.5
    assert {row["mean_kl"]["n"] for row in rows.values()} == {256}
    assert "greedy_divergence" not in rows[16]


def test_a_folder_that_is_none_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "absent")]) == 2
    assert "absent" in capsys.readouterr().err
