"""The RRTF loss (arXiv 2307.14936, section 3.3) and the controls that share its parts.

With p_i = (sum over t of log P(y_it | x, y_i<t)) / ||y_i||:

    L_rank = - sum over r_tea > r_stu of (r_tea - r_stu) min(0, p_tea - p_stu)
    L_ft   = - sum over t of log P(y_tea,t | x, y_tea,<t)
    L      = L_rank + L_ft

The paper is silent on several prompts at a time; here the loss of a batch is the mean over its prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from training.fit_options import LossOptions
from training.packing import Rows


@dataclass(frozen=True)
class Terms:
    """Of T tuples and P pairs. `total` is what is differentiated; the rest is for the log."""

    total: Tensor  # [T]
    rank: Tensor  # [T], without its weight
    ft: Tensor  # [T], without its weight
    p: Tensor  # [A], mean log-probability of each answer's tokens
    gap: Tensor  # [P], p_tea - p_stu


def rank_loss(gap: Tensor, weight: Tensor, margin: float = 0.0) -> Tensor:
    """gap: [P] p_tea - p_stu; weight: [P] r_tea - r_stu; the result: [P], none negative.

    At gap == margin, where the hinge has no derivative, the gradient is 0.
    """
    return weight * torch.relu(margin - gap)


def loss_terms(sums: Tensor, rows: Rows, options: LossOptions) -> Terms:
    """sums: [A], the log-probability of each answer, as `rows` lists them."""
    p = sums / rows.lengths
    gap = p[rows.teacher] - p[rows.student]
    pairs = rank_loss(gap, rows.weight.to(p.dtype), options.margin)
    rank = p.new_zeros(len(rows.chosen)).index_add(0, rows.pair_owner, pairs)
    ft = -(sums if options.ft_reduction == "sum" else p)[rows.chosen]
    return Terms(options.rank_weight * rank + options.ft_weight * ft, rank, ft, p, gap)
