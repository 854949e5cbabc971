"""`rrtf-convert verify` on tiny models: its figures against transformers, its errors, and the card."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_gptq import write_packed
from tiny_models import write_gguf, write_hf, write_tokenizer

import convert.verify
from convert.cli import main
from convert.ct2 import convert as convert_ct2
from convert.held_out import held_out_windows
from convert.verify import Options, verify, write_parity
from rrtf_serve.models import inventory
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Source
from rrtf_serve.models.store import Store
from rrtf_serve.models.tokens import Tokenizer

SMALL = Options(tokens=640, length=64, prompts=4, continuation=8)
FLAGS = ["--tokens", "640", "--length", "64", "--prompts", "4", "--continuation", "8", "--quiet"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "tiny-qwen2", "qwen2")


@pytest.fixture(scope="module")
def source(model: Path, store: Store) -> Source:
    return store.fetch(str(model))


@pytest.fixture(autouse=True)
def home(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(store.home))


def noisy(model: Path, folder: Path, spread: float) -> Path:
    """A copy of the model with noise on every matrix."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    random = torch.Generator().manual_seed(5)
    weights = load_file(folder / "model.safetensors")
    changed = {
        name: each + spread * torch.randn(each.shape, generator=random) * (each.dim() > 1)
        for name, each in weights.items()
    }
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def figures_of_transformers(first: Path, second: Path, options: Options) -> tuple[float, float, float]:
    """Mean KL, top-1 agreement and perplexity ratio, in double precision by torch."""
    import transformers

    causal: Any = transformers.AutoModelForCausalLM
    models = [causal.from_pretrained(path, dtype="float64").eval() for path in (first, second)]
    windows = held_out_windows(
        Tokenizer.load(first), tokens=options.tokens, length=options.length, seed=options.seed
    ).windows
    ids = torch.tensor([window.ids for window in windows])
    with torch.no_grad():
        p, q = (torch.log_softmax(each(ids[:, :-1]).logits, -1).flatten(0, 1) for each in models)
    targets = ids[:, 1:].flatten()
    loss = torch.nn.functional.nll_loss
    return (
        float((p.exp() * (p - q)).sum(-1).mean()),
        float((p.argmax(-1) == q.argmax(-1)).double().mean()),
        float((loss(q, targets) - loss(p, targets)).exp()),
    )


def test_figures_equal_those_of_transformers(
    model: Path, source: Source, store: Store, tmp_path: Path
) -> None:
    other = noisy(model, tmp_path / "noisy", 0.01)
    kl, agreement, ratio = figures_of_transformers(model, other, SMALL)
    assert kl > 0.001
    found = verify(source, store.fetch(str(other)), SMALL, progress=False).parity
    assert found.mean_kl.value == pytest.approx(kl, rel=1e-3)
    assert found.top1_agreement.value == pytest.approx(agreement, abs=2 / 640)
    assert found.perplexity_ratio.value == pytest.approx(ratio, rel=1e-4)


def test_a_model_is_itself_as_folder_gguf_and_ctranslate2(
    model: Path, source: Source, store: Store, tmp_path: Path
) -> None:
    converted = convert_ct2(source, tmp_path / "float32", quantization="float32", progress=False)
    file = write_gguf(tmp_path / "same.gguf", model)
    for place in (converted, model, file):
        found = verify(source, store.fetch(str(place)), SMALL, progress=False).parity
        assert found.mean_kl.value < 1e-8
        assert found.top1_agreement.value == found.perplexity_ratio.value == 1
        assert (found.greedy_divergence.value, found.greedy_divergence.equal) == (8, 4)


def test_greedy_answers_of_a_wrecked_model_differ_at_once(model: Path, store: Store, tmp_path: Path) -> None:
    other = noisy(model, tmp_path / "wrecked", 3.0)
    found = verify(store.fetch(str(model)), store.fetch(str(other)), SMALL, progress=False).parity
    assert found.greedy_divergence.value < 2
    assert found.greedy_divergence.equal == 0


def test_the_command_writes_the_card_and_says_the_same_twice(
    model: Path, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_ct2(source, tmp_path / "int8", progress=False)
    before = read_card(folder)
    assert main(["verify", str(model), str(folder), *FLAGS]) == 0
    said = capsys.readouterr()
    assert "top-1 agreement" in said.out and "nats per token" in said.out
    card = read_card(folder)
    assert card is not None and before is not None and card.parity is not None
    assert replace(card, parity=None) == before
    assert card.parity["variant"] == "int8" and card.parity["data"]["tokens"] == 640
    assert card.parity["reference"]["sha256"] == source.digest
    assert 0 < card.parity["mean_kl"]["low"] <= card.parity["mean_kl"]["value"]
    assert main(["verify", str(model), str(folder), *FLAGS, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parity"] == card.parity
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.bin",
        "rrtf.json",
        "tokenizer.json",
        "vocabulary.json",
    ]


def test_strict_fails_on_a_broken_threshold_and_says_which(
    model: Path, source: Source, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = noisy(model, tmp_path / "broken", 0.5)
    folder = convert_ct2(store.fetch(str(broken)), tmp_path / "int8", progress=False)
    command = ["verify", str(model), str(folder), *FLAGS]
    assert main(command) == 0  # said, but not fatal
    assert "threshold of int8 broken: mean KL" in capsys.readouterr().err
    assert main([*command, "--strict", "--no-card"]) == 1
    assert "off by" in capsys.readouterr().err
    exact = convert_ct2(source, tmp_path / "float32", quantization="float32", progress=False)
    assert main(["verify", str(model), str(exact), *FLAGS, "--strict"]) == 0
    capsys.readouterr()
    assert main(["verify", str(model), str(model), *FLAGS, "--strict"]) == 1
    assert "no thresholds" in capsys.readouterr().err


def test_the_source_is_found_by_the_card(
    model: Path, source: Source, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_ct2(source, tmp_path / "int8", progress=False)
    assert main(["verify", str(folder), *FLAGS]) == 1
    assert "which is not in the store; name it: rrtf-convert verify SRC DST" in capsys.readouterr().err
    inventory.remember(store.home, source)  # as a fetched model is
    assert main(["verify", str(folder), *FLAGS]) == 0
    assert "against tiny-qwen2 (float32)" in capsys.readouterr().out
    (folder / "rrtf.json").unlink()
    assert main(["verify", str(folder), *FLAGS]) == 1
    assert "has no card" in capsys.readouterr().err


def test_another_source_than_the_cards_is_warned_of(
    model: Path, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_ct2(source, tmp_path / "int8", progress=False)
    other = noisy(model, tmp_path / "other", 0.001)
    assert main(["verify", str(other), str(folder), *FLAGS]) == 0
    assert "warning: its card says it was made from" in capsys.readouterr().err
    card = read_card(folder)
    assert card is not None and card.parity is not None and len(card.parity["warnings"]) == 1


def test_what_the_files_tell_apart_is_refused_before_anything_is_loaded(
    model: Path,
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    llama = write_hf(tmp_path / "llama", "llama")
    int8 = convert_ct2(store.fetch(str(llama)), tmp_path / "int8", progress=False)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(convert.verify, "loaded", never)
    for other in (llama, int8):
        assert main(["verify", str(model), str(other), *FLAGS]) == 1
        assert f"{other}: is a llama model, {model} a qwen2 one" in capsys.readouterr().err
    for tokens in ("0", "100"):
        assert main(["verify", "no-such-model", str(int8), "--quiet", "--tokens", tokens]) == 2
        assert f"--tokens {tokens} is less than two windows" in capsys.readouterr().err


def test_models_that_do_not_belong_together_are_refused(source: Source, store: Store, tmp_path: Path) -> None:
    llama = write_hf(tmp_path / "llama", "llama")
    with pytest.raises(ModelError, match=r"is a llama model, .* a qwen2 one"):
        verify(source, store.fetch(str(llama)), SMALL, progress=False)
    shutil.copytree(source.path, tmp_path / "renamed")
    # Another tokenizer over the same embedding: two letters change places.
    text = (tmp_path / "renamed" / "tokenizer.json").read_text("utf-8")
    record = json.loads(text)
    vocabulary = record["model"]["vocab"]
    vocabulary["e"], vocabulary["t"] = vocabulary["t"], vocabulary["e"]
    (tmp_path / "renamed" / "tokenizer.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(ModelError, match="cuts the same text into other tokens"):
        verify(source, store.fetch(str(tmp_path / "renamed")), SMALL, progress=False)
    assert not list(tmp_path.glob("rrtf-verify-*"))


def test_a_small_run_says_on_how_little_it_rests(
    model: Path, source: Source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = convert_ct2(source, tmp_path / "int8", progress=False)
    flags = [flag for flag in FLAGS if flag != "--quiet"]
    note = "note: the intervals rest on 10 documents; thresholds belong to the defaults (--tokens 4096"
    assert main(["verify", str(model), str(folder), *flags]) == 0
    assert note in capsys.readouterr().err
    assert main(["verify", str(model), str(folder), *FLAGS]) == 0
    assert "note:" not in capsys.readouterr().err
    few = ["--prompts", "1", "--continuation", "1"]
    assert main(["verify", str(model), str(folder), *few]) == 0
    assert "note:" not in capsys.readouterr().err


def test_wrong_sizes_are_wrong_use(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags, message in (
        (["--tokens", "10"], "--tokens 10"),
        (["--length", "4000", "--tokens", "8000"], "--length 4000 and --continuation 64 need 4000"),
        (["--prompts", "0"], "--prompts is 0"),
        (["--device", "tpu"], "--device 'tpu'"),
    ):
        assert main(["verify", str(model), str(model), "--quiet", *flags]) == 2
        assert message in capsys.readouterr().err
    assert main(["verify", "a", "b", "c"]) == 2


def test_quantised_sources_are_no_reference(source: Source, store: Store, tmp_path: Path) -> None:
    folder = convert_ct2(source, tmp_path / "int8", progress=False)
    int8 = store.fetch(str(folder))
    with pytest.raises(ModelError, match="holds int8 weights, which are no reference"):
        verify(int8, int8, SMALL, progress=False)
    found = verify(int8, int8, replace(SMALL, reference_quantization="int8"), progress=False)
    assert found.parity.mean_kl.value < 1e-8
    assert "the reference is int8; its own rounding is in the figures" in found.warnings


def test_room_is_asked_for_before_anything_is_written(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(SMALL, scratch=tmp_path)
    monkeypatch.setattr(convert.verify, "available_memory", lambda: 10_000_000)
    with pytest.raises(ModelError, match=r"of memory, 10 MB are available.*--reference-quantization int8"):
        verify(source, source, options, progress=False)
    monkeypatch.setattr(convert.verify, "available_memory", lambda: None)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 99, 1))
    with pytest.raises(ModelError, match=r"not enough room in .*--scratch"):
        verify(source, source, options, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_card_is_measured_but_not_written(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = sorted(path.name for path in model.iterdir())
    assert main(["verify", str(model), str(model), *FLAGS]) == 0
    assert "has no card (rrtf.json); the result is only shown" in capsys.readouterr().err
    assert sorted(path.name for path in model.iterdir()) == names
    assert not write_parity(model, {})


def test_a_model_that_begins_with_a_token_is_measured_so(store: Store, tmp_path: Path) -> None:
    model = write_hf(tmp_path / "llama", "llama")
    settings = json.loads((model / "tokenizer_config.json").read_text("utf-8")) | {"add_bos_token": True}
    (model / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    source = store.fetch(str(model))
    with convert.verify.Reference.open(source, SMALL, progress=False) as reference:
        assert {window.ids[0] for window in reference.data.windows} == {1}


def test_a_vocabulary_of_another_size_is_refused(source: Source, store: Store, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "resized"
    shutil.copytree(source.path, folder)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([embedding, embedding[:8]])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    with pytest.raises(ModelError, match=r"has 136 rows in its vocabulary, .* has 128"):
        verify(source, store.fetch(str(folder)), SMALL, progress=False)


def test_a_gptq_folder_is_measured_by_its_exact_weights(
    model: Path, source: Source, store: Store, tmp_path: Path
) -> None:
    """The same figures as for a plain folder that holds the dequantised weights."""
    from safetensors.numpy import save_file

    from convert.gptq_source import GptqSource

    folder = write_packed(tmp_path / "gptq", model, bits=4, shuffled=True)
    plain = tmp_path / "plain"
    shutil.copytree(model, plain)
    packed = GptqSource(folder)
    tensors = {name: packed.rows(name, 0, packed.shape(name)[0]) for name in packed.names}
    packed.close()
    save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
    found = [verify(source, store.fetch(str(each)), SMALL, progress=False) for each in (folder, plain)]
    assert found[0].parity == found[1].parity
    assert [each.variant for each in found] == ["gptq-4bit", ""]
    assert found[0].record["weights"] == "exact, written as float32"
    assert found[0].parity.mean_kl.value > 0.001


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"threads": -1}, "--threads is -1; it must be from 0 to 1024"),
        ({"threads": 100_000}, "--threads is 100000"),  # CTranslate2 crashes
        ({"seed": -1}, "--seed is -1; it must be at least 0"),
        ({"scratch": Path("/no/such/folder")}, "--scratch /no/such/folder: no such folder"),
    ],
)
def test_values_that_would_fail_late_are_refused_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Options(**options)


def test_a_card_that_cannot_be_written_is_said(
    source: Source,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = convert_ct2(source, tmp_path / "int8", quantization="int8", progress=False)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "rrtf.json"))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["verify", str(source.path), str(folder), *FLAGS]) == 1
    assert "No space left on device" in capsys.readouterr().err
    card = read_card(folder)
    assert card is not None and card.parity is None
