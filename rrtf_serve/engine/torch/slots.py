"""Keys and values of rows: one slot per row, a slot's tokens one after another.

A slot is filled from its start, so what a row holds is a number, its length; whatever lies beyond that is
never read. The store grows to what is held, up to double at a time.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LENGTH_STEP = 128  # tokens; slots are as long as the longest row, rounded up


class Slots:
    """Per layer two tensors, keys and values: [slots, tokens, kv_heads, head_dim]."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._shape = (kv_heads, head_dim)
        self._count = self._length = 0
        empty = torch.empty(0, 0, kv_heads, head_dim, dtype=dtype, device=device)
        self._keys = [empty] * layers
        self._values = [empty] * layers

    @property
    def bytes(self) -> int:
        """What the store takes, filled or not."""
        return sum(tensor.nbytes for tensor in (*self._keys, *self._values))

    def empty(self) -> Slots:
        """A store of the same kind that holds nothing."""
        first = self._keys[0]
        return Slots(len(self._keys), *self._shape, dtype=first.dtype, device=first.device)

    def reserve(self, count: int, length: int) -> None:
        """Make room for `count` slots of `length` tokens; what they hold stays."""
        if count <= self._count and length <= self._length:
            return
        if length > self._length:
            length = -(-max(length, min(2 * self._length, length + 1024)) // _LENGTH_STEP) * _LENGTH_STEP
        held = (self._count, self._length)
        self._count, self._length = max(count, self._count), max(length, self._length)
        for tensors in (self._keys, self._values):
            for layer, old in enumerate(tensors):
                # One layer at a time: the old and the new one of all layers are never there together.
                # Zeros: what is hidden is multiplied by 0, which a chance NaN would survive.
                new = torch.zeros(self._count, self._length, *self._shape, dtype=old.dtype, device=old.device)
                new[: held[0], : held[1]] = old
                tensors[layer] = new

    def copy(self, source: int, target: int, length: int) -> None:
        """Let slot `target` hold what `source` does: its first `length` tokens."""
        for tensors in (self._keys, self._values):
            for tensor in tensors:
                tensor[target, :length] = tensor[source, :length]

    def write(self, layer: int, first: int, starts: Tensor | int, keys: Tensor, values: Tensor) -> None:
        """Put new tokens into slots first, first + 1, ...

        keys, values: [rows, kv_heads, new, head_dim]. `starts`: the tokens that every slot holds so far; a
        tensor [rows] where they differ, and then one new token each.
        """
        rows, _, new, _ = keys.shape
        for store, fresh in ((self._keys[layer], keys), (self._values[layer], values)):
            if isinstance(starts, int):
                store[first : first + rows, starts : starts + new] = fresh.transpose(1, 2)
            else:
                store[torch.arange(first, first + rows, device=store.device), starts] = fresh[:, :, 0]

    def read(self, layer: int, first: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of `length` tokens: two views [rows, kv_heads, length, head_dim]."""
        keys, values = (
            tensors[layer][first : first + rows, :length].transpose(1, 2)
            for tensors in (self._keys, self._values)
        )
        return keys, values
