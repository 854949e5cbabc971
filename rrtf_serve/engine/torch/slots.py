"""Keys and values of rows: one slot per row, a slot's tokens one after another.

A slot is filled from its start, so what it holds is a number, its length; whatever lies beyond that is zero.
All slots are equally long, but on Linux's CPUs memory is taken only where it was written: a short row beside
a long one costs what the short one holds. Slots that are emptied give their memory back.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rrtf_serve.engine.torch.pages import Pages

_LENGTH_STEP = 128  # tokens; slots are as long as the longest row, rounded up
_GROWTH = 1024  # tokens; by as much as this a slot may be longer than asked for


class Slots:
    """Per layer two tensors, keys and values: [slots, tokens, kv_heads, head_dim].

    Whoever writes into them calls `extend` first, and asks for `keys` and `values` again after it.
    """

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (kv_heads, head_dim)
        self.dtype, self.device = dtype, device
        self._keys = [self._pages(0, 0) for _ in range(layers)]
        self._values = [self._pages(0, 0) for _ in range(layers)]
        self._filled: list[int] = []  # tokens that each slot holds
        self._length = 0

    @property
    def count(self) -> int:
        """Slots that there are, empty ones among them."""
        return len(self._filled)

    @property
    def length(self) -> int:
        """Tokens for which each slot has room."""
        return self._length

    @property
    def bytes_per_token(self) -> int:
        heads, width = self._shape
        return 2 * len(self._keys) * heads * width * self.dtype.itemsize

    def filled(self, slot: int) -> int:
        """Tokens that a slot holds."""
        return self._filled[slot]

    def keys(self, layer: int) -> Tensor:
        """[slots, tokens, kv_heads, head_dim], contiguous. Its length may differ from other layers'."""
        return self._keys[layer].tensor

    def values(self, layer: int) -> Tensor:
        """As `keys`."""
        return self._values[layer].tensor

    def extend(self, places: Sequence[int], starts: Sequence[int], new: int) -> None:
        """Make room for `new` more tokens in each of the slots `places`, which hold `starts` tokens.

        What any slot holds stays. Raises MemoryError, torch.OutOfMemoryError; then nothing has changed.
        """
        self.reserve(max(places) + 1, max(starts) + new)
        for place, start in zip(places, starts, strict=True):
            self._filled[place] = start + new

    def reserve(self, count: int, length: int) -> None:
        """Make room for `count` slots of `length` tokens; what they hold stays. Raises as `extend`."""
        if count <= self.count and length <= self._length:
            return
        if length > self._length:
            length = -(-max(length, min(2 * self._length, length + _GROWTH)) // _LENGTH_STEP) * _LENGTH_STEP
        if self.count < count:
            count = max(count, min(2 * self.count, count + 8))
        count, length = max(count, self.count), max(length, self._length)
        for store in (self._keys, self._values):
            for layer, old in enumerate(store):
                # One at a time: the old and the new ones of all layers are never there together.
                new = self._pages(count, length)
                for slot, held in enumerate(self._filled):
                    new.tensor[slot, :held] = old.tensor[slot, :held]
                store[layer] = new
        self._filled += [0] * (count - self.count)
        self._length = length

    def truncate(self, slot: int, length: int) -> None:
        """Let a slot hold its first `length` tokens only."""
        held = self._filled[slot]
        if length >= held:
            return
        for pages in (*self._keys, *self._values):
            pages.clear(pages.tensor[slot, length:held])
        self._filled[slot] = length

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` hold the first `length` tokens of `source`, and nothing else."""
        self.truncate(target, 0)
        for pages in (*self._keys, *self._values):
            pages.tensor[target, :length] = pages.tensor[source, :length]
        self._filled[target] = length

    def clear(self) -> None:
        """Let no slot be there, and give all memory back."""
        for store in (self._keys, self._values):
            store[:] = [self._pages(0, 0) for _ in store]
        self._filled, self._length = [], 0

    def _pages(self, count: int, length: int) -> Pages:
        return Pages((count, length, *self._shape), self.dtype, self.device)
