"""Any source under Hugging Face's names: what an adapter is merged into, and what a folder is written from.

A GGUF file's tensors are renamed, and rows that llama.cpp put into another order are put back.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from convert.architectures import Part, Weight, known_family, rotary_order, tied_matrix
from convert.sources import FloatArray, ModelConfig, StoredType, TensorSource, missing
from rrtf_serve.models.errors import ModelError

_LAYER = "{}"  # in a table of names, where the number of the layer goes


def under_hf_names(source: TensorSource) -> TensorSource:
    """`source` itself where it has these names already. Raises ModelError on a family without such names."""
    return source if source.config.naming == "hf" else HfView(source)


class HfView:
    """A TensorSource with Hugging Face's names over one with GGUF's; of two tied copies the better."""

    def __init__(self, source: TensorSource) -> None:
        self.source, family = source, known_family(source)
        here, there = family.names[source.config.naming], family.names["hf"]
        embedding, output = tied_matrix(source, here)
        self.config = replace(source.config, naming="hf", tied=embedding == output)
        self._places: dict[str, str] = {f"{there['embedding']}.weight": embedding}
        if embedding != output:
            self._places[f"{there['output']}.weight"] = output
        for role in here.keys() & there.keys() - {"embedding", "output"}:
            layers = range(self.config.layers) if _LAYER in here[role] else range(1)
            for layer in layers:
                for kind in ("weight", "bias"):
                    name = f"{here[role].format(layer)}.{kind}"
                    if name in source.names:
                        self._places[f"{there[role].format(layer)}.{kind}"] = name
        if family.interleaved_in_gguf:
            orders = {
                here["q"]: rotary_order(self.config.heads, self.config.head_dim),
                here["k"]: rotary_order(self.config.kv_heads, self.config.head_dim),
            }
        elif "qkv" in there and not self.config.multi_query and not family.rotary:
            orders = {here["qkv"]: _by_head(self.config)}
        else:
            orders = {}
        self._orders = {
            f"{pattern.format(layer)}.{kind}": order
            for pattern, order in orders.items()
            for layer in range(self.config.layers)
            for kind in ("weight", "bias")
        }
        self._check_rows()

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def names(self) -> Collection[str]:
        return self._places.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.source.shape(self._place(name))

    def stored_type(self, name: str) -> StoredType:
        return self.source.stored_type(self._place(name))

    def precision(self, name: str) -> float:
        return self.source.precision(self._place(name))

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        place = self._place(name)
        return Part(place, self.shape(name)[0], self._orders.get(place)).read(self.source, start, stop)

    def close(self) -> None:
        self.source.close()

    def _place(self, name: str) -> str:
        try:
            return self._places[name]
        except KeyError:
            raise missing(self, name) from None

    def _check_rows(self) -> None:
        for place, order in self._orders.items():
            if place in self.source.names and (rows := self.source.shape(place)[0]) != len(order):
                raise ModelError(
                    f"{self.path}: tensor {place} has {rows:,} rows, the configuration says {len(order):,}"
                )


def whole_weight(source: TensorSource, name: str) -> Weight:
    """The tensor `name`, whole and in order."""
    shape = source.shape(name)
    return Weight((Part(name, shape[0] if shape else 1),), shape, source.stored_type(name))


def _by_head(config: ModelConfig) -> npt.NDArray[np.intp]:
    """Queries, keys and values stored one after another -> those of one head together (GPTBigCode)."""
    rows = np.arange(3 * config.heads * config.head_dim, dtype=np.intp)
    return rows.reshape(3, config.heads, -1).swapaxes(0, 1).reshape(-1)
