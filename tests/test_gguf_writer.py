"""`rrtf-convert gguf`: the same tensors and tokens when read back, by us and by transformers."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import ctranslate2
import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from gguf.quants import dequantize, quantize
from test_adapter_source import write_adapter
from tiny_gguf import byte_level_fields, sentencepiece_fields
from tiny_gguf import write_gguf as write_vocabulary
from tiny_models import CONFIGS, weights, write_gguf, write_hf

from convert import new_file
from convert.cli import main
from convert.ct2 import convert
from convert.gguf_metadata import read_metadata
from convert.gguf_source import GgufSource
from convert.gguf_writer import write_gguf as write
from convert.tokenizer import SPLITTINGS, write_tokenizer
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.tokens import Tokenizer

WRITABLE = [
    name
    for name, (kind, _) in CONFIGS.items()
    if kind.startswith(("Llama", "Mistral", "Qwen", "GPTBigCode", "Starcoder2"))
    and not name.endswith(("yarn", "llama3-rope"))
]
SAMPLE = Path(__file__).read_text("utf-8")


def hf(folder: Path) -> Source:
    return Source(folder, Kind.HF, folder.name)


def written(folder: Path, path: Path, kind: str = "f32") -> Path:
    write(hf(folder), path, kind, progress=False)
    return path


@pytest.mark.parametrize("name", WRITABLE)
def test_a_float32_file_converts_to_the_bytes_of_its_folder(name: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", name)
    file = written(folder, tmp_path / "model.gguf")
    first = convert(hf(folder), tmp_path / "a", quantization="float32", progress=False)
    second = convert(Source(file, Kind.GGUF, "model"), tmp_path / "b", quantization="float32", progress=False)
    if name.startswith("mistral"):  # in GGUF a Llama, which doesn't state the size of its heads
        logits = [
            np.array(ctranslate2.Generator(str(each)).forward_batch([list(range(3, 15))]))
            for each in (first, second)
        ]
        assert np.array_equal(*logits)
        return
    assert (first / "model.bin").read_bytes() == (second / "model.bin").read_bytes()
    configs = [json.loads((each / "config.json").read_text("utf-8")) for each in (first, second)]
    # float32 in the file, float64 in JSON
    assert configs[0].pop("layer_norm_epsilon") == pytest.approx(configs[1].pop("layer_norm_epsilon"))
    assert configs[0] == configs[1]
    cards = [read_card(each) for each in (first, second)]
    assert cards[0] is not None and cards[1] is not None
    for fact in ("context_length", "bos_token", "add_bos", "end_tokens", "chat_template", "family"):
        assert getattr(cards[0], fact) == getattr(cards[1], fact)
    text = "def f(x):\n    return [x, 12]"
    ids = [Tokenizer.load(each).encode(text, specials=True) for each in (first, second)]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2", "starcoder", "starcoder2"])
def test_names_and_row_order_are_those_of_an_independent_writer(name: str, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", name)
    ours = GgufSource(written(folder, tmp_path / "ours.gguf"))
    theirs = GgufSource(write_gguf(tmp_path / "theirs.gguf", folder))
    # save_pretrained leaves a tied output matrix out; neither writer makes one.
    assert set(ours.names) == set(theirs.names)
    for tensor in ours.names:
        rows = ours.shape(tensor)[0]
        assert ours.shape(tensor) == theirs.shape(tensor)
        assert np.array_equal(ours.rows(tensor, 0, rows), theirs.rows(tensor, 0, rows)), tensor
    ours.close()
    theirs.close()


@pytest.mark.parametrize("name", ["llama", "llama-wide-heads", "qwen2", "starcoder2"])
def test_transformers_reads_the_same_model(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    folder = write_hf(tmp_path / "model", name)
    file = written(folder, tmp_path / "model.gguf")
    causal: Any = transformers.AutoModelForCausalLM
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about its GGUF reader
        again = causal.from_pretrained(
            tmp_path,
            gguf_file=file.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype=torch.float32,
        )
    expected = causal.from_pretrained(folder, dtype=torch.float32)
    if name == "starcoder2":  # transformers takes no rotary base and no window from GGUF files
        again.config.sliding_window = expected.config.sliding_window
    ids = torch.arange(3, 15).unsqueeze(0)  # shorter than the window
    with torch.no_grad():
        assert torch.allclose(again(ids).logits, expected(ids).logits, atol=1e-4)


@pytest.mark.parametrize(("kind", "type_"), [("f16", Type.F16), ("bf16", Type.BF16), ("q8_0", Type.Q8_0)])
def test_types(kind: str, type_: Type, tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", "qwen2")
    path = written(folder, tmp_path / "model.gguf", kind)
    reader = gguf.GGUFReader(path)  # the gguf package's own
    found = {tensor.name: tensor for tensor in reader.tensors}
    original = weights(folder)["model.layers.0.mlp.down_proj.weight"]
    matrix = found["blk.0.ffn_down.weight"]
    assert matrix.tensor_type == type_
    expected = dequantize(quantize(original, type_), type_)
    assert np.array_equal(dequantize(matrix.data, type_).reshape(original.shape), expected)
    assert found["blk.0.attn_norm.weight"].tensor_type == found["blk.0.attn_q.bias"].tensor_type == Type.F32
    field = reader.get_field("general.file_type")
    assert field is not None and field.contents() == {"f16": 1, "bf16": 32, "q8_0": 7}[kind]


def test_matrices_that_8_bit_blocks_do_not_fit_stay_in_16_bits(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", "llama-wide-heads")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert config["hidden_size"] == 32
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    for layer in range(config["num_hidden_layers"]):  # a feed-forward width that 32 does not divide
        mlp = f"model.layers.{layer}.mlp"
        state[f"{mlp}.down_proj.weight"] = state[f"{mlp}.down_proj.weight"][:, :40].contiguous()
        for side in ("gate", "up"):
            state[f"{mlp}.{side}_proj.weight"] = state[f"{mlp}.{side}_proj.weight"][:40].contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}), "utf-8")
    metadata = read_metadata(written(folder, tmp_path / "model.gguf", "q8_0"))
    types = {tensor.name: tensor.ggml_type for tensor in metadata.tensors}
    assert types["blk.0.ffn_down.weight"] == Type.F16
    assert types["blk.0.ffn_up.weight"] == Type.Q8_0


def test_float16_that_overflows_and_damaged_weights_are_errors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for value, kind, message in ((1e6, "f16", "beyond float16"), (float("nan"), "q8_0", "not finite")):
        folder = write_hf(tmp_path / kind, "llama")
        state = load_file(folder / "model.safetensors")
        state["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ModelError, match=f"layers.1.mlp.up_proj.weight holds .*{message}"):
            written(folder, tmp_path / "model.gguf", kind)
        assert sorted(path.name for path in tmp_path.iterdir() if "gguf" in path.name) == []


def with_tokenizer(folder: Path, tokenizer: Path) -> Path:
    """The folder with another tokenizer.json and an embedding of exactly its size, untied."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copy(tokenizer, folder / "tokenizer.json")
    rows = len(Tokenizer.load(folder)._backend.get_vocab(with_added_tokens=True)) + 3
    state = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.randn(rows, state["model.embed_tokens.weight"].shape[1])
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}), "utf-8")
    return folder


def set_tokens(folder: Path, **tokens: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens), "utf-8")


@pytest.mark.parametrize("pre", sorted(SPLITTINGS))
def test_every_known_splitting_is_recognised(pre: str, tmp_path: Path) -> None:
    fields = byte_level_fields(pre, ["<|x|>", "<|end|>"], SAMPLE)
    write_tokenizer(read_metadata(write_vocabulary(tmp_path / "v.gguf", fields)), tmp_path)
    folder = with_tokenizer(write_hf(tmp_path / "model", "llama"), tmp_path / "tokenizer.json")
    set_tokens(folder, eos_token="<|end|>")
    metadata = read_metadata(written(folder, tmp_path / "model.gguf"))
    assert SPLITTINGS[metadata.text("tokenizer.ggml.pre")] == SPLITTINGS[pre]
    again = tmp_path / "again"
    again.mkdir()
    write_tokenizer(metadata, again)
    first, second = (Tokenizer.load(each) for each in (folder, again))
    assert first.encode(SAMPLE, specials=True) == second.encode(SAMPLE, specials=True)
    assert metadata.fields["tokenizer.ggml.eos_token_id"] == first.token_id("<|end|>")


def test_transformers_own_qwen_tokenizer_is_recognised(tmp_path: Path) -> None:
    from transformers import Qwen2Tokenizer

    fields = byte_level_fields("qwen2", ["<|endoftext|>"], SAMPLE)
    vocabulary = {token: index for index, token in enumerate(fields["ggml.tokens"][:-2])}
    merges = [tuple(merge.split(" ")) for merge in fields["ggml.merges"]]
    Qwen2Tokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path / "tokenizer")
    folder = with_tokenizer(write_hf(tmp_path / "model", "llama"), tmp_path / "tokenizer" / "tokenizer.json")
    set_tokens(folder, eos_token="<|endoftext|>")
    metadata = read_metadata(written(folder, tmp_path / "model.gguf"))
    assert metadata.text("tokenizer.ggml.pre") == "qwen2"


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_goes_there_and_back(prefix: bool, tmp_path: Path) -> None:
    words = ["▁the", "▁thesis", "▁is", "▁a", "▁def", "▁return", "ing", "▁▁", "▁▁▁▁", "hello", "▁hello"]
    fields = {**sentencepiece_fields(words), "ggml.add_space_prefix": prefix}
    write_tokenizer(read_metadata(write_vocabulary(tmp_path / "v.gguf", fields)), tmp_path)
    folder = with_tokenizer(write_hf(tmp_path / "model", "llama"), tmp_path / "tokenizer.json")
    set_tokens(folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>", add_bos_token=True)
    metadata = read_metadata(written(folder, tmp_path / "model.gguf"))
    assert metadata.text("tokenizer.ggml.model") == "llama"
    assert metadata.fields["tokenizer.ggml.add_space_prefix"] is prefix
    assert metadata.fields["tokenizer.ggml.add_bos_token"] is True
    types = metadata.fields["tokenizer.ggml.token_type"]
    assert isinstance(types, list) and types[:4] == [2, 3, 3, 6] and types[-1] == 5
    again = tmp_path / "again"
    again.mkdir()
    write_tokenizer(metadata, again)
    first, second = (Tokenizer.load(each) for each in (folder, again))
    for text in ("the thesis is a hello", " hello", "    return a", "éthe\U0001f600", SAMPLE):
        assert first.encode(text, specials=True) == second.encode(text, specials=True)


def change_tokenizer(folder: Path, change: Any) -> None:
    record = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    change(record)
    (folder / "tokenizer.json").write_text(json.dumps(record), "utf-8")


def test_tokenizers_that_gguf_cannot_hold_are_refused(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "model", "llama")
    split = {"type": "Split", "pattern": {"Regex": "[a-z]"}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    whole = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    change_tokenizer(folder, lambda record: record.update(pre_tokenizer=whole))
    with pytest.raises(ModelError, match=r"splits text in a way of its own.*llama\.cpp"):
        written(folder, tmp_path / "model.gguf")
    change_tokenizer(
        folder, lambda record: record.update(pre_tokenizer=byte_level, normalizer={"type": "Lowercase"})
    )
    with pytest.raises(ModelError, match="splits text in a way of its own"):
        written(folder, tmp_path / "model.gguf")
    unigram = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -1.0]], "byte_fallback": False}
    change_tokenizer(folder, lambda record: record.update(model=unigram, normalizer=None, added_tokens=[]))
    with pytest.raises(ModelError, match="its tokenizer is Unigram, not BPE"):
        written(folder, tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("name", "message"),
    [("phi3", "a phi3 model can't be written as GGUF here"), ("qwen2-yarn", "stretched by a table")],
)
def test_models_without_a_layout_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        written(write_hf(tmp_path / "model", name), tmp_path / "model.gguf")


def test_complete_or_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    folder = write_hf(tmp_path / "model", "qwen2")
    out = tmp_path / "out" / "model.gguf"
    command = ["gguf", str(folder), "-o", str(out), "--quiet"]
    assert main(command) == 0
    assert capsys.readouterr().out.startswith(f"{out}: model as q8_0, ")
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    assert main(command) == 1
    assert "exists already; add --force" in capsys.readouterr().err
    before = out.read_bytes()
    assert main([*command, "--force", "--type", "f32", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["type"] == "f32" and facts["size_bytes"] == out.stat().st_size > len(before)
    assert main(["gguf", str(out), "-o", str(out), "--force"]) == 1
    assert "is the source itself" in capsys.readouterr().err
    assert main(["gguf", str(folder), "-o", str(folder), "--force"]) == 1
    assert main(["gguf", str(folder), "-o", str(out.parent), "--force"]) == 1
    assert "is a folder; name the file to write" in capsys.readouterr().err
    # What a killed process left behind goes with the next run.
    (out.parent / ".model.gguf.incomplete").mkdir()
    (out.parent / ".model.gguf.incomplete" / "model.gguf").write_bytes(b"half")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    assert main([*command, "--force"]) == 1
    assert "not enough room" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))
    assert main([*command, "--force"]) == 0
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with new_file.new_file(tmp_path / "a", needed_bytes=1, force=False) as first:
        first.write_bytes(b"one")
        with (
            pytest.raises(ModelError, match="another process is writing this file"),
            new_file.new_file(tmp_path / "a", needed_bytes=1, force=False),
        ):
            pass
    assert (tmp_path / "a").read_bytes() == b"one"


def test_a_real_gguf_file_keeps_its_vocabulary(smollm2_source: Source, tmp_path: Path) -> None:
    write(smollm2_source, tmp_path / "f32.gguf", "f32", progress=False)
    first, second = read_metadata(smollm2_source.path), read_metadata(tmp_path / "f32.gguf")
    vocabulary = [
        {key: value for key, value in each.fields.items() if key.startswith("tokenizer.")}
        for each in (first, second)
    ]
    assert vocabulary[0] == vocabulary[1]
    sources = [GgufSource(smollm2_source.path), GgufSource(tmp_path / "f32.gguf")]
    assert sources[0].config == sources[1].config
    assert list(sources[0].names) == list(sources[1].names)
    for name in list(sources[0].names)[:12]:
        rows = min(64, sources[0].shape(name)[0])
        assert np.array_equal(*(each.rows(name, 0, rows) for each in sources))
    for each in sources:
        each.close()


def test_an_adapter_is_merged_on_the_way(tmp_path: Path) -> None:
    base = write_hf(tmp_path / "base", "llama")
    write_adapter(base, tmp_path / "adapter", ["q_proj", "down_proj"], r=4, lora_alpha=12)
    source = Source(tmp_path / "adapter", Kind.ADAPTER, "adapter", base=hf(base))
    write(source, tmp_path / "merged.gguf", "f32", progress=False)
    first = convert(source, tmp_path / "a", quantization="float32", progress=False)
    file = Source(tmp_path / "merged.gguf", Kind.GGUF, "merged")
    second = convert(file, tmp_path / "b", quantization="float32", progress=False)
    assert (first / "model.bin").read_bytes() == (second / "model.bin").read_bytes()
