"""A base model with a PEFT LoRA adapter merged into it while it is read: W + scale * B A, by blocks of rows.

LoRA: arXiv 2106.09685; rsLoRA's scale: arXiv 2312.03732. Layout of an adapter folder: adapter_config.json and
adapter_model.safetensors as PEFT's LoraConfig saves them. The merge is done in float32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convert.safetensors_source import SafetensorsFile
from convert.sources import FloatArray, ModelConfig, StoredType, TensorSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
_MODULE_NAME = re.compile(r"\^?[\w.]+")  # alpha_pattern holds regular expressions; plain names are taken
# Settings that change what a merged weight is, and that are not merged here.
_REFUSED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "modules_to_save",
    "arrow_config",
    "kasa_config",
    "use_bdlora",
    "velora_config",
    "monteclora_config",
)
# How A and B began; every other way changes the base as well, by what only the training knew.
_BEGINNINGS = (None, True, False, "true", "false", "gaussian", "orthogonal", "eva")
_MAX_FACTOR = 1 << 30  # bytes of A and B of one module in float32; ranks are small


@dataclass(frozen=True)
class Delta:
    """The change of one weight, scale * b @ a: b is (rows, rank), a is (rank, columns)."""

    a: str
    b: str
    scale: float


class AdapterSource:
    """A TensorSource of `base` with the adapter in `path` merged in.

    Raises ModelError on an adapter of another kind, with settings that can't be merged, or of another base.
    """

    def __init__(self, path: Path, base: TensorSource) -> None:
        self.path, self.base = path, base
        self._settings = Record.read(path / "adapter_config.json")
        self._check_settings()
        file = path / "adapter_model.safetensors"
        if not file.is_file():
            raise ModelError(f"{file}: missing; save the adapter as safetensors (other formats are not read)")
        self._file = SafetensorsFile(file)
        try:
            self._deltas = self._pair()
        except ModelError:
            self._file.file.close()
            raise

    @property
    def config(self) -> ModelConfig:
        return self.base.config

    @property
    def names(self) -> Collection[str]:
        return self.base.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def stored_type(self, name: str) -> StoredType:
        return "float32" if name in self._deltas else self.base.stored_type(name)

    def precision(self, name: str) -> float:
        return self.base.precision(name)

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        rows = self.base.rows(name, start, stop)
        delta = self._deltas.get(name)
        if delta is None:
            return rows
        a = self._file.rows(delta.a, 0, self._file.entries[delta.a].shape[0])
        return rows + np.float32(delta.scale) * (self._file.rows(delta.b, start, stop) @ a)

    def close(self) -> None:
        self._file.file.close()
        self.base.close()

    def _check_settings(self) -> None:
        settings = self._settings
        kind = settings.text("peft_type")
        if kind != "LORA":
            raise ModelError(f"{settings.path}: peft_type {kind!r} can't be merged; known: LORA")
        refused = [key for key in _REFUSED if settings.values.get(key)]
        if settings.text("bias", "none") != "none":
            refused.append("bias")
        beginning = settings.values.get("init_lora_weights")
        if not any(beginning is known or beginning == known for known in _BEGINNINGS):
            raise ModelError(
                f"{settings.path}: init_lora_weights {beginning!r} changed the base too, so that the adapter "
                "does not fit the base as it is; save it with PEFT's path_initial_model_for_weight_conversion"
            )
        if refused:
            raise ModelError(
                f"{settings.path}: {', '.join(refused)} can't be merged here; merge the adapter with PEFT "
                "(merge_and_unload) and convert the merged model"
            )

    def _pair(self) -> dict[str, Delta]:
        sides: dict[str, dict[str, str]] = {}
        for name, entry in self._file.entries.items():
            match = _TENSOR.fullmatch(name)
            if match is None or len(entry.shape) != 2:
                raise ModelError(
                    f"{self._file.file.path}: tensor {name} is no LoRA matrix; only adapters of linear "
                    "layers can be merged"
                )
            sides.setdefault(match["module"], {})[match["side"]] = name
        if not sides:
            raise ModelError(f"{self._file.file.path}: holds no tensors; the adapter is empty")
        deltas = {}
        for module, pair in sides.items():
            if pair.keys() != {"A", "B"}:
                raise ModelError(f"{self._file.file.path}: lora_A and lora_B of {module} are not both there")
            weight = f"{module}.weight"
            self._check_shapes(module, weight, pair)
            deltas[weight] = Delta(pair["A"], pair["B"], self._scale(module, pair["A"]))
        return deltas

    def _check_shapes(self, module: str, weight: str, pair: dict[str, str]) -> None:
        if module == "lm_head" and (self.config.tied or weight not in self.base.names):
            raise ModelError(
                f"{self.path}: changes lm_head, which its base {self.base.path} ties to the embedding; "
                "merge the adapter with PEFT (merge_and_unload) and convert the merged model"
            )
        if weight not in self.base.names:
            raise ModelError(
                f"{self.path}: changes {module}, which its base {self.base.path} does not have; "
                "is it the adapter of another base?"
            )
        (rank, columns), (rows, rank_b) = (self._file.entries[pair[side]].shape for side in "AB")
        # fan_in_fan_out is for layers that keep (in, out); no family here has any, and PEFT ignores it then.
        expected = self.base.shape(weight)
        if rank != rank_b or (rows, columns) != expected:
            raise ModelError(
                f"{self.path}: the change of {module} is ({rows}, {rank_b}) x ({rank}, {columns}), the "
                f"base's weight {expected}; is it the adapter of another base?"
            )
        if 4 * rank * (rows + columns) > _MAX_FACTOR:
            raise ModelError(f"{self.path}: the change of {module} has rank {rank:,}, too large to merge")

    def _scale(self, module: str, a: str) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rsLoRA; alpha_pattern may set a module's own alpha."""
        rank = self._file.entries[a].shape[0]
        alpha = self._settings.number("lora_alpha", 8)
        patterns = self._settings.record("alpha_pattern")
        for key in patterns.values:
            if not _MODULE_NAME.fullmatch(key):
                raise ModelError(
                    f"{self._settings.path}: alpha_pattern {key!r} is a pattern, not a module's name; merge "
                    "the adapter with PEFT (merge_and_unload) and convert the merged model"
                )
            name = key.removeprefix("^")
            if module == name or (name == key and module.endswith(f".{name}")):
                alpha = patterns.number(key, alpha)
                break
        return alpha / math.sqrt(rank) if self._settings.flag("use_rslora", False) else alpha / rank
