"""The default model, held against transformers and CTranslate2's own converter. Minutes of CPU."""

from __future__ import annotations

import gc
import inspect
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import ctranslate2
import numpy as np
import numpy.typing as npt
import pytest
from ctranslate2.converters import TransformersConverter
from test_convert import measured_conversion

from convert import architectures
from convert.ct2 import convert
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer

pytestmark = pytest.mark.slow

TOKENS_PER_FILE = 128


@pytest.fixture(scope="module")
def converted(qwen_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("qwen") / "int8"
    yield convert(qwen_source, folder, progress=False)
    shutil.rmtree(folder)


def test_time_memory_and_size(qwen_source: Source, tmp_path: Path) -> None:
    seconds, megabytes = measured_conversion(qwen_source, tmp_path / "out")
    size = sum(path.stat().st_size for path in (tmp_path / "out").iterdir()) / 1e6
    print(f"{seconds:.1f} s, {megabytes:.0f} MB at the peak, {size:.0f} MB on disk")
    assert seconds <= 60
    assert megabytes <= 500
    assert size <= 510
    card = read_card(tmp_path / "out")
    assert card is not None and card.tied_output == "output.weight"
    shutil.rmtree(tmp_path / "out")


def test_bytes_equal_the_long_way_round(qwen_source: Source, converted: Path, tmp_path: Path) -> None:
    """GGUF -> transformers (float32, both matrices tied to the Q8_0 copy) -> CTranslate2's own converter."""
    import transformers

    file = tmp_path / qwen_source.path.name
    file.symlink_to(qwen_source.path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about its GGUF reader
        causal: Any = transformers.AutoModelForCausalLM
        model = causal.from_pretrained(
            tmp_path,
            gguf_file=file.name,
            quantization_config=transformers.GgufConfig(dequantize=True),
            dtype="float32",
        )
    model.model.embed_tokens.weight = model.lm_head.weight
    model.config.tie_word_embeddings = True
    model.hf_quantizer = None
    model.save_pretrained(tmp_path / "hf")
    del model
    gc.collect()
    shutil.copy(converted / "tokenizer.json", tmp_path / "hf")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    TransformersConverter(str(tmp_path / "hf")).convert(str(tmp_path / "theirs"), quantization="int8")
    theirs = np.memmap(tmp_path / "theirs" / "model.bin", np.uint8, "r")
    ours = np.memmap(converted / "model.bin", np.uint8, "r")
    assert theirs.shape == ours.shape
    assert np.array_equal(theirs, ours)


def held_out_code(tokenizer: Tokenizer) -> list[list[int]]:
    """The beginnings of some modules of the standard library, as token ids."""
    import argparse
    import heapq
    import json.decoder
    import statistics
    import textwrap
    import zipfile

    modules: list[ModuleType] = [argparse, heapq, json.decoder, statistics, textwrap, zipfile]
    texts = (inspect.getsource(module) for module in modules)
    return [tokenizer.encode(text[:8000], specials=False)[:TOKENS_PER_FILE] for text in texts]


def log_probabilities(generator: Any, names: list[str], ids: list[int]) -> npt.NDArray[np.float32]:
    """(tokens, vocabulary), natural logarithms."""
    view = generator.forward_batch([[names[i] for i in ids]], return_log_probs=True)
    found: npt.NDArray[np.float32] = np.array(view)[0]
    return found


def test_tying_the_matrices_changes_next_to_nothing(
    qwen_source: Source, converted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL(untied || tied) per token and top-1 agreement in int8, next to what 8-bit rounding itself costs."""
    exact = convert(qwen_source, tmp_path / "float32", quantization="float32", progress=False)
    monkeypatch.setattr(architectures, "nearly_equal", lambda *_: False)
    untied = convert(qwen_source, tmp_path / "untied", progress=False)
    untied_exact = convert(qwen_source, tmp_path / "untied32", quantization="float32", progress=False)
    assert (untied / "model.bin").stat().st_size > 1.25 * (converted / "model.bin").stat().st_size
    tokenizer = Tokenizer.load(converted)
    names = json.loads((converted / "vocabulary.json").read_text("utf-8"))
    pairs = {
        "tied against untied, float32": (untied_exact, exact),
        "tied against untied, int8": (untied, converted),
        "int8 against float32, both tied": (exact, converted),
    }
    results = {}
    for label, (first, second) in pairs.items():
        generators = [ctranslate2.Generator(str(folder)) for folder in (first, second)]
        divergences, agreements = [], []
        for ids in held_out_code(tokenizer):
            p, q = (log_probabilities(generator, names, ids) for generator in generators)
            divergences.append((np.exp(p) * (p - q)).sum(axis=1))
            agreements.append(p.argmax(axis=1) == q.argmax(axis=1))
        divergence, agreement = np.concatenate(divergences), np.concatenate(agreements)
        results[label] = float(divergence.mean()), float(agreement.mean())
        print(
            f"{label}: mean KL {divergence.mean():.5f} nats per token, top-1 agreement "
            f"{100 * agreement.mean():.2f} % of {len(agreement)} tokens"
        )
    mean_divergence, agreed = results["tied against untied, float32"]
    assert mean_divergence < 0.001
    assert agreed > 0.98
    # In int8 the pair is about as far apart as 8-bit rounding makes any two: it depends on every input bit.
    assert all(mean < 0.03 and share > 0.9 for mean, share in results.values())
