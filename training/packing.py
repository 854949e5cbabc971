"""Tuples as tensors, in either of two layouts.

shared    one row per tuple: the prompt once, then its answers one behind the other. A block mask keeps the
          answers from seeing each other, and each answer's positions go on from the prompt's end.
separate  one row per answer, the prompt repeated, padding on the right and a plain causal mask: for
          FlashAttention and for models that take no mask of ours.

Both give an answer the log-probabilities it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from training.encoding import Encoded
from training.fit_options import LAYOUTS

PADDING = -1


@dataclass(frozen=True)
class Rows:
    """One forward pass. B rows of L tokens; N answer tokens; A answers of T tuples; P pairs."""

    ids: Tensor  # [B, L]
    positions: Tensor  # [B, L]
    segments: Tensor  # [B, L]: 0 prompt, 1.. the row's answers, PADDING
    reading: Tensor  # [N]: the place in the flattened rows whose state predicts the token
    targets: Tensor  # [N]
    owner: Tensor  # [N]: whose token it is, of A
    lengths: Tensor  # [A]: tokens of each answer, its end included
    teacher: Tensor  # [P], of A
    student: Tensor  # [P], of A
    weight: Tensor  # [P], float64
    pair_owner: Tensor  # [P], of T
    chosen: Tensor  # [T], of A
    tokens: int  # without padding

    def to(self, device: torch.device) -> Rows:
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def micro_batches(items: Sequence[Encoded], budget_tokens: int, layout: str) -> list[list[Encoded]]:
    """Cut a batch into forward passes of at most `budget_tokens`, padding included, like lengths together.

    A tuple that is larger alone is a pass of its own.
    """
    ordered = sorted(items, key=lambda item: (_width(item, layout), item.name))
    passes: list[list[Encoded]] = []
    rows = 0
    for item in ordered:
        rows += _rows(item, layout)
        if not passes or rows * _width(item, layout) > budget_tokens:
            passes.append([])
            rows = _rows(item, layout)
        passes[-1].append(item)
    return passes


def _width(item: Encoded, layout: str) -> int:
    return item.shared_tokens if layout == "shared" else item.longest


def _rows(item: Encoded, layout: str) -> int:
    return 1 if layout == "shared" else len(item.answers)


def pack(items: Sequence[Encoded], layout: str) -> Rows:
    """The tensors of one forward pass. Raises ValueError on a layout not known, or without items."""
    if layout not in LAYOUTS:
        raise ValueError(f"--layout {layout}: must be one of {', '.join(LAYOUTS)}")
    if not items:
        raise ValueError("there is nothing to pack")
    rows = [row for item in items for row in _layout(item, layout)]
    width = max(len(row.ids) for row in rows)
    firsts, total = [], 0
    for item in items:
        firsts.append(total)
        total += len(item.answers)
    reading: list[int] = []
    targets: list[int] = []
    owner: list[int] = []
    answer = 0
    for at, row in enumerate(rows):
        for start, tokens in zip(row.starts, row.answers, strict=True):
            # The first token is predicted where the prompt ends, the others where the one before them stands.
            places = [row.prompt - 1, *range(start, start + len(tokens) - 1)]
            reading += [at * width + place for place in places]
            targets += tokens
            owner += [answer] * len(tokens)
            answer += 1
    pairs = [(firsts[at], at, pair) for at, item in enumerate(items) for pair in item.pairs]
    return Rows(
        ids=_padded([row.ids for row in rows], width, 0),
        positions=_padded([row.positions for row in rows], width, 0),
        segments=_padded([row.segments for row in rows], width, PADDING),
        reading=torch.tensor(reading),
        targets=torch.tensor(targets),
        owner=torch.tensor(owner),
        lengths=torch.tensor([len(answer) for item in items for answer in item.answers]),
        teacher=_integers([first + pair.teacher for first, _, pair in pairs]),
        student=_integers([first + pair.student for first, _, pair in pairs]),
        weight=torch.tensor([pair.weight for _, _, pair in pairs], dtype=torch.float64),
        pair_owner=_integers([at for _, at, _ in pairs]),
        chosen=_integers([first + item.chosen for first, item in zip(firsts, items, strict=True)]),
        tokens=sum(len(row.ids) for row in rows),
    )


def block_mask(segments: Tensor, positions: Tensor, window: int | None) -> Tensor:
    """[B, 1, L, L], True where a token (third axis) sees another (fourth): an earlier one of the prompt or of
    its own answer, less than `window` positions back. Padding sees itself alone, as an empty row is no
    softmax.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    asking, asked = segments[:, :, None], segments[:, None, :]
    seen = causal & (asked != PADDING) & ((asked == 0) | (asked == asking))
    if window is not None:
        seen &= positions[:, :, None] - positions[:, None, :] < window
    return (seen | torch.eye(length, dtype=torch.bool, device=segments.device))[:, None]


@dataclass(frozen=True)
class _Row:
    ids: list[int]
    positions: list[int]
    segments: list[int]
    prompt: int  # its length
    starts: list[int]  # of the answers
    answers: list[tuple[int, ...]]


def _layout(item: Encoded, layout: str) -> list[_Row]:
    if layout == "shared":
        return [_row(item.prompt, item.answers)]
    return [_row(item.prompt, (answer,)) for answer in item.answers]


def _row(prompt: tuple[int, ...], answers: Sequence[tuple[int, ...]]) -> _Row:
    row = _Row(list(prompt), list(range(len(prompt))), [0] * len(prompt), len(prompt), [], list(answers))
    for number, answer in enumerate(answers, 1):
        row.starts.append(len(row.ids))
        row.ids.extend(answer)
        row.positions.extend(range(len(prompt), len(prompt) + len(answer)))
        row.segments.extend([number] * len(answer))
    return row


def _padded(rows: list[list[int]], width: int, filler: int) -> Tensor:
    return torch.tensor([row + [filler] * (width - len(row)) for row in rows])


def _integers(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)
