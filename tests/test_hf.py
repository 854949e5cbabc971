"""Plain Hugging Face folders: what transformers loads from them is the source's model, to the last bit."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import CONFIGS, TOKENS, tokens, weights, write_gguf, write_hf, write_tokenizer

from convert import gguf_writer
from convert.cli import main
from convert.hf import convert
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source, detect_kind

TEXT = "def f(x):\n    return x + 1\n"


def hf(folder: Path) -> Source:
    return Source(folder, Kind.HF, folder.name, digest="d1", origin="local")


def gguf(path: Path) -> Source:
    return Source(path, Kind.GGUF, path.stem)


def loaded(folder: Path) -> Any:
    import torch
    import transformers

    causal: Any = transformers.AutoModelForCausalLM
    return causal.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def logits(folder: Path) -> np.ndarray[Any, Any]:
    import torch

    ids = np.random.default_rng(1).integers(3, TOKENS, 60).tolist()
    with torch.no_grad():
        found: np.ndarray[Any, Any] = loaded(folder)(torch.tensor([ids])).logits[0].numpy()
    return found


@pytest.mark.parametrize("name", sorted(set(CONFIGS) - {"phi3"}))
def test_through_gguf_and_back_gives_the_same_model(name: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / name, name)
    try:
        gguf_writer.write_gguf(hf(folder), tmp_path / "model.gguf", "f32", progress=False)
    except ModelError as error:  # positions that a GGUF file can't hold
        assert "rope" in name or "yarn" in name, error
        pytest.skip(str(error))
    back = convert(gguf(tmp_path / "model.gguf"), tmp_path / "back", dtype="float32", progress=False)
    assert detect_kind(back) is Kind.HF
    before, after = weights(folder), weights(back)
    after.setdefault("lm_head.weight", next(iter(after.values())))
    assert set(before) <= set(after)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert np.array_equal(logits(folder), logits(back))


def test_the_tokenizer_of_a_gguf_file_loads_with_transformers(tmp_path: Path) -> None:
    import transformers

    file = write_gguf(tmp_path / "model.gguf", write_hf(tmp_path / "hf", "llama"))
    folder = convert(gguf(file), tmp_path / "out", progress=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode("f(x)+1")  # the tiny vocabulary has no space
    assert tokenizer.decode(ids) == "f(x)+1"
    assert [tokens()[index] for index in ids] == tokenizer.convert_ids_to_tokens(ids)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")
    generation = transformers.GenerationConfig.from_pretrained(folder)
    assert generation.eos_token_id == [2]


def test_a_gguf_file_that_wants_a_first_token_gets_it(tmp_path: Path) -> None:
    import transformers

    file = write_gguf(tmp_path / "model.gguf", write_hf(tmp_path / "hf", "llama"), add_bos=True)
    folder = convert(gguf(file), tmp_path / "out", progress=False)
    assert transformers.AutoTokenizer.from_pretrained(folder).encode("x")[0] == 1


@pytest.mark.parametrize(("dtype", "expected"), [(None, "float16"), ("bfloat16", "bfloat16")])
def test_a_folder_is_written_in_shards(dtype: str | None, expected: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    folder = write_hf(tmp_path / "model", "starcoder", dtype="float16")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}', "utf-8")
    out = convert(hf(folder), tmp_path / "out", dtype=dtype, shard_bytes=20_000, progress=False)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((out / "model.safetensors.index.json").read_text("utf-8"))
    original = load_file(folder / "model.safetensors")
    written = {key: value for file in files for key, value in load_file(out / file).items()}
    assert index["weight_map"].keys() == written.keys() == original.keys()
    assert index["metadata"]["total_size"] == sum(2 * value.numel() for value in original.values())
    for key, value in original.items():
        assert torch.equal(written[key], value.to(getattr(torch, expected)))
    assert json.loads((out / "config.json").read_text("utf-8"))["torch_dtype"] == expected
    assert (out / "generation_config.json").read_text("utf-8") == '{"eos_token_id": [1, 2]}'
    card = read_card(out)
    assert card is not None and (card.quantization, card.end_tokens) == (expected, ["<s>", "</s>"])
    if dtype is None:
        assert np.array_equal(logits(folder), logits(out))


def write_adapter(base: Path, folder: Path) -> dict[str, Any]:
    """A PEFT adapter with random A and B, and what PEFT itself merges it to, by tensor name."""
    import peft
    import torch

    with warnings.catch_warnings():  # PEFT's own: deprecated calls
        warnings.simplefilter("ignore")
        torch.manual_seed(3)
        adapted = peft.get_peft_model(
            loaded(base),
            peft.LoraConfig(target_modules=["q_proj", "v_proj", "down_proj"], r=4, lora_alpha=12),
        )
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn_like(parameter) * 0.1
        adapted.save_pretrained(folder)
        state = adapted.merge_and_unload().state_dict()
    return {name: tensor.numpy().copy() for name, tensor in state.items()}


@pytest.mark.parametrize("kind", ["folder", "gguf"])
def test_merge_equals_pefts_own(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    folder = write_hf(tmp_path / "base", "llama")
    expected = write_adapter(folder, tmp_path / "adapter")
    base = folder if kind == "folder" else write_gguf(tmp_path / "base.gguf", folder)
    out = tmp_path / "out"
    assert main(["merge", str(base), str(tmp_path / "adapter"), "-o", str(out), "--quiet", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["card"]["source"]["base"]["kind"] == ("huggingface" if kind == "folder" else "gguf")
    found = weights(out)
    assert found.keys() == expected.keys()
    for name, values in found.items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-6)
    assert np.abs(logits(out) - logits(folder)).max() > 1e-2


@pytest.mark.usefixtures("recwarn")
def test_wrong_adapters_and_types_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    base = write_hf(tmp_path / "base", "llama")
    write_adapter(base, tmp_path / "adapter")
    other = write_hf(tmp_path / "other", "starcoder")
    out = tmp_path / "out"
    assert main(["merge", str(other), str(tmp_path / "adapter"), "-o", str(out)]) == 1
    assert "is it the adapter of another base?" in capsys.readouterr().err
    assert main(["merge", str(base), str(other), "-o", str(out)]) == 1
    assert "a huggingface model, not a PEFT adapter" in capsys.readouterr().err
    assert not out.exists()
    with pytest.raises(ValueError, match=r"float8.*known: float32, float16, bfloat16"):
        convert(hf(base), out, dtype="float8")


def test_a_base_of_another_name_is_mentioned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    write_adapter(write_hf(tmp_path / "base", "llama"), tmp_path / "adapter")
    other = write_hf(tmp_path / "sibling", "llama", seed=5)
    assert main(["merge", str(other), str(tmp_path / "adapter"), "-o", str(tmp_path / "out")]) == 0
    assert "names " in (said := capsys.readouterr().err) and "base" in said and "sibling" in said


def test_a_gptq_folder_is_dequantised(tmp_path: Path) -> None:
    from test_gptq_source import write_gptq as write_quantised

    expected = write_quantised(tmp_path / "quantised", bits=4, ordered=True)
    source = Source(tmp_path / "quantised", Kind.GPTQ, "quantised")
    out = convert(source, tmp_path / "out", dtype="float32", progress=False)
    assert detect_kind(out) is Kind.HF
    found = weights(out)
    assert expected.keys() <= found.keys()
    assert all(np.array_equal(found[name], values) for name, values in expected.items())
    assert logits(out).shape == (60, 128)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", "llama")
    write_tokenizer(folder, 129)
    with pytest.raises(ModelError, match="129 tokens, the embedding 128 rows"):
        convert(hf(folder), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_torch_is_not_needed(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", write_hf(tmp_path / "hf", "qwen3"))
    script = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from pathlib import Path\nfrom convert.hf import convert\n"
        "from rrtf_serve.models.source import Kind, Source\n"
        "convert(Source(Path(sys.argv[1]), Kind.GGUF, 'm'), Path(sys.argv[2]), progress=False)"
    )
    subprocess.run([sys.executable, "-c", script, str(file), str(tmp_path / "out")], check=True)
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_default_model_dequantised_is_the_float32_conversion(qwen_source: Source, tmp_path: Path) -> None:
    import ctranslate2
    import torch
    import transformers

    from convert import ct2

    folder = convert(qwen_source, tmp_path / "hf", dtype="float32", progress=False)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = f"# ünïcode 数 \n{TEXT * 20}<|im_start|>user\n"
    ids = theirs.encode(text)
    assert theirs.decode(ids) == text
    with torch.no_grad():
        expected = loaded(folder)(torch.tensor([ids])).logits[0].numpy()
    converted = ct2.convert(qwen_source, tmp_path / "ct2", quantization="float32", progress=False)
    generator = ctranslate2.Generator(str(converted), compute_type="float32")
    names = json.loads((converted / "vocabulary.json").read_text("utf-8"))
    found = np.array(generator.forward_batch([[names[index] for index in ids]]))[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    assert (found.argmax(1) == expected.argmax(1)).all()
