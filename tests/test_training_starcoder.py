"""StarCoder's two families, by name: trained, written, converted and served, whole and by adapter."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tiny_models import write_hf
from tuples import write_made

from convert.ct2 import convert as to_ct2
from convert.hf import convert as to_hf
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.protocol import Request, Sampling
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models.store import Store
from training.fit import fit
from training.fit_options import FitOptions

PROMPT = (5, 6, 7, 8)


def options(folder: Path, model: Path, tune: str) -> FitOptions:
    return FitOptions(
        write_made(folder / "tuples.jsonl", 4), str(model), folder / tune, epochs=2, batch=4, lr=1e-2,
        precision="fp32", device="cpu", threads=1, tune=tune, lora_rank=2,
    )  # fmt: skip


def greedy(folder: Path) -> list[int]:
    """By transformers, without a cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = list(PROMPT)
    with torch.no_grad():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(PROMPT) :]


def served(folder: Path, engine: str) -> list[int]:
    dtype = "float32" if engine == "torch" else "auto"
    config = ServeConfig(model=str(folder), engine=engine, device="cpu", threads=1, dtype=dtype)
    source = Store().fetch(str(folder))
    loaded = load_engine(config, source, describe_source(config, source))
    try:
        batch = loaded.start([Request(PROMPT, 8, frozenset(), Sampling(temperature=0))])
        found = []
        while deltas := batch.step():
            found += [delta.token for delta in deltas if delta.token is not None]
        batch.close()
    finally:
        loaded.close()
    return found


@pytest.mark.parametrize("family", ["starcoder", "starcoder2"])
def test_what_was_trained_is_what_is_served(family: str, tmp_path: Path) -> None:
    model = write_hf(tmp_path / family, family)
    fit(options(tmp_path, model, "full"))
    last = tmp_path / "full" / "last"
    before, after = load_file(model / "model.safetensors"), load_file(last / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name].bfloat16(), after[name]) for name in before)
    expected = greedy(last)
    assert served(last, "torch") == expected
    converted = tmp_path / "ct2"
    to_ct2(Store().fetch(str(last)), converted, quantization="float32")
    assert served(converted, "ct2") == expected


@pytest.mark.parametrize("family", ["starcoder", "starcoder2"])
def test_an_adapter_is_on_every_linear_layer_and_can_be_merged(family: str, tmp_path: Path) -> None:
    model = write_hf(tmp_path / family, family)
    fit(options(tmp_path, model, "lora"))
    last = tmp_path / "lora" / "last"
    adapter = load_file(last / "adapter_model.safetensors")
    adapted = {name.removeprefix("base_model.model.").rpartition(".lora_")[0] for name in adapter}
    whole = transformers.AutoModelForCausalLM.from_pretrained(model)
    linear = {
        name
        for name, module in whole.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    assert adapted == linear
    merged = tmp_path / "merged"
    to_hf(Store().fetch(str(last)), merged, dtype="float32")
    before, after = load_file(model / "model.safetensors"), load_file(merged / "model.safetensors")
    assert before.keys() == after.keys()
    for name, weight in before.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in adapter:
            change = adapter[f"{module}.lora_B.weight"] @ adapter[f"{module}.lora_A.weight"]
            assert change.abs().max() > 0
            torch.testing.assert_close(after[name], weight + 16 * change)  # alpha / rank = 32 / 2
        else:
            assert torch.equal(after[name], weight)
