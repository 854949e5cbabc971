"""What a conversion reads from: named tensors by blocks of rows, and the facts of the model's architecture.

    source.shape("blk.0.attn_q.weight")           -> (896, 896)
    source.rows("blk.0.attn_q.weight", 0, 128)    -> float32, (128, 896)

Memory is bounded by the block that is asked for, never by a tensor or the model. Implementations lie in
gguf_source, safetensors_source and adapter_source.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from convert.rope import RopeScaling
from rrtf_serve.models.errors import ModelError

FloatArray = npt.NDArray[np.float32]
StoredType = Literal["float32", "float16", "bfloat16"]
Naming = Literal["gguf", "hf"]
MAX_HEADS = (1 << 15) - 1  # model.bin holds their number in 16 bits


@dataclass(frozen=True)
class ModelConfig:
    """The facts that decide how the weights are laid out and run. Sizes in elements, lengths in tokens."""

    architecture: str  # key into families.FAMILIES
    naming: Naming
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    ffn: int
    context_length: int
    norm_epsilon: float
    activation: str  # Hugging Face's name of it: "silu", "gelu_pytorch_tanh", ...
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: int | None = None
    tied: bool | None = None  # None: the source doesn't say; decided from the tensors
    multi_query: bool = False
    # Roles of the linear layers that have a bias; None: the source doesn't say, those have one that is there.
    biased: frozenset[str] | None = None


class TensorSource(Protocol):
    """Named tensors of one model."""

    @property
    def path(self) -> Path:
        """What to name in an error."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def names(self) -> Collection[str]: ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ModelError when there is no such tensor."""

    def stored_type(self, name: str) -> StoredType:
        """The floating type its values are exact in: what a conversion that changes nothing would write."""

    def precision(self, name: str) -> float:
        """Bits per weight as stored; of two copies of a matrix the one with more is the better."""

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        """Rows [start, stop) as float32: (stop - start, columns), or (stop - start,) of a vector.

        Raises ModelError naming the file and tensor when the file is cut short or the type can't be read.
        """

    def close(self) -> None: ...


def missing(source: TensorSource, name: str) -> ModelError:
    return ModelError(
        f"{source.path}: tensor {name} is missing; the file is incomplete or of another architecture"
    )


class DataFile:
    """Reads byte ranges of one file from any thread.

    Not a memory map: mapped pages count as resident memory, and a file that shrinks under a map kills the
    process instead of raising.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb", buffering=0)
        except OSError as error:
            raise ModelError(f"{path}: can't be read ({error.strerror})") from error
        self.size = path.stat().st_size
        self._lock = threading.Lock()

    def read(self, offset: int, count: int, what: str) -> npt.NDArray[np.uint8]:
        """`count` bytes at `offset`. Raises ModelError naming `what` when the file ends before."""
        if offset + count > self.size:
            raise self._cut_short(what)
        buffer = np.empty(count, np.uint8)
        view, filled = buffer.data, 0
        with self._lock:
            self._file.seek(offset)
            while filled < count:
                got = self._file.readinto(view[filled:])
                if not got:
                    raise self._cut_short(what)
                filled += got
        return buffer

    def _cut_short(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: ends before {what} does; it is cut short, fetch it again")

    def close(self) -> None:
        self._file.close()
