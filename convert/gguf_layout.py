"""Which tensors a GGUF file of a model holds, under llama.cpp's names and in its row order.

Names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md ("Standardized tensor names"). The row
order of query and key matrices of Llama models is the one that llama.cpp's converter writes: the two halves
of a head alternate, for interleaved rotary positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Type

from convert.architectures import Part, is_tied, specify, unused_biases
from convert.families import FAMILIES
from convert.sources import ModelConfig, TensorSource
from rrtf_serve.models.errors import ModelError

TYPES = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16, "q8_0": Type.Q8_0}
_Q8_BLOCK = 32  # columns; a matrix of another width stays in 16 bits, as llama.cpp's converter has it


@dataclass(frozen=True)
class Target:
    """One tensor of the file: `shape` in numpy's order, slowest first."""

    name: str
    part: Part
    shape: tuple[int, ...]
    kind: Type

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1


# GGUF knows Mistral as a Llama with a sliding window.
_CALLED = {"mistral": "llama"}


def architecture_name(config: ModelConfig) -> str:
    """What the file calls the architecture."""
    return _CALLED.get(config.architecture, config.architecture)


def check_writable(source: TensorSource) -> None:
    """Raise ModelError on a model that GGUF has no layout for, or whose positions it can't hold."""
    config = source.config
    if "gguf" not in FAMILIES[architecture_name(config)].names:
        known = [name for name, family in FAMILIES.items() if "gguf" in family.names]
        raise ModelError(
            f"{source.path}: a {config.architecture} model can't be written as GGUF here; "
            f"known: {', '.join(sorted(known))}"
        )
    # A GGUF file that has the table keeps it among its tensors.
    if config.naming == "hf" and config.rope_scaling and config.rope_scaling.divisors:
        raise ModelError(
            f"{source.path}: its rotary positions are stretched by a table, which is not written here; use "
            "llama.cpp's own converter"
        )


def targets(source: TensorSource, kind: Type) -> list[Target]:
    """The tensors of the file in order. Raises ModelError naming what is missing or misshapen."""
    specify(source)  # for its checks: every tensor there, and of the configuration's shape
    check_writable(source)
    if source.config.naming == "gguf":
        return [_target(source, name, name, None, kind) for name in source.names]
    ignored = unused_biases(source)
    return [
        _target(source, new, old, order, kind)
        for stem, new_stem, order in _renamed(source)
        for suffix in ("weight", "bias")
        if (old := f"{stem}.{suffix}") in source.names and old not in ignored
        for new in [f"{new_stem}.{suffix}"]
    ]


def _renamed(source: TensorSource) -> list[tuple[str, str, npt.NDArray[np.intp] | None]]:
    """(name in the source, name in the file, row order) of every linear layer, norm and embedding."""
    config = source.config
    old = FAMILIES[config.architecture].names[config.naming]
    new = FAMILIES[architecture_name(config)].names["gguf"]
    found: list[tuple[str, str, npt.NDArray[np.intp] | None]] = []
    tied = is_tied(source)
    for role in ("embedding", "positions", "final_norm", "output"):
        if role in old and not (role == "output" and tied):
            found.append((old[role], new[role], None))
    in_layer = [role for role in old if "{}" in old[role]]
    for layer in range(config.layers):
        found += [
            (old[role].format(layer), new[role].format(layer), _order(source, role)) for role in in_layer
        ]
    return found


def _order(source: TensorSource, role: str) -> npt.NDArray[np.intp] | None:
    config = source.config
    if role in ("q", "k") and FAMILIES[architecture_name(config)].interleaved_in_gguf:
        heads = config.heads if role == "q" else config.kv_heads
        rows = np.arange(heads * config.head_dim, dtype=np.intp)
        return rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    if role == "qkv" and not config.multi_query:
        # GPTBigCode without multi-query attention keeps q, k and v of one head together; GGUF has them apart.
        rows = np.arange(3 * config.heads * config.head_dim, dtype=np.intp)
        return rows.reshape(config.heads, 3, -1).swapaxes(0, 1).reshape(-1)
    return None


def _target(
    source: TensorSource, name: str, old: str, order: npt.NDArray[np.intp] | None, kind: Type
) -> Target:
    shape = source.shape(old)
    # Vectors and learned positions are few and sensitive: llama.cpp reads them as float32.
    if len(shape) == 1 or name.startswith("position_embd"):
        kind = Type.F32
    elif kind is Type.Q8_0 and shape[-1] % _Q8_BLOCK:
        kind = Type.F16
    return Target(name, Part(old, shape[0], order), shape, kind)
