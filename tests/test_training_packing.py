"""Packed rows give each answer what it has alone, in every family and layout."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import write_hf
from tuples import encoded

from training.encoding import Encoded
from training.packing import PADDING, block_mask, micro_batches, pack
from training.scorer import Scorer, score_rows

FAMILIES = (
    "llama", "mistral-windowed", "phi3", "qwen2", "qwen3", "starcoder", "starcoder-multi-head", "starcoder2",
)  # fmt: skip


CLOSE = 1e-6  # eager attention has its softmax in float32


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("tiny")
    return {name: write_hf(base / name, name) for name in FAMILIES}


def load(folder: Path, attention: str, **changes: object) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float64, attn_implementation=attention
    ).eval()


def alone(model: transformers.PreTrainedModel, items: list[Encoded]) -> list[float]:
    """Each answer behind its prompt in a row of its own, without mask, padding or positions of ours."""
    sums = []
    for item in items:
        for answer in item.answers:
            with torch.no_grad():
                logits = model(torch.tensor([[*item.prompt, *answer]]), use_cache=False).logits[0]
            logprobs = logits.log_softmax(-1)
            first = len(item.prompt) - 1
            sums.append(sum(float(logprobs[first + at, token]) for at, token in enumerate(answer)))
    return sums


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("layout", ["shared", "separate"])
@pytest.mark.parametrize("family", FAMILIES)
def test_each_answer_scores_as_it_does_alone(
    folders: dict[str, Path], family: str, layout: str, attention: str
) -> None:
    model = load(folders[family], attention)
    # Rows beyond the windows of 16 tokens.
    items = [encoded(seed, answers) for seed, answers in ((1, 3), (2, 1), (3, 4), (4, 2))]
    assert max(item.shared_tokens for item in items) > 24
    with torch.no_grad():
        sums = score_rows(Scorer(model, layout), pack(items, layout))
    assert sums.tolist() == pytest.approx(alone(model, items), rel=CLOSE)


def test_layers_with_and_without_a_window_get_a_mask_each(folders: dict[str, Path]) -> None:
    model = load(
        folders["qwen2"], "sdpa", use_sliding_window=True, sliding_window=4,
        layer_types=["full_attention", "sliding_attention"],
    )  # fmt: skip
    items = [encoded(seed) for seed in range(4)]
    with torch.no_grad():
        sums = score_rows(Scorer(model, "shared"), pack(items, "shared"))
    assert sums.tolist() == pytest.approx(alone(model, items), rel=CLOSE)
    full = load(folders["qwen2"], "sdpa")
    assert alone(full, items) != pytest.approx(alone(model, items), rel=1e-3)  # the window does something


def test_rows_written_out() -> None:
    item = Encoded("t", (5, 6), ((7, 8), (9,)), (), 0)
    rows = pack([item, Encoded("u", (4,), ((3,),), (), 0)], "shared")
    assert rows.ids.tolist() == [[5, 6, 7, 8, 9], [4, 3, 0, 0, 0]]
    assert rows.positions.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert rows.segments.tolist() == [[0, 0, 1, 1, 2], [0, 1, PADDING, PADDING, PADDING]]
    assert rows.reading.tolist() == [1, 2, 1, 5]
    assert rows.targets.tolist() == [7, 8, 9, 3]
    assert rows.owner.tolist() == [0, 0, 1, 2]
    assert rows.lengths.tolist() == [2, 1, 1]
    assert rows.tokens == 7
    seen = block_mask(rows.segments, rows.positions, None)[0, 0].int().tolist()
    assert seen == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    windowed = block_mask(rows.segments, rows.positions, 2)[0, 0].int().tolist()
    assert windowed == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 1, 0, 0, 1]]


@pytest.mark.parametrize("layout", ["shared", "separate"])
def test_passes_hold_every_tuple_once_within_the_budget(layout: str) -> None:
    items = [encoded(seed, 1 + seed % 4) for seed in range(40)]
    passes = micro_batches(items, 64, layout)
    assert sorted(item.name for each in passes for item in each) == sorted(item.name for item in items)
    assert len(passes) > 5
    for each in passes:
        assert pack(each, layout).ids.numel() <= 64 or len(each) == 1


def test_a_layout_that_is_not_known_is_named() -> None:
    with pytest.raises(ValueError, match="--layout flat: must be one of shared, separate"):
        pack([encoded(0)], "flat")
