"""Folders whose settings and tensors disagree, or that lack something: as transformers has it, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from tiny_models import CONFIGS, TOKENS, tokens, write_gguf, write_hf

from convert import ct2, gguf_writer, hf
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source


def settle(folder: Path, **changes: Any) -> Path:
    """Change config.json; None takes a key out."""
    path = folder / "config.json"
    settings = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}), "utf-8")
    return folder


def change(folder: Path, name: str, value: Any) -> Path:
    """Replace or add a tensor; None takes it out."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def transformers_logits(folder: Path, ids: list[int]) -> np.ndarray[Any, Any]:
    import torch
    import transformers

    causal: Any = transformers.AutoModelForCausalLM
    model = causal.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor([ids])).logits[0].numpy()
    return found


def assert_equal_logits(folder: Path, out: Path, source: Source | None = None) -> None:
    """The float32 conversion of `source`, else of `folder`, gives transformers' logits of `folder`."""
    ids = np.random.default_rng(1).integers(3, TOKENS, 60).tolist()
    expected = transformers_logits(folder, ids)
    source = source or Source(folder, Kind.HF, "m")
    ct2.convert(source, out, quantization="float32", progress=False)
    generator = ctranslate2.Generator(str(out), compute_type="float32")
    found = np.array(generator.forward_batch([[tokens()[i] for i in ids]]))[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
    ],
    ids=["linear", "yarn"],
)
def test_a_rotary_scaling_beside_transformers_5s_own_key_counts(
    scaling: dict[str, Any], tmp_path: Path
) -> None:
    """Vendors say to add it; a folder that transformers 5 saved has the other key already."""
    folder = settle(write_hf(tmp_path / "model", "qwen2"), rope_scaling=scaling)
    assert "rope_parameters" in json.loads((folder / "config.json").read_text("utf-8"))
    assert_equal_logits(folder, tmp_path / "out")


def test_a_tied_model_with_two_matrices_has_two(tmp_path: Path) -> None:
    import torch

    folder = write_hf(tmp_path / "model", "qwen2")
    change(folder, "lm_head.weight", torch.randn(128, 32))
    assert_equal_logits(folder, tmp_path / "ct2")
    source = Source(folder, Kind.HF, "m")
    plain = hf.convert(source, tmp_path / "hf", progress=False)
    assert json.loads((plain / "config.json").read_text("utf-8"))["tie_word_embeddings"] is False
    ids = list(range(3, 40))
    assert np.array_equal(transformers_logits(plain, ids), transformers_logits(folder, ids))
    file = tmp_path / "model.gguf"
    gguf_writer.write_gguf(source, file, "f32", progress=False)
    assert_equal_logits(folder, tmp_path / "back", Source(file, Kind.GGUF, "m"))


def test_biases_that_the_settings_rule_out_are_not_used(tmp_path: Path) -> None:
    folder = settle(write_hf(tmp_path / "model", "llama-biased"), attention_bias=False, mlp_bias=False)
    assert_equal_logits(folder, tmp_path / "ct2")
    file = tmp_path / "model.gguf"
    gguf_writer.write_gguf(Source(folder, Kind.HF, "m"), file, "f32", progress=False)
    assert_equal_logits(folder, tmp_path / "back", Source(file, Kind.GGUF, "m"))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama", "lm_head.weight"),
        ("llama", "model.layers.1.mlp.up_proj.weight"),
        ("llama-biased", "model.layers.1.mlp.up_proj.bias"),
        ("qwen2", "model.layers.1.self_attn.k_proj.bias"),
        ("starcoder", "transformer.h.1.mlp.c_fc.bias"),
        ("starcoder2", "model.layers.1.self_attn.o_proj.bias"),
    ],
)
def test_a_missing_tensor_is_named_by_every_command(name: str, tensor: str, tmp_path: Path) -> None:
    """Transformers would make it up."""
    source = Source(change(write_hf(tmp_path / "model", name), tensor, None), Kind.HF, "m")
    for convert in (ct2.convert, hf.convert):
        with pytest.raises(ModelError, match=rf"{tensor} is missing"):
            convert(source, tmp_path / "out", progress=False)
    with pytest.raises(ModelError, match=rf"{tensor} is missing"):
        gguf_writer.write_gguf(source, tmp_path / "out.gguf", "f32", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_folder_of_a_gguf_file_that_lacks_a_tensor_is_not_written(tmp_path: Path) -> None:
    folder = change(write_hf(tmp_path / "model", "llama"), "model.layers.1.mlp.up_proj.weight", None)
    file = write_gguf(tmp_path / "model.gguf", folder)
    with pytest.raises(ModelError, match=r"blk\.1\.ffn_up\.weight is missing"):
        hf.convert(Source(file, Kind.GGUF, "m"), tmp_path / "out", progress=False)


def test_a_single_file_comes_before_the_shards_of_an_older_save(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", "llama")
    older = write_hf(tmp_path / "older", "llama", shard="30KB", seed=7)
    for path in older.glob("*.safetensors*"):
        path.rename(folder / path.name)
    assert (folder / "model.safetensors.index.json").is_file()
    assert_equal_logits(folder, tmp_path / "out")


def test_attention_that_is_not_scaled_is_refused(tmp_path: Path) -> None:
    folder = settle(write_hf(tmp_path / "model", "starcoder"), scale_attn_weights=False)
    with pytest.raises(ModelError, match="scale_attn_weights"):
        ct2.convert(Source(folder, Kind.HF, "m"), tmp_path / "out", progress=False)


def test_absent_keys_mean_what_they_mean_to_transformers(tmp_path: Path) -> None:
    folder = settle(write_hf(tmp_path / "phi3", "phi3"), rms_norm_eps=None)
    assert_equal_logits(folder, tmp_path / "out")
    folder = write_hf(tmp_path / "mistral", "mistral")
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    del settings["sliding_window"]
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 8192}), "utf-8")
    card = read_card(ct2.convert(Source(folder, Kind.HF, "m"), tmp_path / "ct2", progress=False))
    assert card is not None and card.context_length == 4096


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling.type": "linear", "scaling.factor": 4.0},
        {"scaling.factor": 4.0},
        {"scale_linear": 4.0},
    ],
)
def test_linear_scaling_in_a_gguf_file_of_any_age(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gguf

    folder = write_hf(tmp_path / "model", "llama-linear-rope")
    assert CONFIGS["llama-linear-rope"][1]["rope_parameters"]["factor"] == 4.0

    class Writer(gguf.GGUFWriter):
        def add_block_count(self, length: int) -> None:
            super().add_block_count(length)
            for key, value in fields.items():
                put = self.add_string if isinstance(value, str) else self.add_float32
                put(f"llama.rope.{key}", value)

    monkeypatch.setattr(gguf, "GGUFWriter", Writer)
    file = write_gguf(tmp_path / "model.gguf", folder)
    assert_equal_logits(folder, tmp_path / "out", Source(file, Kind.GGUF, "m"))


@pytest.mark.parametrize("place", ["source", "destination"])
def test_names_that_are_not_utf_8_are_refused(place: str, tmp_path: Path) -> None:
    odd, plain = tmp_path / "b\udcff", tmp_path / "plain"
    here, there = (odd, plain) if place == "source" else (plain, odd)
    write_hf(plain, "llama").rename(here)
    for convert in (ct2.convert, hf.convert):
        with pytest.raises(ModelError, match="not UTF-8; rename it"):
            convert(Source(here, Kind.HF, "m"), there, progress=False)
    assert list(tmp_path.iterdir()) == [here]
