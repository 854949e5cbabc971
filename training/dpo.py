"""DPO (arXiv 2305.18290, equation 7) on the same pairs, tokens, batches and steps as RRTF: a control.

TRL's DPOTrainer cuts its batches by pairs and tokenises texts its own way, so a comparison through it would
differ in more than the loss. The loss here is held against TRL's in the tests instead.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from training.encoding import Encoded
from training.loss import Terms
from training.packing import Rows, micro_batches, pack
from training.scorer import score_rows

# Log-probability of each answer, by tuple, under the model that training starts from.
Reference = dict[str, tuple[float, ...]]


def reference_sums(
    scorer: nn.Module, items: Sequence[Encoded], budget_tokens: int, layout: str, device: torch.device
) -> Reference:
    """Of all tuples, with the model as it is now; every process is to call it with the same tuples."""
    found: Reference = {}
    with torch.no_grad():
        for each in micro_batches(items, budget_tokens, layout):
            sums = iter(score_rows(scorer, pack(each, layout).to(device)).tolist())
            found |= {item.name: tuple(next(sums) for _ in item.answers) for item in each}
    return found


def dpo_terms(sums: Tensor, rows: Rows, items: Sequence[Encoded], reference: Reference, beta: float) -> Terms:
    """sums: [A], the log-probability of each answer of `items`, as `rows` lists them. A tuple's loss, in
    `rank`, is the mean over its pairs; without pairs it is 0.
    """
    before = sums.new_tensor([value for item in items for value in reference[item.name]])
    ratio = sums - before
    pairs = -nn.functional.logsigmoid(beta * (ratio[rows.teacher] - ratio[rows.student]))
    counts = torch.bincount(rows.pair_owner, minlength=len(rows.chosen)).clamp(min=1)
    rank = sums.new_zeros(len(rows.chosen)).index_add(0, rows.pair_owner, pairs) / counts
    p = sums / rows.lengths
    return Terms(rank, rank, -sums[rows.chosen], p, p[rows.teacher] - p[rows.student])
