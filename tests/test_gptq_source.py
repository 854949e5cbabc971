"""A GPTQ folder dequantised: every bit width, both zero conventions, with and without an order of columns."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_models import write_hf

from convert.ct2 import convert
from convert.gptq_source import GptqSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.gptq import unpack
from rrtf_serve.models.source import Kind
from rrtf_serve.models.store import Store

NAME = "model.layers.0.mlp.down_proj"  # 32 outputs, 64 inputs
GROUP = 16


def packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Columns of whole numbers (N, C) -> int32 words (N * bits / 32, C), by way of one long integer each."""
    count = len(values) * bits // 32
    columns = []
    for column in values.T:
        stream = sum(int(value) << bits * index for index, value in enumerate(column))
        columns.append(np.frombuffer(stream.to_bytes(4 * count, "little"), "<i4"))
    return np.stack(columns, axis=1)


def write_gptq(
    folder: Path, *, bits: int, kind: str = "gptq", ordered: bool = False, group: int = GROUP, seed: int = 0
) -> dict[str, np.ndarray]:
    """A folder with one quantised matrix per linear layer; what each is worth, by name."""
    write_hf(folder, "llama-biased")
    random = np.random.default_rng(seed)
    tensors = load_file(folder / "model.safetensors")
    expected = {}
    for name in [name for name in tensors if "_proj.weight" in name]:
        outputs, inputs = tensors.pop(name).shape
        base = name.removesuffix(".weight")
        groups = 1 if group == -1 else math.ceil(inputs / group)
        g_idx = (np.arange(inputs) // (inputs if group == -1 else group)).astype(np.int32)
        if ordered:
            random.shuffle(g_idx)
        values = random.integers(0, 2**bits, (inputs, outputs))
        zeros = random.integers(0, 2**bits, (groups, outputs))  # 0 is where a stored zero - 1 wraps round
        scales = random.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)
        stored = zeros if kind == "gptq_v2" else (zeros - 1) % 2**bits
        tensors |= {
            f"{base}.qweight": packed(values, bits),
            f"{base}.qzeros": packed(stored.T, bits).T.copy(),
            f"{base}.scales": scales,
        }
        if ordered:
            tensors[f"{base}.g_idx"] = g_idx
        worth = (values - zeros[g_idx]) * scales[g_idx].astype(np.float32)
        expected[name] = np.ascontiguousarray(worth.T, np.float32)
    save_file(tensors, folder / "model.safetensors")
    settings = {"bits": bits, "group_size": group, "quant_method": "gptq", "checkpoint_format": kind}
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": settings}), "utf-8")
    return expected


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(
    ("kind", "ordered", "group"), [("gptq", True, 16), ("gptq_v2", False, 16), ("gptq", False, -1)]
)
def test_rows_are_scale_times_value_less_zero(
    tmp_path: Path, bits: int, kind: str, ordered: bool, group: int
) -> None:
    expected = write_gptq(tmp_path, bits=bits, kind=kind, ordered=ordered, group=group)
    source = GptqSource(tmp_path)
    assert set(expected) == source.quantised
    for name, matrix in expected.items():
        assert source.shape(name) == matrix.shape
        assert source.precision(name) == bits
        assert np.array_equal(source.rows(name, 0, len(matrix)), matrix)
        assert np.array_equal(source.rows(name, 3, 9), matrix[3:9])
    assert not any(name.endswith(("qweight", "qzeros", "scales", "g_idx")) for name in source.names)
    assert source.shape("model.norm.weight") == (32,)
    source.close()


def test_values_that_cross_a_word_are_put_together() -> None:
    values = np.arange(32).reshape(-1, 1) % 8
    assert unpack(packed(values, 3).astype(np.int32), 3, 32).tolist() == values.tolist()
    # The eleventh value of three bits lies in two words.
    assert unpack(np.array([1 << 31, 1, 0], np.uint32).view(np.int32), 3, 32).tolist()[10] == 0b110


def test_converts_to_the_bytes_of_the_plain_model(tmp_path: Path) -> None:
    quantised, plain = tmp_path / "quantised", tmp_path / "plain"
    expected = write_gptq(quantised, bits=4, ordered=True)
    write_hf(plain, "llama-biased")
    tensors = load_file(plain / "model.safetensors") | expected
    save_file(tensors, plain / "model.safetensors")
    store = Store(tmp_path / "home")
    source = store.fetch(str(quantised), progress=False)
    assert source.kind is Kind.GPTQ
    one = convert(source, tmp_path / "a", quantization="float32", progress=False)
    two = convert(
        store.fetch(str(plain), progress=False), tmp_path / "b", quantization="float32", progress=False
    )
    assert (one / "model.bin").read_bytes() == (two / "model.bin").read_bytes()
    card = read_card(one)
    assert card is not None and card.source["kind"] == "gptq"


def test_older_folders(tmp_path: Path) -> None:
    """AutoGPTQ named the file after its settings and said them in quantize_config.json alone."""
    expected = write_gptq(tmp_path, bits=4)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    settings = config.pop("quantization_config")
    del settings["checkpoint_format"], settings["quant_method"]
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    (tmp_path / "quantize_config.json").write_text(json.dumps(settings), "utf-8")
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-16g.safetensors")
    source = GptqSource(tmp_path)
    assert np.array_equal(source.rows(f"{NAME}.weight", 0, 32), expected[f"{NAME}.weight"])
    source.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 5}, "bits is 5; read are 2, 3, 4, 8"),
        ({"bits": "4"}, "bits is '4'"),
        ({"group_size": 0}, "group_size is 0"),
        ({"quant_method": "awq"}, "quantised by awq in the format gptq"),
        ({"checkpoint_format": "marlin"}, "in the format marlin; read are gptq in gptq, gptq_v2"),
    ],
)
def test_settings_that_are_not_read_are_named(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    write_gptq(tmp_path, bits=4)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    config["quantization_config"] |= changes
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(ModelError, match=reason):
        GptqSource(tmp_path)


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("qzeros", np.zeros((4, 3), np.int32), r"down_proj.qzeros \(I32\) has the shape \(4, 3\)"),
        ("qweight", np.zeros((8, 32), np.int64), r"down_proj.qweight \(I64\)"),
        ("scales", np.zeros((4, 31), np.float16), r"down_proj.scales has the shape \(4, 31\)"),
        ("g_idx", np.full(64, 4, np.int32), "g_idx names groups from 4 to 4, there are 4"),
        ("g_idx", np.full(64, -1, np.int32), "g_idx names groups from -1 to -1"),
        ("qzeros", None, f"tensor {NAME}.qzeros is missing"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    tmp_path: Path, part: str, value: np.ndarray | None, reason: str
) -> None:
    write_gptq(tmp_path, bits=4, ordered=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[f"{NAME}.{part}"]
    if value is not None:
        tensors[f"{NAME}.{part}"] = value
    save_file(tensors, tmp_path / "model.safetensors")
    source = GptqSource(tmp_path)
    with pytest.raises(ModelError, match=reason):
        source.rows(f"{NAME}.weight", 0, 32)
    source.close()
