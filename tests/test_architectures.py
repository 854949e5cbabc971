"""Each family's table: float32 conversions give transformers' logits and greedy tokens."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from tiny_models import CONFIGS, END, TOKENS, tokens, weights, write_gguf, write_hf

from convert.architectures import relative_difference, specify
from convert.ct2 import convert
from convert.gguf_source import GgufSource
from convert.safetensors_source import SafetensorsSource
from convert.writer import write_model
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source

# Prompt lengths; the window of the tiny StarCoder2 is 16 tokens.
LENGTHS = (1, 5, 16, 60)
NEW = 40


def float32_folder(folder: Path, destination: Path) -> Path:
    source = Source(folder, Kind.HF, folder.name)
    return convert(source, destination, quantization="float32", progress=False)


def reference(folder: Path) -> Any:
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )  # in evaluation mode already


def logits_of(model: Any, ids: list[int]) -> np.ndarray[Any, Any]:
    import torch

    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.tensor([ids])).logits[0].numpy()
    return found


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_logits_and_greedy_tokens_equal_transformers(name: str, tmp_path: Path) -> None:
    import torch

    folder = write_hf(tmp_path / name, name)
    converted = float32_folder(folder, tmp_path / "ct2")
    card = read_card(converted)
    assert card is not None
    generator = ctranslate2.Generator(str(converted), compute_type="float32")
    model = reference(folder)
    random = np.random.default_rng(1)
    names = tokens()
    for length in (n for n in LENGTHS if n <= card.context_length):
        ids = random.integers(3, TOKENS, length).tolist()
        expected = logits_of(model, ids)
        found = np.array(generator.forward_batch([[names[i] for i in ids]]))[0]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
        new = min(NEW, card.context_length - length)
        if not new:
            continue
        with torch.no_grad():
            answer = model.generate(
                torch.tensor([ids]), max_new_tokens=new, do_sample=False, eos_token_id=END, pad_token_id=0
            )[0, length:].tolist()
        (result,) = generator.generate_batch(
            [[names[i] for i in ids]], max_length=new, end_token=[END], include_prompt_in_result=False,
            beam_size=1, return_end_token=True,
        )  # fmt: skip
        assert result.sequences_ids[0] == answer


def test_a_sliding_window_limits_the_context(tmp_path: Path) -> None:
    """Up to the window full attention is the model itself; past it, it is not: the card stops there."""
    folder = write_hf(tmp_path / "model", "starcoder2")
    converted = float32_folder(folder, tmp_path / "ct2")
    card = read_card(converted)
    assert card is not None and card.context_length == 16
    generator = ctranslate2.Generator(str(converted), compute_type="float32")
    ids = np.random.default_rng(1).integers(3, TOKENS, 60).tolist()
    expected = logits_of(reference(folder), ids)
    found = np.array(generator.forward_batch([[tokens()[i] for i in ids]]))[0]
    difference = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    assert difference[:16].max() <= 1e-5
    assert difference[16:].min() > 1e-4  # were it equal, the limit would be needless


@pytest.mark.parametrize("name", ["llama", "llama-biased", "qwen2", "qwen3", "starcoder", "starcoder2"])
def test_gguf_and_hugging_face_give_the_same_bytes(name: str, tmp_path: Path) -> None:
    """Names, row order of rotary queries and keys, and the rest: the same float32 weights, once as GGUF."""
    folder = write_hf(tmp_path / name, name)
    file = write_gguf(tmp_path / "model.gguf", folder)
    for quantization in ("float32", "int8"):
        for source, out in ((SafetensorsSource(folder), "hf.bin"), (GgufSource(file), "gguf.bin")):
            with closing(source):
                write_model(tmp_path / out, specify(source), source, quantization)
        assert (tmp_path / "hf.bin").read_bytes() == (tmp_path / "gguf.bin").read_bytes()


def test_gguf_facts_equal_those_of_the_folder(tmp_path: Path) -> None:
    for name in ("llama", "qwen2", "starcoder", "starcoder2-unwindowed"):
        folder = write_hf(tmp_path / name, name)
        file = write_gguf(tmp_path / f"{name}.gguf", folder)
        with closing(SafetensorsSource(folder)) as hf, closing(GgufSource(file)) as gguf:
            assert replace(gguf.config, norm_epsilon=0, biased=None) == replace(
                hf.config,
                naming="gguf",
                tied=None,
                biased=None,
                norm_epsilon=0,
                # GGUF never says: the window that StarCoder2 was trained with is taken.
                sliding_window=4096 if "starcoder2" in name else None,
            )
            assert gguf.config.norm_epsilon == pytest.approx(hf.config.norm_epsilon)


def gguf_with_two_matrices(
    tmp_path: Path, difference: float, *, embedding: Type = Type.Q5_0, output: Type = Type.Q8_0
) -> GgufSource:
    """A tied model's GGUF file with an output matrix: the embedding plus noise of that relative size."""
    folder = write_hf(tmp_path / "hf", "qwen2")
    matrix = weights(folder)["model.embed_tokens.weight"]
    noise = np.random.default_rng(0).standard_normal(matrix.shape, dtype=np.float32) * matrix.std()
    file = write_gguf(
        tmp_path / "model.gguf",
        folder,
        types={"token_embd.weight": embedding, "output.weight": output},
        extra={"output.weight": matrix + difference * noise},
    )
    return GgufSource(file)


@pytest.mark.parametrize(
    ("embedding", "output", "kept"),
    [
        (Type.Q5_0, Type.Q8_0, "output.weight"),
        (Type.Q4_0, Type.Q8_0, "output.weight"),
        (Type.F16, Type.Q5_1, "token_embd.weight"),
        (Type.F32, Type.F32, "token_embd.weight"),
    ],
)
def test_two_copies_of_one_matrix_are_tied_to_the_better_one(
    tmp_path: Path, embedding: Type, output: Type, kept: str
) -> None:
    with closing(gguf_with_two_matrices(tmp_path, 0.0, embedding=embedding, output=output)) as source:
        specification = specify(source)
        assert specification.tied_output == kept
        size = write_model(tmp_path / "model.bin", specification, source, "float32")
        expected = source.rows(kept, 0, 128)
    assert expected.tobytes() in (tmp_path / "model.bin").read_bytes()
    assert size < (tmp_path / "hf" / "model.safetensors").stat().st_size + 4096


@pytest.mark.parametrize("difference", [0.25, 1.0, 1.4])
def test_matrices_that_differ_by_more_than_quantising_does_are_not_tied(
    tmp_path: Path, difference: float
) -> None:
    with closing(gguf_with_two_matrices(tmp_path, difference)) as source:
        assert relative_difference(source, "token_embd.weight", "output.weight") > 0.1
        assert specify(source).tied_output == ""


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    file = write_gguf(
        tmp_path / "model.gguf",
        write_hf(tmp_path / "hf", "llama"),
        extra={"blk.1.ffn_up.weight": np.zeros((64, 31), np.float32)},
    )
    with closing(GgufSource(file)) as source, pytest.raises(ModelError, match=r"blk\.1\.ffn_up.*\(64, 31\)"):
        specify(source)


def test_a_head_size_that_no_tensor_has_is_refused_before_it_costs_memory(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "model.gguf", write_hf(tmp_path / "hf", "llama"))
    with closing(GgufSource(file)) as source:
        source.config = replace(source.config, head_dim=1 << 30)
        with pytest.raises(ModelError, match=r"blk\.0\.attn_q.*\(32, 32\).*\(4294967296, 32\)"):
            specify(source)


def test_an_embedding_that_is_no_matrix_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    folder = write_hf(tmp_path / "hf", "llama")
    changed = weights(folder) | {"model.embed_tokens.weight": np.array(1, np.float32)}
    save_file(changed, folder / "model.safetensors")
    with (
        closing(SafetensorsSource(folder)) as source,
        pytest.raises(ModelError, match=r"embed_tokens\.weight has the shape \(\); it should be a matrix"),
    ):
        specify(source)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", "llama")
    config = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(config.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    with (
        closing(SafetensorsSource(folder)) as source,
        pytest.raises(ModelError, match=r"model\.layers\.2\.\S+ is missing"),
    ):
        specify(source)


def test_an_unknown_activation_lists_the_known(tmp_path: Path) -> None:
    folder = write_hf(tmp_path / "hf", "llama")
    config = (folder / "config.json").read_text("utf-8")
    (folder / "config.json").write_text(config.replace('"silu"', '"xielu"'))
    with (
        closing(SafetensorsSource(folder)) as source,
        pytest.raises(ModelError, match=r"'xielu'.*known: .*silu"),
    ):
        specify(source)


def test_llama_3_1_in_gguf_is_the_folder_s_model(tmp_path: Path) -> None:
    """llama.cpp stores Llama 3.1's scaling as the table of divisors that transformers' frequencies give."""
    folder = write_hf(tmp_path / "model", "llama-llama3-rope")
    with closing(SafetensorsSource(folder)) as hf:
        scaling = hf.config.rope_scaling
        assert scaling is not None
        base = 1000.0 ** -(np.arange(0, 8, 2) / 8)
        expected = reference(folder).model.rotary_emb.inv_freq.numpy()
        assert base / np.array(scaling.divisors) == pytest.approx(expected, rel=1e-6)
        file = write_gguf(
            tmp_path / "model.gguf",
            folder,
            extra={"rope_freqs.weight": np.array(scaling.divisors, np.float32)},
        )
        with closing(GgufSource(file)) as gguf:
            for source, out in ((hf, "hf.bin"), (gguf, "gguf.bin")):
                write_model(tmp_path / out, specify(source), source, "float32")
    assert (tmp_path / "hf.bin").read_bytes() == (tmp_path / "gguf.bin").read_bytes()
