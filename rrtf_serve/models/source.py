"""A model as it lies on disk before it is served: its kind, its place and what is known about it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rrtf_serve.models.errors import ModelError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Kind(StrEnum):
    CT2 = "ctranslate2"
    GGUF = "gguf"
    HF = "huggingface"
    ADAPTER = "peft-adapter"
    GPTQ = "gptq"


@dataclass(frozen=True)
class Source:
    """One model on disk. `digest`: SHA-256 of a single file, or of a folder's list of names and digests."""

    path: Path
    kind: Kind
    name: str
    digest: str = ""
    family: str = ""  # key into families.FAMILIES; empty: detected from the model itself
    licence: str = ""  # SPDX identifier or the terms' name; empty: unknown
    origin: str = ""  # where it came from, for the card: "hub:owner/name@revision", "local", ...
    base: Source | None = None  # an adapter's base model


def safe_name(text: str) -> str:
    """`text` as one file name: letters, digits, dot, dash and underscore; never empty, hidden or a path."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")
    return name or "model"


def name_of(path: Path) -> str:
    """A model's name from its place: a file's name without `.gguf`, a folder's own name."""
    path = path.resolve()
    return safe_name(path.name[:-5] if path.suffix.lower() == ".gguf" else path.name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ModelError naming a file that is absent or holds anything else."""
    try:
        record = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: missing; the model folder is incomplete, fetch it again") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: not readable as JSON ({error}).") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path}: a JSON object was expected, not a {type(record).__name__}.")
    return record


def detect_kind(path: Path) -> Kind:
    """Tell what a path holds by what lies there, never by its name alone.

    Raises ModelError when nothing is recognised, saying what was looked for.
    """
    if path.is_file():
        return _file_kind(path)
    if not path.is_dir():
        raise ModelError(f"{path}: no such file or folder.")
    if (path / "model.bin").is_file() and (path / "config.json").is_file():
        return Kind.CT2
    for marker, kind in (("adapter_config.json", Kind.ADAPTER), ("config.json", Kind.HF)):
        if (path / marker).is_file():
            _require_safetensors(path)
            return Kind.GPTQ if kind is Kind.HF and _is_gptq(path) else kind
    ggufs = sorted(file.name for file in path.glob("*.gguf"))
    if ggufs:
        raise ModelError(
            f"{path}: a folder with GGUF files; name one of them, for example {path / ggufs[0]}."
        )
    raise ModelError(
        f"{path}: no model recognised. Looked for model.bin with config.json (CTranslate2), "
        "adapter_config.json (PEFT adapter) and config.json (Hugging Face)."
    )


def _file_kind(path: Path) -> Kind:
    with path.open("rb") as file:
        if file.read(4) == b"GGUF":
            return Kind.GGUF
    if path.suffix == ".safetensors":
        raise ModelError(
            f"{path}: one weight file alone is no model; name its folder, {path.resolve().parent}."
        )
    raise ModelError(f"{path}: not a GGUF file (its first four bytes are not 'GGUF').")


def _is_gptq(path: Path) -> bool:
    """GPTQ is said in config.json; older writers said it in quantize_config.json alone."""
    quantization = read_json(path / "config.json").get("quantization_config")
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method")).lower() == "gptq"
    return (path / "quantize_config.json").is_file()


def _require_safetensors(path: Path) -> None:
    if any(path.glob("*.safetensors")):
        return
    pickles = sorted(file.name for file in path.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise ModelError(
            f"{path}: the weights are pickles ({pickles[0]}), which can run code when they are read, so they "
            "are refused. Save the model again as safetensors, or take a safetensors or GGUF edition."
        )
    raise ModelError(f"{path}: no *.safetensors weights beside the configuration; is the copy complete?")
