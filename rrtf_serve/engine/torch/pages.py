"""Zeroed memory that is taken only where it is written, and given back in parts.

On Linux's CPUs: private anonymous pages, which the kernel hands out as they are touched. Elsewhere an
ordinary tensor of zeros.
https://man7.org/linux/man-pages/man2/madvise.2.html
"""

from __future__ import annotations

import math
import mmap
import sys
from contextlib import suppress

import torch
from torch import Tensor

_PAGE = mmap.PAGESIZE


class Pages:
    """`tensor`: zeros of a shape, contiguous. Raises MemoryError, or torch's errors of want of memory."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        size = math.prod(shape) * dtype.itemsize
        self._map: mmap.mmap | None = None
        with torch.inference_mode(False):  # a tensor made in it can be changed in it alone
            self.tensor = self._zeros(size, shape, dtype, device)

    def _zeros(self, size: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        if sys.platform != "linux" or device.type != "cpu" or not size:
            return torch.zeros(shape, dtype=dtype, device=device)
        try:
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MemoryError(f"not enough memory for {size / 1e6:.0f} MB of keys and values") from error
        # A huge page would be taken whole for the first byte in it.
        with suppress(OSError):  # a kernel without huge pages
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        return torch.frombuffer(self._map, dtype=dtype).view(shape)

    def clear(self, part: Tensor) -> None:
        """Make a contiguous view of `tensor` zero; the pages that lie in it whole go back to the system."""
        start = part.storage_offset() * part.itemsize
        stop = start + part.nbytes
        first, last = -(-start // _PAGE) * _PAGE, stop // _PAGE * _PAGE
        if self._map is None or first >= last:
            part.zero_()
            return
        flat = part.view(-1)
        flat[: (first - start) // part.itemsize].zero_()
        flat[flat.numel() - (stop - last) // part.itemsize :].zero_()
        try:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
        except OSError:  # memory that is locked
            flat.zero_()
