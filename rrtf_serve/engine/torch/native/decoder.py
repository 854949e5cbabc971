"""Forward passes of a model on a CPU through the compiled kernels: token ids in, logits out."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from rrtf_serve.engine.torch.native import layout, library
from rrtf_serve.engine.torch.native.checkpoint import load
from rrtf_serve.engine.torch.slots import Slots

_LOGITS_BYTES = 64 * 2**20  # what scoring holds in logits at a time
_STORES = {torch.float32: layout.FLOAT32, torch.bfloat16: layout.BFLOAT16}


class NativeDecoder:
    """What `decoder.Decoder` offers, for the families and folders of `checkpoint`.

    Matrices are multiplied in bfloat16 with float32 sums; all else is float32. A token's logits are the same
    to the last bit whatever else shares the pass and however the prompt was cut. To be called by one thread
    at a time. Raises what `checkpoint.load` raises, and KernelError.
    """

    def __init__(self, folder: Path, *, context_length: int, output_bits: int | None = None) -> None:
        self._library = library.load()
        self._weights = load(folder, context_length=context_length, output_bits=output_bits)
        self.vocabulary = self._weights.vocabulary
        self.device, self.dtype = torch.device("cpu"), torch.bfloat16
        self.independent_rows = True
        self.kernels = library.unit(self._library)
        self.weights_bytes = self._weights.nbytes

    def new_slots(self, dtype: torch.dtype | None = None) -> Slots:
        """An empty store for this model. dtype: float32 or bfloat16; None: bfloat16."""
        model = self._weights.model
        wanted = dtype or self.dtype
        if wanted not in _STORES:
            raise ValueError("--kv-dtype: the CPU kernels keep keys and values as float32 or bfloat16")
        return Slots(model.layers, model.kv_heads, model.head_dim, dtype=wanted, device=self.device)

    def prefill(self, tokens: list[int], slots: Slots, slot: int, start: int) -> Tensor:
        """Read tokens of one row after the `start` that its slot holds: logits after the last, [1, V]."""
        slots.extend([slot], [start], len(tokens))
        count = len(tokens)
        return self._run(tokens, slots, [slot] * count, range(start, start + count), [count - 1])

    def decode(self, tokens: list[int], slots: Slots, places: list[int], starts: list[int]) -> Tensor:
        """Read one token for each of some rows: logits, [R, V].

        places: the slot of each row, all different. starts: tokens that it holds.
        """
        slots.extend(places, starts, 1)
        return self._run(tokens, slots, places, starts, range(len(tokens)))

    def logits_of(self, tokens: list[int], slots: Slots, start: int) -> Iterator[Tensor]:
        """Logits after each token of one row in slot 0, in order, in pieces of bounded size: [n, V] each."""
        size = max(1, _LOGITS_BYTES // (4 * self.vocabulary))
        for at in range(0, len(tokens), size):
            some = tokens[at : at + size]
            slots.extend([0], [start + at], len(some))
            positions = range(start + at, start + at + len(some))
            yield self._run(some, slots, [0] * len(some), positions, range(len(some)))

    def _run(
        self,
        tokens: Sequence[int],
        slots: Slots,
        places: Sequence[int],
        positions: Sequence[int],
        wanted: Sequence[int],
    ) -> Tensor:
        """Logits after the tokens `wanted` (indices), [W, V]. Tokens of one slot lie together, in order."""
        logits = torch.empty(len(wanted), self.vocabulary)
        numbers = [_integers(values) for values in (tokens, places, positions, wanted)]
        given = layout.Pass(
            count=len(tokens),
            tokens=ctypes.addressof(numbers[0]),
            slots=ctypes.addressof(numbers[1]),
            positions=ctypes.addressof(numbers[2]),
            wanted_count=len(wanted),
            wanted=ctypes.addressof(numbers[3]),
            logits=logits.data_ptr(),
        )
        layers = range(self._weights.model.layers)
        keys, values = [slots.keys(layer) for layer in layers], [slots.values(layer) for layer in layers]
        store = layout.Store(
            keys=_pointers(keys),
            values=_pointers(values),
            key_strides=_strides(keys),
            value_strides=_strides(values),
            type=_STORES[slots.dtype],
        )
        failed = self._library.forward(
            ctypes.byref(self._weights.model),
            ctypes.byref(store),
            ctypes.byref(given),
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for a forward pass")
        return logits


def _integers(values: Sequence[int]) -> ctypes.Array[ctypes.c_int32]:
    return (ctypes.c_int32 * len(values))(*values)


def _pointers(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _strides(tensors: list[Tensor]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(tensors))(*(tensor.stride(0) for tensor in tensors))
