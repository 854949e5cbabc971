"""The compiled CPU kernels, held against transformers with the same roundings, and against themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, write_hf

from rrtf_serve.engine.torch.native import library
from rrtf_serve.engine.torch.native.checkpoint import NotNativeError
from rrtf_serve.engine.torch.native.decoder import NativeDecoder
from rrtf_serve.engine.torch.native.packing import PackingError, pack_gptq, pack_plain, pack_rounded
from rrtf_serve.engine.torch.slots import Slots
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.gptq import GptqSettings

pytestmark = pytest.mark.skipif(library.find_compiler() is None, reason="needs a C++ compiler")
# Heads of 16, a feed-forward part that is no whole number of tiles deep, an odd vocabulary.
_WIDER: dict[str, Any] = {
    "hidden_size": 96, "intermediate_size": 80, "num_attention_heads": 6, "vocab_size": 131
}  # fmt: skip
_BIGCODE: dict[str, Any] = {"n_embd": 96, "n_inner": 80, "n_head": 6, "vocab_size": 131}
NAMES = [
    "llama", "llama-biased", "llama-linear-rope", "llama-llama3-rope", "qwen2", "qwen2-yarn",
    "starcoder", "starcoder-multi-head", "starcoder2", "starcoder2-unwindowed",
]  # fmt: skip
PROMPT = [int(token) for token in np.random.default_rng(0).integers(3, 131, 90)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=range(len(library.UNITS)))
def unit(request: pytest.FixtureRequest) -> Iterator[int]:
    kernels = library.load()
    best = kernels.best()
    if request.param > best:
        pytest.skip(f"this processor has no {library.UNITS[request.param]}")
    kernels.use(request.param)
    yield request.param
    kernels.use(best)


def write(folder: Path, name: str, **changes: Any) -> Path:
    kind, options = CONFIGS[name]
    wider = _BIGCODE if name.startswith("starcoder") and "2" not in name else _WIDER
    if name == "llama-biased":
        wider = wider | {"num_key_value_heads": 6}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            tiny_models.CONFIGS, name, (kind, {**options, "initializer_range": 0.1, **wider, **changes})
        )
        return write_hf(folder, name, dtype="bfloat16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("native") / "qwen2", "qwen2")


def rounded_reference(folder: Path) -> Any:
    """transformers in float32, with the inputs of every matrix rounded to bfloat16 as the kernels do it."""
    causal: Any = transformers.AutoModelForCausalLM
    model = causal.from_pretrained(folder, dtype=torch.float32)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, given: (given[0].bfloat16().float(),))
    return model.eval()


def reference_logits(folder: Path, prompt: list[int]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = rounded_reference(folder)(torch.tensor([prompt])).logits[0]
    return found


def all_logits(decoder: NativeDecoder, prompt: list[int], slots: Slots | None = None) -> torch.Tensor:
    return torch.cat(list(decoder.logits_of(prompt, slots or decoder.new_slots(torch.float32), 0)))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_those_of_transformers_with_the_same_roundings(
    name: str, tmp_path: Path, unit: int
) -> None:
    folder = write(tmp_path / name, name)
    expected = reference_logits(folder, PROMPT)
    found = all_logits(NativeDecoder(folder, context_length=128), PROMPT)
    assert found.shape == expected.shape == (90, 131)
    # Sums in another order now and then round an activation the other way: 2^-9 of it.
    assert distance(found, expected) < 2e-3
    assert distance(found, reference_logits(folder, PROMPT[::-1])) > 0.1  # what a wrong model gives


def test_16_bit_keys_and_values_cost_no_more_than_their_rounding(folder: Path) -> None:
    decoder = NativeDecoder(folder, context_length=128)
    exact = all_logits(decoder, PROMPT)
    assert 0 < distance(all_logits(decoder, PROMPT, decoder.new_slots()), exact) < 0.01
    with pytest.raises(ValueError, match="--kv-dtype"):
        decoder.new_slots(torch.float16)


@pytest.mark.parametrize("name", ["qwen2", "starcoder", "starcoder2"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_no_bit_depends_on_what_else_runs_or_on_how_a_prompt_was_cut(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"invariant-{name}"
    if not folder.is_dir():
        write(folder, name)
    decoder = NativeDecoder(folder, context_length=256)
    slots = decoder.new_slots()
    others = data.draw(st.integers(0, 20), label="other rows")
    prompts = [
        [(7 * row + 3 * at) % 131 for at in range(data.draw(st.integers(1, 40)))] for row in range(others)
    ]
    for row, prompt in enumerate(prompts, 1):
        decoder.prefill(prompt, slots, row, 0)
    plain = all_logits(decoder, PROMPT, decoder.new_slots())
    at = 0
    while at < len(PROMPT):
        size = data.draw(st.integers(1, 40), label="piece")
        some = PROMPT[at : at + size]
        if len(some) == 1 and others:
            rows = [0, *range(1, others + 1)]
            tokens = [some[0], *(5 for _ in range(others))]
            logits = decoder.decode(tokens, slots, rows, [at, *(len(prompt) for prompt in prompts)])[:1]
            for row, prompt in enumerate(prompts, 1):
                slots.truncate(row, len(prompt))
        else:
            logits = decoder.prefill(some, slots, 0, at)
        at += len(some)
        assert torch.equal(logits[0], plain[at - 1])


def _gptq(
    bits: int,
    group: int,
    *,
    offset: int = 1,
    ordered: bool = False,
    symmetric: bool = False,
    outputs: int = 64,
) -> tuple[dict[str, torch.Tensor], GptqSettings, torch.Tensor]:
    """Parts of a matrix with 96 inputs as a checkpoint stores them, and what they are worth."""
    from test_gptq_source import packed

    random = np.random.default_rng(bits)
    groups = 1 if group == -1 else -(-96 // group)
    members = np.arange(96) // (96 if group == -1 else group)
    if ordered:
        random.shuffle(members)
    values = random.integers(0, 2**bits, (96, outputs))
    zeros = random.integers(0, 2**bits, (groups, outputs))
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    scales = random.uniform(0.01, 0.1, (groups, outputs)).astype(np.float16)
    parts = {
        "qweight": torch.from_numpy(packed(values, bits)),
        "qzeros": torch.from_numpy(packed(((zeros - offset) % 2**bits).T, bits).T.copy()),
        "scales": torch.from_numpy(scales),
        "g_idx": torch.from_numpy(members.astype(np.int32)),
    }
    worth = (values - zeros[members]) * scales[members].astype(np.float32)
    return parts, GptqSettings(bits, group, offset), torch.from_numpy(worth.T.astype(np.float32))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [32, 64, -1])
@pytest.mark.parametrize("how_made", [(True, True, 1), (True, False, 0), (False, False, 1)])
def test_quantised_matrices_are_worth_what_they_say(
    bits: int, group: int, how_made: tuple[bool, bool, int], unit: int
) -> None:
    ordered, symmetric, offset = how_made
    parts, how, worth = _gptq(bits, group, offset=offset, ordered=ordered, symmetric=symmetric)
    bias = torch.randn(64)
    matrix = pack_gptq(parts, how, bias=bias)
    assert (matrix.zeros is None) == symmetric
    found = matrix.apply(torch.eye(96))
    torch.testing.assert_close(found, worth.T + bias, rtol=1e-6, atol=2e-6)
    rows = torch.randperm(64)
    torch.testing.assert_close(
        pack_gptq(parts, how, bias=bias, rows=rows).apply(torch.eye(96)), found[:, rows], rtol=0, atol=0
    )
    inputs = torch.randn(70, 96).bfloat16().float()
    torch.testing.assert_close(matrix.apply(inputs), inputs @ worth.T + bias, rtol=1e-4, atol=1e-4)


def test_groups_that_tiles_can_not_hold_are_refused() -> None:
    parts, how, _ = _gptq(4, 16)
    with pytest.raises(PackingError, match="groups of 16 inputs are not a multiple of 32"):
        pack_gptq(parts, how)
    parts, how, _ = _gptq(4, 32)
    parts["g_idx"][0] = 2
    with pytest.raises(PackingError, match="unequal size"):
        pack_gptq(parts, how)
    with pytest.raises(PackingError, match="groups of 64 do not divide 96"):
        pack_rounded(torch.randn(16, 96), 8, 64)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_to_the_nearest_of_a_group(bits: int, unit: int) -> None:
    weight = torch.randn(4096 + 100, 96) * torch.rand(4196, 1)
    weight[3] = 0
    found = pack_rounded(weight, bits, 32).apply(torch.eye(96)).T
    step = weight.reshape(-1, 3, 32).abs().amax(-1).div(2 ** (bits - 1) - 1).repeat_interleave(32, dim=1)
    assert bool(((found - weight).abs() <= 0.502 * step + 1e-4).all())
    assert not found[3].any()


@pytest.mark.parametrize("rows", [1, 3, 16, 17, 64, 65, 200])
def test_products_of_any_number_of_rows(rows: int, unit: int) -> None:
    torch.manual_seed(rows)
    weight, bias = torch.randn(131, 300).bfloat16(), torch.randn(131)
    inputs = torch.randn(rows, 300).bfloat16().float()
    found = pack_plain(weight, bias).apply(inputs)
    torch.testing.assert_close(found, inputs @ weight.float().T + bias, rtol=1e-4, atol=1e-3)


def test_a_table_that_is_tied_serves_as_the_output_matrix(folder: Path) -> None:
    plain = NativeDecoder(folder, context_length=128)
    eight, four = (NativeDecoder(folder, context_length=128, output_bits=bits) for bits in (8, 4))
    expected = all_logits(plain, PROMPT)
    assert 0 < distance(all_logits(eight, PROMPT), expected) < 0.02
    assert distance(all_logits(eight, PROMPT), expected) < distance(all_logits(four, PROMPT), expected) < 0.2
    assert four.weights_bytes < eight.weights_bytes < plain.weights_bytes


def _changed(folder: Path, to: Path, change: Any) -> Path:
    import shutil

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


def test_what_is_missing_or_misshapen_is_named(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    lacking = _changed(folder, tmp_path / "a", lambda tensors: tensors.pop(name))
    with pytest.raises(ModelError, match=f"tensor {name} is missing"):
        NativeDecoder(lacking, context_length=128)
    narrow = _changed(
        folder, tmp_path / "b", lambda tensors: tensors.update({name: tensors[name][:-1].contiguous()})
    )
    with pytest.raises(ModelError, match=rf"{name} has the shape \(79, 96\); config.json says \(80, 96\)"):
        NativeDecoder(narrow, context_length=128)
    path = _changed(folder, tmp_path / "c", lambda _: None) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match=r"model\.safetensors: damaged or cut short"):
        NativeDecoder(path.parent, context_length=128)
    path.unlink()
    with pytest.raises(ModelError, match=r"model\.safetensors: missing"):
        NativeDecoder(path.parent, context_length=128)


def _configured(folder: Path, to: Path, **values: Any) -> Path:
    folder = _changed(folder, to, lambda _: None)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")
    return folder


def test_an_untied_output_matrix_must_be_there(folder: Path, tmp_path: Path) -> None:
    untied = _configured(folder, tmp_path / "untied", tie_word_embeddings=False)
    with pytest.raises(ModelError, match=r"tensor lm_head\.weight, the output matrix, is missing"):
        NativeDecoder(untied, context_length=128)


def test_biases_are_those_of_the_family(folder: Path, tmp_path: Path) -> None:
    bigcode = write(tmp_path / "starcoder", "starcoder")
    for name in ("transformer.h.0.ln_1.bias", "transformer.h.1.attn.c_attn.bias"):
        lacking = _changed(bigcode, tmp_path / name, lambda tensors, name=name: tensors.pop(name))
        with pytest.raises(ModelError, match=f"tensor {name} is missing"):
            NativeDecoder(lacking, context_length=128)
    stray = {
        "model.layers.0.input_layernorm.bias": torch.ones(96),
        "model.layers.0.mlp.up_proj.bias": torch.ones(80),
    }
    more = _changed(folder, tmp_path / "stray", lambda tensors: tensors.update(stray))
    expected = all_logits(NativeDecoder(folder, context_length=128), PROMPT)
    assert torch.equal(all_logits(NativeDecoder(more, context_length=128), PROMPT), expected)


def test_a_window_counts_for_families_that_have_one(tmp_path: Path) -> None:
    plain = write(tmp_path / "llama", "llama")
    windowed = _configured(plain, tmp_path / "windowed", sliding_window=4)
    expected = all_logits(NativeDecoder(plain, context_length=128), PROMPT)
    assert torch.equal(all_logits(NativeDecoder(windowed, context_length=128), PROMPT), expected)


def test_numbers_that_make_no_model_are_named(folder: Path, tmp_path: Path) -> None:
    heads = _configured(folder, tmp_path / "heads", num_key_value_heads=4)
    with pytest.raises(ModelError, match="6 attention heads can't share 4 heads of keys and values"):
        NativeDecoder(heads, context_length=128)
    bigcode = write(tmp_path / "starcoder", "starcoder")
    short = _changed(
        bigcode, tmp_path / "short", lambda t: t.update({"transformer.wpe.weight": torch.zeros(8, 96)})
    )
    with pytest.raises(ModelError, match=r"wpe\.weight has the shape \(8, 96\); 128 positions of 96"):
        NativeDecoder(short, context_length=128)
    unscaled = _configured(bigcode, tmp_path / "unscaled", scale_attn_weights=False)
    with pytest.raises(NotNativeError, match="not scaled"):
        NativeDecoder(unscaled, context_length=128)


def test_shapes_that_vectors_can_not_hold_are_left_to_transformers(tmp_path: Path) -> None:
    with pytest.raises(NotNativeError, match="head size 8"):
        NativeDecoder(write_hf(tmp_path / "tiny", "qwen2"), context_length=128)
