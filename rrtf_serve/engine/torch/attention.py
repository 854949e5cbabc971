"""What transformers' attention layers call in this engine.

The function is registered under a name of its own; transformers hands it the queries, keys and values of
every layer and the keyword arguments that the model was called with, among them the `Pass`. So no cache
object and no mask of transformers' own takes part.
https://huggingface.co/docs/transformers/attention_interface
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from rrtf_serve.engine.torch.slots import Slots

NAME = "rrtf_slots"


class Pass:
    """One forward pass: some new tokens of one row, or one new token for each of some.

    places: the slot of each row. starts: tokens that it held before. new: tokens of each row in this pass, 1
    where there are several rows.
    """

    def __init__(self, slots: Slots, places: Sequence[int], starts: Sequence[int], new: int) -> None:
        slots.extend(places, starts, new)
        self._slots = slots
        self._places, self._starts, self._new = list(places), list(starts), new
        self._masks: dict[int | None, Tensor | None] = {}
        self._place_ids = torch.tensor(self._places, device=slots.device)
        self._start_ids = torch.tensor(self._starts, device=slots.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, window: int | None
    ) -> Tensor:
        """query: [R, H, n, D], key and value: [R, KV, n, D] -> [R, H, n, D].

        `window`: how many tokens, its own counted, a token sees; None: all before it.
        """
        keys, values = self._slots.keys(layer), self._slots.values(layer)
        if self._new > 1:
            return self._read_in(query, (keys, key), (values, value), scale, window)
        for store, fresh in ((keys, key), (values, value)):
            store[self._place_ids, self._start_ids] = fresh[:, :, 0].to(store.dtype)
        rows, heads, _, width = query.shape
        # The heads that share keys stand where tokens would: no key is copied.
        packed = query.reshape(rows, key.shape[1], heads // key.shape[1], width)
        attend = self._each if query.device.type == "cpu" else self._together
        return attend(keys, values, packed, scale, window).reshape(rows, heads, 1, width)

    def _read_in(
        self,
        query: Tensor,
        keys: tuple[Tensor, Tensor],
        values: tuple[Tensor, Tensor],
        scale: float,
        window: int | None,
    ) -> Tensor:
        """Several tokens of one row. keys, values: where they are kept, and the new ones."""
        place, start = self._places[0], self._starts[0]
        stop = start + self._new
        for store, fresh in (keys, values):
            store[place, start:stop] = fresh[0].transpose(0, 1)
        # What the slot rounds is read back, so that it doesn't matter in which pieces a prompt was read.
        key, value = (
            fresh
            if not start and store.dtype == fresh.dtype
            else store[place, :stop].transpose(0, 1).unsqueeze(0).to(query.dtype)
            for store, fresh in (keys, values)
        )
        mask = self._mask(window, query.dtype)
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def _each(self, keys: Tensor, values: Tensor, query: Tensor, scale: float, window: int | None) -> Tensor:
        """One row after another, each over what it sees and no more. query: [R, KV, groups, D]."""
        found = torch.empty_like(query)
        for row, (place, start) in enumerate(zip(self._places, self._starts, strict=True)):
            first = 0 if window is None else max(0, start + 1 - window)
            key, value = (
                store[place, first : start + 1].transpose(0, 1).unsqueeze(0).to(query.dtype)
                for store in (keys, values)
            )
            found[row] = scaled_dot_product_attention(query[row : row + 1], key, value, scale=scale)[0]
        return found

    def _together(
        self, keys: Tensor, values: Tensor, query: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """All rows in one call, over as many tokens as the longest holds. query: [R, KV, groups, D]."""
        first, rows = self._places[0], len(self._places)
        length = max(self._starts) + 1
        side_by_side = self._places == list(range(first, first + rows))
        key, value = (
            (store[first : first + rows, :length] if side_by_side else store[:, :length][self._place_ids])
            .transpose(1, 2)
            .to(query.dtype)
            for store in (keys, values)
        )
        mask = self._mask(window, query.dtype)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        """What is added to the scores: [R, 1, n, T]. None where nothing is hidden but what comes later in a
        pass over an empty slot."""
        if window is not None and window >= max(self._starts) + self._new:
            window = None
        if window not in self._masks:
            self._masks[window] = self._build(window, dtype)
        return self._masks[window]

    def _build(self, window: int | None, dtype: torch.dtype) -> Tensor | None:
        equal = len(set(self._starts)) == 1
        if window is None and equal and (self._new == 1 or not self._starts[0]):
            return None
        device = self._start_ids.device
        at = self._start_ids.reshape(-1, 1, 1) + torch.arange(self._new, device=device).reshape(1, -1, 1)
        keys = torch.arange(max(self._starts) + self._new, device=device)
        seen = keys <= at  # [R, n, T]
        if window is not None:
            seen &= keys > at - window
        mask = torch.zeros(seen.shape, dtype=dtype, device=device)
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
