"""Tensors of a folder by name, mapped from its safetensors files.

What is absent, misshapen or not a number is named. A folder that was saved from a model's body alone
(transformers' AutoModel) is read too: its names lack the beginning that the whole model's have.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.gptq import GptqSettings
from rrtf_serve.models.records import Record

# What the embedding is called in a body saved alone, and what the whole model calls that body.
_BODIES = {"embed_tokens.weight": "model.", "wte.weight": "transformer."}


class Tensors:
    """The tensors of a folder by the whole model's names. Raises ModelError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in _shards(folder):
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except Exception as error:  # the library has an error of its own for every kind of damage
                self.close()
                if "os error 12" in str(error):  # ENOMEM
                    raise MemoryError(f"{path}: {error}") from error
                raise ModelError(f"{path}: damaged or cut short, fetch it again ({error})") from error
            self._files.update(dict.fromkeys(file.keys(), file))
        files = self._files
        bodies = (body for name, body in _BODIES.items() if name in files and body + name not in files)
        self._body = next(bodies, "")

    def __contains__(self, name: str) -> bool:
        return name.removeprefix(self._body) in self._files

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """The tensor, mapped: nobody may write into it. What is no finite number is refused here."""
        stored = name.removeprefix(self._body)
        if stored not in self._files:
            raise missing(self.folder, name)
        found: Tensor = self._files[stored].get_tensor(stored)
        if shape is not None and found.shape != shape:
            raise ModelError(
                f"{self.folder}: tensor {name} has the shape {tuple(found.shape)}; config.json says {shape}"
            )
        check_finite(self.folder, name, found)
        return found

    def optional(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        return self.get(name, shape) if name in self else None

    def quantised(self, name: str, outputs: int, inputs: int, settings: GptqSettings) -> dict[str, Tensor]:
        """qweight, qzeros, scales and perhaps g_idx of a GPTQ matrix, their shapes checked."""
        bits = settings.bits
        if inputs * bits % 32 or outputs * bits % 32:
            raise ModelError(
                f"{self.folder}: {name} has {inputs} inputs and {outputs} outputs, which fill no whole words "
                f"of {bits}-bit codes"
            )
        groups = 1 if settings.group_size == -1 else -(-inputs // settings.group_size)
        parts = {
            "qweight": self.get(f"{name}.qweight", (inputs * bits // 32, outputs)),
            "qzeros": self.get(f"{name}.qzeros", (groups, outputs * bits // 32)),
            "scales": self.get(f"{name}.scales", (groups, outputs)),
        }
        members = self.optional(f"{name}.g_idx", (inputs,))
        if members is None and settings.shuffled and groups > 1:
            raise ModelError(
                f"{self.folder}: tensor {name}.g_idx is missing, and by desc_act in the settings groups are "
                "not consecutive; the folder is incomplete, fetch it again"
            )
        whole = [parts["qweight"], parts["qzeros"], *([] if members is None else [members])]
        if any(part.dtype != torch.int32 for part in whole) or not parts["scales"].is_floating_point():
            kinds = ", ".join(str(part.dtype).removeprefix("torch.") for part in [*whole, parts["scales"]])
            raise ModelError(
                f"{self.folder}: {name} is stored as {kinds}; codes, zeros and g_idx should be int32 and "
                "scales floating"
            )
        if members is None:
            return parts
        if inputs and not 0 <= int(members.min()) <= int(members.max()) < groups:
            raise ModelError(
                f"{self.folder}: tensor {name}.g_idx names groups from {int(members.min())} to "
                f"{int(members.max())}, there are {groups}"
            )
        return {**parts, "g_idx": members}

    def close(self) -> None:
        self._stack.close()


def missing(folder: Path, name: str, others: int = 0) -> ModelError:
    """The error that names a tensor that is not there. others: how many more there are."""
    if name == "lm_head.weight":
        return ModelError(
            f"{folder}: tensor {name}, the output matrix, is missing; the folder is incomplete, or was saved "
            "from the model's body alone: fetch it again, or save it from AutoModelForCausalLM"
        )
    more = f" and {others} more" if others else ""
    return ModelError(f"{folder}: tensor {name}{more} is missing; the folder is incomplete, fetch it again")


def check_finite(folder: Path, name: str, tensor: Tensor) -> None:
    """Raises ModelError where a floating tensor holds NaN or infinity: every answer would be noise."""
    # A sum is quick and needs no memory. It may overflow over finite numbers, so then each is asked.
    if (
        tensor.is_floating_point()
        and not math.isfinite(tensor.sum().item())
        and not bool(tensor.isfinite().all())
    ):
        raise ModelError(
            f"{folder}: tensor {name} holds numbers that are NaN or infinite; the folder is damaged or its "
            "training went wrong: fetch, train or convert it again"
        )


def _shards(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = {str(name) for name in Record.read(index).record("weight_map").values.values()}
        if any(Path(name).name != name for name in names):
            raise ModelError(f"{index}: names files outside the folder")
        paths = [folder / name for name in sorted(names)]
    else:
        paths = sorted(folder.glob("*.safetensors"))
        if len(paths) > 1:  # other files may lie beside the model; AutoGPTQ names its only one differently
            paths = [folder / "model.safetensors"]
    absent = [path for path in paths if not path.is_file()]
    if absent or not paths:
        raise ModelError(
            f"{absent[0] if absent else folder / 'model.safetensors'}: missing; the folder is incomplete, "
            "fetch it again"
        )
    return paths


def let_go(tensor: Tensor) -> None:
    """Give back the memory that reading a mapped tensor took; it is read from its file again when needed.

    Only for tensors of `Tensors.get`, whose pages nobody writes. Does nothing but on Linux.
    """
    if not sys.platform.startswith("linux"):
        return
    page = mmap.PAGESIZE
    start = -(-tensor.data_ptr() // page) * page
    length = (tensor.data_ptr() + tensor.nbytes - start) // page * page
    if length > 0:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
