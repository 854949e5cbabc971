"""DPO's loss is TRL's: value and gradient of its DPOTrainer on the same pairs and tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_models import write_hf
from tuples import encoded

from training.dpo import dpo_terms, reference_sums
from training.packing import pack
from training.scorer import Scorer, score_rows

BETA = 0.3


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's own, of transformers' names
def test_loss_and_gradient_are_those_of_trl(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    items = [encoded(seed, 2) for seed in range(4)]
    before = transformers.AutoModelForCausalLM.from_pretrained(write_hf(tmp_path / "a", "qwen2"))
    model = transformers.AutoModelForCausalLM.from_pretrained(write_hf(tmp_path / "b", "qwen2", seed=1))

    rows = pack(items, "shared")
    reference = reference_sums(Scorer(before, "shared"), items, 64, "shared", torch.device("cpu"))
    terms = dpo_terms(score_rows(Scorer(model, "shared"), rows), rows, items, reference, BETA)
    ours = terms.total.mean()
    ours.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()

    class Tokenised(trl.DPOTrainer):  # type: ignore[name-defined,misc]
        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    lines = [
        {"prompt_ids": [*item.prompt], "chosen_ids": [*item.answers[0]], "rejected_ids": [*item.answers[1]]}
        for item in items
    ]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "a", pad_token="<unk>")
    options = trl.DPOConfig(
        str(tmp_path / "out"), beta=BETA, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False
    )
    theirs = Tokenised(
        model, before, options, train_dataset=datasets.Dataset.from_list(lines), processing_class=tokenizer
    )
    theirs.model.train()
    loss = theirs.compute_loss(theirs.model, theirs.data_collator(lines))
    loss.backward()
    assert ours.item() == pytest.approx(loss.item(), rel=1e-5)
    for name, weight in theirs.model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-6)


def test_several_pairs_are_averaged_and_none_is_zero() -> None:
    items = [encoded(1, 3), replace(encoded(2, 1), pairs=())]
    rows = pack(items, "shared")
    reference = {items[0].name: (-5.0, -5.0, -5.0), items[1].name: (-5.0,)}
    sums = torch.tensor([-4.0, -5.0, -6.0, -1.0], dtype=torch.float64, requires_grad=True)
    terms = dpo_terms(sums, rows, items, reference, BETA)
    expected = -(torch.sigmoid(torch.tensor([0.3, 0.6], dtype=torch.float64)).log()).mean()
    assert terms.total.tolist() == pytest.approx([float(expected), 0])
    terms.total.sum().backward()
    assert sums.grad is not None and sums.grad[3] == 0
