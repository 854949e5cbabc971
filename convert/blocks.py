"""Weights by blocks of rows: read and encoded on a few threads, handed out in order.

Memory is bounded by the blocks that wait, whatever the size of the tensor.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from convert.architectures import Part, Weight
from convert.sources import FloatArray, TensorSource
from rrtf_serve.models.errors import ModelError

T = TypeVar("T")
Array = np.ndarray[Any, Any]

_BLOCK_BYTES = 8 << 20  # of float32; small enough for memory, large enough that numpy's own cost vanishes
_THREADS = min(4, os.cpu_count() or 1)


class UnfitError(Exception):
    """A block of weights can't be written as asked; the message continues "tensor NAME ..."."""


def block_pool() -> ThreadPoolExecutor:
    """The threads that `map_blocks` works on."""
    return ThreadPoolExecutor(_THREADS)


def map_blocks(
    pool: ThreadPoolExecutor,
    source: TensorSource,
    weight: Weight,
    function: Callable[[FloatArray], T],
    *,
    purpose: str,
) -> Iterator[T]:
    """function(block) for each block of rows of `weight` in order, a few at a time on the pool.

    Raises ModelError naming the tensor and its `purpose` where `function` raises UnfitError.
    """

    def work(part: Part, start: int, stop: int) -> T:
        try:
            return function(part.read(source, start, stop))
        except UnfitError as error:
            raise ModelError(f"{source.path}: tensor {part.name} {error} (for {purpose})") from None

    columns = weight.shape[1] if len(weight.shape) > 1 else 1
    waiting: deque[Future[T]] = deque()
    try:
        for block in weight.blocks(max(1, _BLOCK_BYTES // (4 * columns))):
            waiting.append(pool.submit(work, *block))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def largest_value(block: FloatArray) -> np.float32:
    largest = np.float32(np.amax(np.absolute(block)))
    check_finite(largest)
    return largest


def check_finite(largest: np.float32 | FloatArray) -> None:
    if not np.isfinite(largest).all():
        raise UnfitError("holds values that are not finite numbers; the file is damaged")


def _to_float32(block: FloatArray) -> Array:
    largest_value(block)
    return block


def _to_float16(block: FloatArray) -> Array:
    if largest_value(block) >= 65520:  # rounds to infinity
        raise UnfitError("holds values beyond float16's 65504; take bfloat16, float32 or int8")
    return block.astype(np.float16)


def _to_bfloat16(block: FloatArray) -> Array:
    largest_value(block)
    bits = np.ascontiguousarray(block).view(np.uint32)
    # Round to nearest, ties to even: add just under half of what is cut off, and the bit that decides a tie.
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)


ENCODERS: dict[str, Callable[[FloatArray], Array]] = {
    "float32": _to_float32,
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
}
