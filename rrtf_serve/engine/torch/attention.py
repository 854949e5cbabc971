"""What transformers' attention layers call in this engine.

The function is registered under a name of its own; transformers hands it the queries, keys and values of
every layer and the keyword arguments that the model was called with, among them the `Pass`. So no cache
object and no mask of transformers' own takes part.
https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rrtf_serve.engine.torch.slots import Slots

NAME = "rrtf_slots"


@dataclass
class Pass:
    """One forward pass: as many new tokens for each of some rows, whose slots lie next to one another.

    `starts`: tokens that the slots held before; a list, one number per row, only with one new token each.
    """

    slots: Slots
    first: int  # slot of the first row
    starts: int | list[int]
    device: torch.device
    _starts: Tensor | int = field(init=False)
    _masks: dict[tuple[int | None, int], Tensor | None] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.starts, int):
            self._starts = self.starts
        elif len(set(self.starts)) == 1:
            self._starts = self.starts[0]
        else:
            self._starts = torch.tensor(self.starts, device=self.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """query: [R, H, n, D], key and value: [R, KV, n, D] -> [R, H, n, D].

        `window`: how many tokens, its own counted, a token sees; None: all before it.
        """
        rows, heads, new, width = query.shape
        self.slots.write(layer, self.first, self._starts, key, value)
        length = new + (self.starts if isinstance(self.starts, int) else max(self.starts))
        groups = heads // key.shape[1]
        if new == 1:
            # The heads that share keys stand where tokens would: no key is copied.
            keys, values = self.slots.read(layer, self.first, rows, length)
            packed = query.reshape(rows, -1, groups, width)
            mask = self._mask(window, new, length, query.dtype)
            found = scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=scale)
            return found.reshape(rows, heads, 1, width)
        if length > new:
            key, value = self.slots.read(layer, self.first, rows, length)
        mask = self._mask(window, new, length, query.dtype)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=groups > 1,
        )

    def _mask(self, window: int | None, new: int, length: int, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores: [1 or R, 1, n, T]. None where nothing is hidden but what comes later
        in a pass over fresh slots."""
        if window is not None and window >= length:
            window = None
        kind = (window, length)
        if kind not in self._masks:
            self._masks[kind] = self._build(window, new, length, dtype)
        return self._masks[kind]

    def _build(self, window: int | None, new: int, length: int, dtype: torch.dtype) -> Tensor | None:
        equal = isinstance(self._starts, int)
        if window is None and equal and (new in (1, length)):
            return None
        starts = torch.as_tensor(self._starts, device=self.device).reshape(-1, 1, 1)
        at = starts + torch.arange(new, device=self.device).reshape(1, -1, 1)  # [R, n, 1]
        keys = torch.arange(length, device=self.device)
        seen = keys <= at
        if window is not None:
            seen &= keys > at - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=self.device)
        return mask.masked_fill_(~seen, float("-inf")).unsqueeze(1)


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    slot_pass: Pass,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' side of it: gives [R, n, H, D]."""
    assert attention_mask is None, "masks are made here"
    found = slot_pass.attend(module.layer_idx, query, key, value, scale=scaling, window=sliding_window)
    return found.transpose(1, 2).contiguous(), None


def register() -> None:
    """Make NAME known to transformers. Idempotent."""
    AttentionInterface.register(NAME, _attention)
