"""Families of CTranslate2's own converter: transformers' logits and tokens, in folders like the others."""

from __future__ import annotations

import importlib.metadata
import json
import logging
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from tiny_foreign import CONFIGS, write_foreign
from tiny_models import CONFIGS as STREAMED
from tiny_models import END, TOKENS

from convert import whole_model
from convert.cli import main
from convert.ct2 import convert
from convert.foreign import FOREIGN
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source

FILES = ["config.json", "model.bin", "rrtf.json", "tokenizer.json", "vocabulary.json"]
LENGTHS = (1, 5, 16, 60)


def hf(folder: Path) -> Source:
    return Source(folder, Kind.HF, folder.name, digest="d1", origin="local")


def test_every_listed_family_is_tested() -> None:
    assert {name.split("-")[0] for name in CONFIGS} == set(FOREIGN)


@pytest.mark.parametrize(
    "name",
    # Each imports torch in a child: a few by default, all of them with the slow tests.
    [pytest.param(n, marks=() if n in ("gpt_neox", "phi") else pytest.mark.slow) for n in sorted(CONFIGS)],
)
def test_logits_and_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = write_foreign(tmp_path / name, *CONFIGS[name])
    converted = convert(hf(folder), tmp_path / "ct2", quantization="float32", progress=False)
    assert sorted(path.name for path in converted.iterdir()) == FILES
    card = read_card(converted)
    assert card is not None and (card.architecture, card.quantization) == (
        name.split("-", maxsplit=1)[0],
        "float32",
    )
    assert card.end_tokens == ["</s>"] and card.tools["transformers"] == transformers.__version__
    assert card.context_length == {"falcon": 2048, "gemma3_text": 32}.get(card.architecture, 256)
    causal: Any = transformers.AutoModelForCausalLM
    model = causal.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    generator = ctranslate2.Generator(str(converted), compute_type="float32")
    names = json.loads((converted / "vocabulary.json").read_text("utf-8"))
    random = np.random.default_rng(1)
    for length in (n for n in LENGTHS if n <= card.context_length):
        ids = random.integers(3, TOKENS, length).tolist()
        new = min(20, card.context_length - length)
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].numpy()
            answer = model.generate(
                torch.tensor([ids]), attention_mask=torch.ones(1, length, dtype=torch.long),
                max_new_tokens=new, do_sample=False, eos_token_id=END, pad_token_id=0,
            )[0, length:].tolist()  # fmt: skip
        found = np.array(generator.forward_batch([[names[i] for i in ids]]))[0]
        assert np.abs(found - expected).max() <= 2e-5 * np.abs(expected).max()
        (result,) = generator.generate_batch(
            [[names[i] for i in ids]], max_length=new, end_token=["</s>"], include_prompt_in_result=False,
            beam_size=1, return_end_token=True,
        )  # fmt: skip
        assert result.sequences_ids[0] == answer


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hf") / "tiny-gpt2"
    return write_foreign(folder, *CONFIGS["gpt2"], shard="30KB")


def test_it_says_that_it_is_not_streamed(
    gpt2: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        convert(hf(gpt2), tmp_path / "out", progress=False)
    assert "tiny-gpt2: not streamed but held whole" in caplog.text
    assert "needs about 0.4 GB of memory" in caplog.text
    card = read_card(tmp_path / "out")
    assert card is not None and card.quantization == "int8"
    assert ctranslate2.Generator(str(tmp_path / "out")).compute_type == "int8_float32"


def test_without_its_packages_the_extra_is_named(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(whole_model, "distribution", absent)
    with pytest.raises(
        ModelError, match=r"needs torch and transformers: pip install 'rrtf-serve\[convert\]'"
    ):
        convert(hf(gpt2), tmp_path / "out", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_damage_leaves_nothing_and_is_named(gpt2: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(gpt2, tmp_path / "model")
    shard = sorted(folder.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=rf"{shard.name}: .*cut short"):
        convert(hf(folder), tmp_path / "out", progress=False)
    shard.write_bytes(whole)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": "two"}), "utf-8")
    with pytest.raises(ModelError, match=r"CTranslate2's own converter failed: .*n_layer"):
        convert(hf(folder), tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "'gemma2' can't be converted: .*soft capping"),
        ({"model_type": "falcon", "alibi": True}, "falcon model with alibi true can't be converted"),
        ({"scale_attn_weights": False}, "gpt2 model with scale_attn_weights false can't be converted"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx true can't"),
        (
            {"model_type": "bloom", "apply_residual_connection_post_layernorm": True},
            "post_layernorm true can't",
        ),
        ({"model_type": "falcon", "rope_theta": 500.0}, "rope_theta 500.0 can't be converted"),
        ({"model_type": "falcon", "activation": "relu"}, 'activation "relu" can\'t be converted'),
        ({"model_type": "gemma", "rope_parameters": {"rope_type": "linear"}}, 'rope_type "linear" can\'t'),
        ({"model_type": "phi", "rope_scaling": {"type": "linear", "factor": 4.0}}, "rope_scaling .* can't"),
        ({"model_type": "mpt", "attn_config": {"clip_qkv": 6.0}}, r"attn_config\.clip_qkv 6\.0 can't"),
        ({"model_type": "mpt", "tie_word_embeddings": False}, "tie_word_embeddings false can't"),
        ({"model_type": "gemma3_text", "final_logit_softcapping": 3.0}, "final_logit_softcapping 3.0 can't"),
        (
            {"model_type": "gemma3_text", "query_pre_attn_scalar": 168, "head_dim": 128},
            "query_pre_attn_scalar 168 and head_dim 128 can't",
        ),
        (
            {
                "model_type": "gemma3_text",
                "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}},
            },
            r"rope_parameters\.full_attention\.rope_type \"linear\" can't",
        ),
        ({"quantization_config": {"quant_method": "awq"}}, r"quantised already \(awq\)"),
        ({"model_type": "t5"}, "'t5' can't be converted; known: gpt_bigcode, .*bloom, codegen"),
    ],
)
def test_what_would_come_out_wrong_is_refused(
    gpt2: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    import shutil

    folder = shutil.copytree(gpt2, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | changes), "utf-8")
    with pytest.raises(ModelError, match=message):
        convert(hf(folder), tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [("missing", "is missing"), ("not finite", "holds values that are not finite numbers")],
)
def test_a_tensor_that_transformers_would_make_up_or_pass_on_is_named(
    tmp_path: Path, damage: str, reason: str
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder, name = write_foreign(tmp_path / "model", *CONFIGS["gpt2"]), "transformer.h.1.mlp.c_fc.weight"
    tensors = load_file(folder / "model.safetensors")
    if damage == "missing":
        del tensors[name]
    else:
        tensors[name][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=rf"tensor {name} {reason}"):
        convert(hf(folder), tmp_path / "out", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_other_commands_say_which_one_takes_it(
    gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    assert main(["hf", str(gpt2), "-o", str(tmp_path / "out")]) == 1
    assert "a gpt2 model can only be converted whole to CTranslate2" in capsys.readouterr().err


LOADERS = """
import sys
from ctranslate2.converters import TransformersConverter
from convert import loaders
loaders.register()
for quantization in sys.argv[3:]:
    TransformersConverter(sys.argv[1]).convert(f"{sys.argv[2]}-{quantization}", quantization=quantization)
"""


@pytest.mark.parametrize("name", ["starcoder2", "starcoder-multi-head", "phi3"])
def test_registered_loaders_and_the_streaming_writer_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    """CTranslate2's own converter with our loader, against our writer: every quantisation, byte for byte."""
    import subprocess
    import sys

    from tiny_models import write_hf

    from rrtf_serve.models.folder import QUANTIZATIONS

    assert name in STREAMED
    folder = write_hf(tmp_path / name, name, dtype="bfloat16" if name == "phi3" else "float32")
    command = [sys.executable, "-c", LOADERS, str(folder), str(tmp_path / "theirs"), *QUANTIZATIONS]
    subprocess.run(command, check=True, capture_output=True)
    for quantization in QUANTIZATIONS:
        if name == "phi3" and "float16" in quantization:
            continue  # CTranslate2 rounds the table of rotary divisors to 16 bits; ours stays exact
        ours = convert(hf(folder), tmp_path / quantization, quantization=quantization, progress=False)
        theirs = tmp_path / f"theirs-{quantization}" / "model.bin"
        assert (ours / "model.bin").read_bytes() == theirs.read_bytes()
