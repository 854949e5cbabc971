"""LoRA adapters merged while they are read: PEFT's own merge is the reference."""

from __future__ import annotations

import json
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import write_hf

from convert.adapter_source import AdapterSource
from convert.safetensors_source import SafetensorsSource
from rrtf_serve.models.errors import ModelError

LORA_TARGETS = ["q_proj", "v_proj", "down_proj"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "llama", "llama")


def write_adapter(base: Path, folder: Path, targets: list[str], **options: Any) -> dict[str, Any]:
    """A PEFT adapter with random A and B, and what PEFT itself merges it to, by tensor name."""
    import peft

    with warnings.catch_warnings():  # PEFT's own: deprecated calls, advice about tied layers
        warnings.simplefilter("ignore")
        return _write_adapter(base, folder, peft.LoraConfig(target_modules=targets, **options))


def _write_adapter(base: Path, folder: Path, config: Any) -> dict[str, Any]:
    import peft
    import torch
    import transformers

    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(model, config)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload()
    return {name: tensor.numpy().copy() for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [
        {"r": 4, "lora_alpha": 12},
        {"r": 4, "lora_alpha": 12, "use_rslora": True},
        {"r": 4, "lora_alpha": 12, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 7}},
        {"r": 2, "lora_alpha": 3, "alpha_pattern": {"layers.0.self_attn.q_proj": 9}},
        {"r": 2, "lora_alpha": 3, "alpha_pattern": {"^model.layers.1.mlp.down_proj": 9}},
    ],
    ids=["plain", "rslora", "patterns", "module", "anchored"],
)
def test_a_merged_adapter_equals_pefts_own_merge(
    llama: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    merged = write_adapter(llama, tmp_path, LORA_TARGETS, **options)
    with closing(AdapterSource(tmp_path, SafetensorsSource(llama))) as source:
        found = {name: source.rows(name, 0, source.shape(name)[0]) for name in source.names}
        assert set(found) <= set(merged)
        for name, values in found.items():
            np.testing.assert_allclose(values, merged[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(source.rows(name, 3, 5), merged[name][3:5], rtol=1e-5, atol=1e-6)
        changed = {name for name in found if source.stored_type(name) == "float32" and "proj" in name}
        with closing(SafetensorsSource(llama)) as base:
            name = "model.layers.1.mlp.down_proj.weight"
            assert name in changed
            assert np.abs(base.rows(name, 0, 8) - found[name][:8]).max() > 1e-3


def test_fan_in_fan_out_means_nothing_for_linear_layers(tmp_path: Path, llama: Path) -> None:
    """PEFT takes it back for torch.nn.Linear, which every family here is made of."""
    merged = write_adapter(llama, tmp_path, ["q_proj"], r=2)
    config = json.loads((tmp_path / "adapter_config.json").read_text("utf-8")) | {"fan_in_fan_out": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    name = "model.layers.0.self_attn.q_proj.weight"
    with closing(AdapterSource(tmp_path, SafetensorsSource(llama))) as source:
        np.testing.assert_allclose(source.rows(name, 4, 9), merged[name][4:9], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("beginning", ["pissa", "olora", "pissa_niter_4"])
def test_an_adapter_that_changed_its_base_too_is_refused(llama: Path, tmp_path: Path, beginning: str) -> None:
    write_adapter(llama, tmp_path, ["q_proj"], r=2, init_lora_weights=beginning)
    with closing(SafetensorsSource(llama)) as base, pytest.raises(ModelError, match=f"'{beginning}' changed"):
        AdapterSource(tmp_path, base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'"),
        ({"use_dora": True}, "use_dora can't be merged"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save can't be merged"),
        ({"bias": "all", "lora_bias": True}, "lora_bias, bias can't be merged"),
        ({"alpha_pattern": {".*proj": 4}}, r"alpha_pattern '\.\*proj' is a pattern"),
    ],
)
def test_adapters_that_cannot_be_merged_are_refused_by_name(
    llama: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_adapter(llama, tmp_path, ["q_proj"], r=2)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")
    with closing(SafetensorsSource(llama)) as base, pytest.raises(ModelError, match=message):
        AdapterSource(tmp_path, base)


def test_an_adapter_of_another_base_is_refused(llama: Path, tmp_path: Path) -> None:
    write_adapter(llama, tmp_path, ["q_proj"], r=2)
    other = write_hf(tmp_path / "other", "llama-wide-heads")
    with (
        closing(SafetensorsSource(other)) as base,
        pytest.raises(ModelError, match="adapter of another base"),
    ):
        AdapterSource(tmp_path, base)
    starcoder = write_hf(tmp_path / "starcoder", "starcoder")
    with closing(SafetensorsSource(starcoder)) as base, pytest.raises(ModelError, match="does not have"):
        AdapterSource(tmp_path, base)


def test_an_adapter_on_a_tied_output_matrix_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tied = write_hf(tmp_path / "tied", "qwen2")
    write_adapter(tied, tmp_path / "adapter", ["lm_head"], r=2)
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({key: value for key, value in load_file(file).items() if "lora_" in key}, file)
    with closing(SafetensorsSource(tied)) as base, pytest.raises(ModelError, match="ties to the embedding"):
        AdapterSource(tmp_path / "adapter", base)
