"""Tensors of a folder by name, mapped from its safetensors files; what is absent or misshapen is named."""

from __future__ import annotations

import ctypes
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


class Tensors:
    """The tensors of a folder by name, mapped from its safetensors files. Raises ModelError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in _shards(folder):
            try:
                file = self._stack.enter_context(safe_open(path, framework="pt"))
            except Exception as error:  # the library has an error of its own for every kind of damage
                self.close()
                raise ModelError(f"{path}: damaged or cut short, fetch it again ({error})") from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def get(self, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        if name not in self._files:
            raise ModelError(
                f"{self.folder}: tensor {name} is missing; the folder is incomplete, fetch it again"
            )
        found: Tensor = self._files[name].get_tensor(name)
        if shape is not None and found.shape != shape:
            raise ModelError(
                f"{self.folder}: tensor {name} has the shape {tuple(found.shape)}; config.json says {shape}"
            )
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
