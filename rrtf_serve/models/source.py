"""A model as it lies on disk before it is served: its kind, its place and what is known about it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rrtf_serve.models.errors import ModelError


class Kind(StrEnum):
    CT2 = "ctranslate2"
    GGUF = "gguf"
    HF = "huggingface"
    ADAPTER = "peft-adapter"
    GPTQ = "gptq"


@dataclass(frozen=True)
class Source:
    """One model on disk. `digest` is the SHA-256 of a single file, or of a folder's file list and sizes."""

    path: Path
    kind: Kind
    name: str
    digest: str = ""
    family: str = ""  # key into families.FAMILIES; empty: detected from the model itself
    licence: str = ""  # SPDX identifier or the terms' name; empty: unknown
    origin: str = ""  # where it came from, for the card: "hub:owner/name@revision", "local", ...
    base: Source | None = None  # an adapter's base model


def detect_kind(path: Path) -> Kind:
    """Tell what a path holds by what lies there, never by its name alone.

    Raises ModelError when nothing is recognised, saying what was looked for.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(4) == b"GGUF":
                return Kind.GGUF
        raise ModelError(f"{path}: not a GGUF file (its first four bytes are not 'GGUF')")
    if not path.is_dir():
        raise ModelError(f"{path}: no such file or folder")
    if (path / "model.bin").is_file() and (path / "config.json").is_file():
        return Kind.CT2
    if (path / "adapter_config.json").is_file():
        return Kind.ADAPTER
    if (path / "config.json").is_file():
        try:
            config = json.loads((path / "config.json").read_text("utf-8"))
        except ValueError as error:
            raise ModelError(f"{path / 'config.json'}: not valid JSON ({error})") from error
        quantization = config.get("quantization_config") or {}
        return Kind.GPTQ if quantization.get("quant_method") == "gptq" else Kind.HF
    raise ModelError(
        f"{path}: no model recognised. Looked for model.bin (CTranslate2), adapter_config.json (PEFT adapter) "
        "and config.json (Hugging Face)."
    )
