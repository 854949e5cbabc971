"""Matrices in the packed form that kernels.cpp multiplies: tiles of 16 outputs x 32 inputs.

bits 16: bfloat16. bits 8 and 4: codes, a scale per group of inputs and output, value = scale * (code - zero).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rrtf_serve.engine.torch.native import layout, library
from rrtf_serve.models.gptq import GptqSettings, unpack_zeros

LANES, DEPTH = 16, 32  # outputs and inputs of a tile
_ROWS = 4096  # outputs that are rounded at a time, whole tiles


class PackingError(Exception):
    """A matrix that the kernels can't multiply; the message says why."""


@dataclass(frozen=True, eq=False)
class Matrix:
    """outputs x inputs; `group`: inputs that share a scale (bits 16: none do).

    packed: uint8, whole tiles. scales: float16 or float32 [tiles of outputs, groups, 16]. zeros: float32, the
    same shape: what is subtracted from a code besides `offset`; None: nothing. bias: float32
    [outputs]. order: int32 [inputs], which feature is the n-th input; None: the n-th.
    """

    outputs: int
    inputs: int
    bits: int
    group: int
    offset: int
    packed: Tensor
    scales: Tensor | None = None
    zeros: Tensor | None = None
    bias: Tensor | None = None
    order: Tensor | None = None

    @property
    def nbytes(self) -> int:
        parts = (self.packed, self.scales, self.zeros, self.bias, self.order)
        return sum(part.nbytes for part in parts if part is not None)

    def structure(self) -> layout.Linear:
        """For the kernels; valid as long as this matrix lives."""
        half = self.scales is not None and self.scales.dtype == torch.float16
        return layout.Linear(
            outputs=self.outputs,
            inputs=self.inputs,
            bits=self.bits,
            group=self.group,
            offset=self.offset,
            groups=1 if self.scales is None else self.scales.shape[1],
            scale_type=layout.FLOAT16 if half else layout.FLOAT32,
            packed=self.packed.data_ptr(),
            scales=_address(self.scales),
            zeros=_address(self.zeros),
            bias=_address(self.bias),
            order=_address(self.order),
        )

    def apply(self, inputs: Tensor) -> Tensor:
        """float32 [R, inputs] -> float32 [R, outputs]."""
        found = torch.empty(len(inputs), self.outputs)
        inputs = inputs.float().contiguous()
        kernels = library.load()
        if kernels.apply(
            ctypes.byref(self.structure()),
            inputs.data_ptr(), len(inputs), found.data_ptr(), torch.get_num_threads(),
        ):  # fmt: skip
            raise MemoryError
        return found


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def packed_bytes(outputs: int, inputs: int, bits: int) -> int:
    return -(-outputs // LANES) * -(-inputs // DEPTH) * LANES * DEPTH * bits // 8


def pack_plain(weight: Tensor, bias: Tensor | None = None) -> Matrix:
    """weight: [outputs, inputs], rounded to bfloat16 where it is not."""
    values = weight.to(torch.bfloat16).contiguous()
    outputs, inputs = values.shape
    packed = _packed(values.view(torch.uint8), outputs, inputs, 16)
    return Matrix(outputs, inputs, 16, inputs, 0, packed, bias=_floats(bias))


def pack_rounded(
    weight: Tensor, bits: int, group: int, *, release: Callable[[Tensor], None] | None = None
) -> Matrix:
    """Round to nearest, symmetric, a float16 scale per group. weight: [outputs, inputs]; group: a multiple of
    32 that divides the inputs, or PackingError is raised. release: is told which rows were read."""
    outputs, inputs = weight.shape
    if group % DEPTH or inputs % group:
        raise PackingError(f"groups of {group} do not divide {inputs} inputs into whole tiles")
    highest = (1 << bits - 1) - 1
    packed = torch.empty(packed_bytes(outputs, inputs, bits), dtype=torch.uint8)
    scales = torch.empty(outputs, inputs // group, dtype=torch.float16)
    for start in range(0, outputs, _ROWS):  # whole tiles at a time, so that never a second copy is there
        some = weight[start : start + _ROWS].float().reshape(-1, inputs // group, group)
        # Not below the smallest normal float16: groups of zeros stay zeros.
        scale = (some.abs().amax(dim=-1) / highest).clamp(min=6.2e-5).half()
        rounded = (some / scale.float().unsqueeze(-1)).round_().clamp_(-highest - 1, highest)
        codes = (rounded + (highest + 1)).to(torch.uint8).reshape(-1, inputs)
        scales[start : start + _ROWS] = scale
        tiles = _packed(codes, len(codes), inputs, bits)
        first = packed_bytes(start, inputs, bits)
        packed[first : first + len(tiles)] = tiles
        if release is not None:
            release(weight[start : start + _ROWS])
    return Matrix(outputs, inputs, bits, group, highest + 1, packed, _by_tile(scales.T))


def pack_gptq(
    parts: dict[str, Tensor],
    settings: GptqSettings,
    *,
    bias: Tensor | None = None,
    rows: Tensor | None = None,
) -> Matrix:
    """A quantised matrix as it is stored; see models/gptq.py. Nothing is rounded.

    parts: qweight, qzeros, scales and perhaps g_idx. rows: which output is the n-th; None: the n-th. Raises
    PackingError where groups are of unequal size or no whole number of tiles.
    """
    bits = settings.bits
    qweight, scales = parts["qweight"], parts["scales"]
    outputs = qweight.shape[1]
    inputs = qweight.shape[0] * 32 // bits
    groups = len(scales)
    group = inputs if settings.group_size == -1 else settings.group_size
    members = parts.get("g_idx")
    if members is None or groups == 1:
        order = torch.arange(inputs)
    else:
        order = torch.argsort(members, stable=True)
        sizes = torch.bincount(members.long(), minlength=groups)
        if len(sizes) > groups or (sizes[:-1] != group).any() or sizes[-1] != inputs - group * (groups - 1):
            raise PackingError(f"groups of unequal size, though they should have {group} inputs")
    if groups > 1 and group % DEPTH:
        raise PackingError(f"groups of {group} inputs are not a multiple of {DEPTH}")
    # Codes of 2 and 3 bits are kept as 4.
    kept = 8 if bits == 8 else 4
    middle = 1 << bits - 1  # the zero of symmetric quantisation
    zeros = torch.from_numpy(unpack_zeros(parts["qzeros"].numpy(), settings, outputs)) - middle
    if rows is not None:
        qweight, scales, zeros = qweight[:, rows], scales[:, rows], zeros[:, rows]
        bias = None if bias is None else bias[rows]
    words, order = qweight.contiguous(), order.to(torch.int32)
    packed = torch.empty(packed_bytes(outputs, inputs, kept), dtype=torch.uint8)
    library.load().pack_words(
        words.data_ptr(), outputs, inputs, bits, order.data_ptr(), kept, packed.data_ptr(),
        torch.get_num_threads(),
    )  # fmt: skip
    straight = bool((order == torch.arange(inputs, dtype=torch.int32)).all())
    return Matrix(
        outputs,
        inputs,
        kept,
        -(-inputs // DEPTH) * DEPTH if groups == 1 else group,
        middle,
        packed,
        _by_tile(scales if scales.dtype == torch.float16 else scales.float()),
        _by_tile(zeros.float()) if zeros.any() else None,
        _floats(bias),
        None if straight else order,
    )


def _packed(values: Tensor, outputs: int, inputs: int, bits: int) -> Tensor:
    packed = torch.empty(packed_bytes(outputs, inputs, bits), dtype=torch.uint8)
    library.load().pack(values.data_ptr(), outputs, inputs, bits, packed.data_ptr(), torch.get_num_threads())
    return packed


def _by_tile(values: Tensor) -> Tensor:
    """[groups, outputs] -> [tiles of outputs, groups, 16], zeros beyond the outputs."""
    groups, outputs = values.shape
    tiles = -(-outputs // LANES)
    padded = values.new_zeros(groups, tiles * LANES)
    padded[:, :outputs] = values
    return padded.reshape(groups, tiles, LANES).transpose(0, 1).contiguous()


def _floats(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.float().contiguous()
