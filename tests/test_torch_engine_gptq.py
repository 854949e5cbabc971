"""GPTQ folders in the torch engine on a CPU: the compiled kernels, and the dequantised model without them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_rows import GREEDY, answers, open_engine
from safetensors.torch import load_file, save_file
from test_gptq_source import packed
from test_native_decoder import distance, write

from rrtf_serve.engine.protocol import Request
from rrtf_serve.engine.torch import opening
from rrtf_serve.engine.torch.native import library
from rrtf_serve.engine.torch.opening import AnyDecoder, open_decoder
from rrtf_serve.models.errors import ModelError

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C++ compiler")
CPU = torch.device("cpu")
PROMPT = [int(token) for token in np.random.default_rng(1).integers(3, 131, 60)]
QUANTISED = re.compile(r"(_proj|c_attn|c_fc|attn\.c_proj|mlp\.c_proj)\.weight$")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def quantise(
    folder: Path, *, bits: int, group: int, ordered: bool = False, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Replace each matrix of the layers by a random quantised one; what they are worth, by name."""
    random = np.random.default_rng(bits)
    tensors = load_file(folder / "model.safetensors")
    worth = {}
    for name in [name for name in tensors if QUANTISED.search(name)]:
        outputs, inputs = tensors.pop(name).shape
        groups = 1 if group == -1 else math.ceil(inputs / group)
        members = np.arange(inputs) // (inputs if group == -1 else group)
        if ordered:
            random.shuffle(members)
        codes = random.integers(0, 2**bits, (inputs, outputs))
        zeros = random.integers(1, 2**bits, (groups, outputs))
        scales = random.uniform(0.5, 1, (groups, outputs)).astype(np.float16) * np.float16(0.6 / 2**bits)
        base = name.removesuffix(".weight")
        parts = {
            "qweight": packed(codes, bits),
            "qzeros": packed((zeros - 1).T, bits).T.copy(),
            "scales": scales,
        }
        tensors |= {f"{base}.{key}": torch.from_numpy(part) for key, part in parts.items()}
        if ordered:
            tensors[f"{base}.g_idx"] = torch.from_numpy(members.astype(np.int32))
        exact = (codes - zeros[members]) * scales[members].astype(np.float32)
        worth[name] = torch.from_numpy(np.ascontiguousarray(exact.T))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    said = {"bits": bits, "group_size": group, "quant_method": "gptq", "desc_act": ordered}
    configure(folder, quantization_config=said)
    return worth


def configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


def quantised(
    to: Path, name: str, *, bits: int, group: int, ordered: bool = False, **shape: Any
) -> tuple[Path, Path]:
    """A GPTQ folder, and a plain float32 one of the same worth."""
    folder, plain = write(to / "gptq", name, **shape), write(to / "plain", name, **shape)
    worth = quantise(folder, bits=bits, group=group, ordered=ordered)
    tensors = {key: value.float() for key, value in load_file(plain / "model.safetensors").items()}
    save_file(tensors | worth, plain / "model.safetensors", {"format": "pt"})
    configure(plain, dtype="float32")
    return folder, plain


def opened(folder: Path, dtype: str = "auto", bits: int | None = None) -> AnyDecoder:
    return open_decoder(folder, context_length=128, device=CPU, dtype=dtype, output_bits=bits)


def logits(decoder: AnyDecoder) -> torch.Tensor:
    with torch.inference_mode():
        return torch.cat(list(decoder.logits_of(PROMPT, decoder.new_slots(torch.float32), 0)))


WIDE = {"intermediate_size": 96}
CASES = [
    ("llama-biased", 4, 32, True, WIDE),
    ("qwen2", 8, 32, True, WIDE),
    ("qwen2", 3, 32, False, WIDE),
    ("qwen2", 4, -1, False, {}),
    ("starcoder", 4, 32, True, {"n_inner": 96}),
    ("starcoder-multi-head", 8, 32, True, {"n_inner": 96}),
    ("starcoder2", 4, 48, False, WIDE),  # no whole number of tiles: not for the kernels
    ("starcoder2", 4, 32, True, WIDE),
]


@pytest.mark.parametrize("case", CASES)
def test_a_gptq_folder_gives_what_its_weights_are_worth(
    case: tuple[str, int, int, bool, dict[str, Any]], tmp_path: Path
) -> None:
    name, bits, group, ordered, shape = case
    folder, plain = quantised(tmp_path, name, bits=bits, group=group, ordered=ordered, **shape)
    expected = logits(opened(plain))
    exact = opened(folder, "float32")
    assert (exact.kernels, exact.dtype) == ("torch", torch.float32)
    assert distance(logits(exact), expected) < 1e-5
    usual = opened(folder)
    assert usual.kernels == ("torch" if group == 48 else library.unit(library.load()))
    assert distance(logits(usual), expected) < 0.03  # activations in bfloat16, the output matrix in 8 bits


def test_a_quantised_output_matrix_is_used(tmp_path: Path) -> None:
    shape = {**WIDE, "vocab_size": 160, "tie_word_embeddings": False}
    folder, plain = quantised(tmp_path, "llama", bits=8, group=32, **shape)
    assert distance(logits(opened(folder)), logits(opened(plain))) < 0.03
    head = {"lm_head.weight": load_file(folder / "model.safetensors").pop("lm_head.weight")}
    said = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    codes = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (96, 160)))
    scales = np.full((3, 160), 0.001, np.float16)
    stored = packed(np.full((160, 3), 127), 8).T.copy()
    parts = {"qweight": packed(codes.numpy(), 8), "qzeros": stored, "scales": scales}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors.pop("lm_head.weight")
        tensors |= {f"lm_head.{key}": torch.from_numpy(part) for key, part in parts.items()}

    broken(folder, change)
    head["lm_head.weight"] = ((codes - 128) * 0.001).T.float().contiguous()
    broken(plain, lambda tensors: tensors.update(head))
    configure(folder, quantization_config={**said, "lm_head": True})
    assert distance(logits(opened(folder)), logits(opened(plain))) < 0.01


def test_greedy_answers_are_those_of_the_float32_model(tmp_path: Path) -> None:
    folder, plain = quantised(tmp_path, "qwen2", bits=4, group=32, ordered=True, **WIDE)
    requests = [Request(tuple(PROMPT[:size]), 20, frozenset(), GREEDY) for size in (1, 7, 30)]
    engines = open_engine(folder, dtype="float32"), open_engine(plain)
    found, expected = (answers(engine, requests) for engine in engines)
    assert found == expected
    for engine in engines:
        engine.close()


def test_without_a_compiler_the_model_runs_and_the_log_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder, plain = quantised(tmp_path, "qwen2", bits=4, group=32, **WIDE)
    library.load.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CXX", raising=False)
    try:
        decoder = opened(folder)
        assert "no C++ compiler found: install g++" in caplog.text
        assert (decoder.kernels, decoder.dtype) == ("torch", torch.bfloat16)
        assert distance(logits(decoder), logits(opened(plain))) < 0.03
        with pytest.raises(ValueError, match="--output-bits"):
            opened(folder, bits=4)
    finally:
        library.load.cache_clear()


def broken(folder: Path, change: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


BASE = "model.layers.1.self_attn.k_proj"


@pytest.mark.parametrize("dtype", ["auto", "float32"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(f"{BASE}.scales"), rf"tensor {BASE}\.scales is missing"),
        (
            lambda tensors: tensors.update({f"{BASE}.qzeros": tensors[f"{BASE}.qzeros"][:1].clone()}),
            rf"tensor {BASE}\.qzeros has the shape \(1, ",
        ),
        (
            lambda tensors: tensors.update({f"{BASE}.qweight": tensors[f"{BASE}.qweight"].to(torch.int8)}),
            rf"{BASE} is stored as int8, int32, int32, float16; codes, zeros and g_idx should be int32",
        ),
        (
            lambda tensors: tensors[f"{BASE}.g_idx"].fill_(9),
            rf"tensor {BASE}\.g_idx names groups from 9 to 9, there are 3",
        ),
        (
            lambda tensors: tensors.pop(f"{BASE}.g_idx"),
            rf"tensor {BASE}\.g_idx is missing, and by desc_act in the settings groups are not",
        ),
        (
            lambda tensors: tensors[f"{BASE}.scales"][0, :1].fill_(math.inf),
            rf"tensor {BASE}\.scales holds numbers that are NaN or infinite",
        ),
    ],
)
def test_parts_that_are_missing_or_do_not_fit_are_named(
    change: Any, message: str, dtype: str, tmp_path: Path
) -> None:
    folder, _ = quantised(tmp_path, "qwen2", bits=4, group=32, ordered=True, **WIDE)
    broken(folder, change)
    with pytest.raises(ModelError, match=message):
        opened(folder, dtype)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 5, "group_size": 32}, "bits is 5; read are 2, 3, 4, 8"),
        ({"bits": 4, "group_size": 0}, "group_size is 0"),
        ({"bits": 4, "group_size": 32, "checkpoint_format": "marlin"}, "in the format marlin"),
        (
            {"bits": 4, "group_size": 32, "dynamic": {"-:lm_head": {}, r"+:.*\.0\..*": {"bits": 8}}},
            "dynamic gives layers like .* other bits or groups",
        ),
    ],
)
def test_unknown_settings_are_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder, _ = quantised(tmp_path, "qwen2", bits=4, group=32, **WIDE)
    configure(folder, quantization_config={"quant_method": "gptq", **settings})
    for dtype in ("auto", "float32"):
        with pytest.raises(ModelError, match=message):
            opened(folder, dtype)


@pytest.mark.parametrize(
    "settings",
    [{"quant_method": "awq", "bits": 4}, {"quant_method": "fp8"}, {"quant_method": "bitsandbytes"}],
)
@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_other_ways_to_quantise_are_named(settings: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "odd", "qwen2", **WIDE)
    configure(folder, quantization_config=settings)
    with pytest.raises(ModelError, match=f"quantised by {settings['quant_method']} .* read are gptq"):
        opened(folder, dtype)


def test_settings_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    folder, _ = quantised(tmp_path, "qwen2", bits=4, group=32, ordered=True, **WIDE)
    expected = [logits(opened(folder, dtype)) for dtype in ("auto", "float32")]
    config = json.loads((folder / "config.json").read_text("utf-8"))
    settings = config.pop("quantization_config")
    del settings["quant_method"]
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "quantize_config.json").write_text(json.dumps(settings), "utf-8")
    for dtype, wanted in zip(("auto", "float32"), expected, strict=True):
        assert torch.equal(logits(opened(folder, dtype)), wanted)


def test_too_little_memory_says_what_would_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = quantised(tmp_path, "qwen2", bits=4, group=32, **WIDE)
    for error in (
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: not enough memory"),
    ):

        def full(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(opening, "NativeDecoder", full)
        with pytest.raises(ModelError, match=r"does not fit into the memory of this machine's cpu .* take"):
            opened(folder)


def test_half_a_shard_is_named(tmp_path: Path) -> None:
    folder, _ = quantised(tmp_path, "qwen2", bits=4, group=32, **WIDE)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for dtype in ("auto", "float32"):
        with pytest.raises(ModelError, match=r"model\.safetensors: damaged or cut short"):
            opened(folder, dtype)
