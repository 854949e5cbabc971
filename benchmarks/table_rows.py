"""The rows of `rrtf-bench table`: what the user names, and the model that it comes down to on this disk.

NAME=ENGINE[-TYPE]:MODEL      gptq4=torch:./qwen-gptq4    "llama.cpp Q8_0=llama:./qwen-q8_0.gguf"
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from convert.hf import convert as convert_to_hf
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.torch import DTYPES
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import QUANTIZATIONS, read_card
from rrtf_serve.models.inventory import size_of
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, Source, safe_name
from rrtf_serve.models.store import Store
from rrtf_serve.preparation import prepare_source

# engine -> the types that may follow it
TYPES = {"transformers": DTYPES[1:], "ct2": QUANTIZATIONS, "torch": DTYPES[1:], "llama": ("plain",)}
FORM = "NAME=ENGINE[-TYPE]:MODEL, such as gptq4=torch:./qwen-gptq4"
_SPEC = re.compile(r"(?P<name>[^=|]+)=(?P<engine>[a-z0-9]+)(-(?P<type>[a-z0-9_]+))?:(?P<model>.+)")
_BYTES = {"float32": 4}  # of a weight; every other type of torch's takes 2
_OTHER_BYTES = 600_000_000  # libraries and activations, next to the weights
_SPARE = 1.1  # of a format that is read as it is: what it needs besides its file


@dataclass(frozen=True)
class Row:
    """One way to run a model. `type` is torch's type or CTranslate2's quantisation; "" leaves it as it is.
    llama.cpp's "plain" is without its repacked weights."""

    name: str
    engine: str
    type: str
    model: str

    @property
    def spec(self) -> str:
        return f"{self.engine}{'-' if self.type else ''}{self.type}:{self.model}"


@dataclass(frozen=True)
class Prepared:
    """A row's model as it lies here. `needed_bytes` is an estimate of what a process takes that runs it.

    `digest` is SHA-256 of the file that is loaded, for folders of several of their list of digests.
    """

    row: Row
    source: Source
    digest: str
    size_bytes: int
    needed_bytes: int


def parse_row(text: str) -> Row:
    """Raises ValueError naming the flag."""
    found = _SPEC.fullmatch(text)
    if found is None or found["engine"] not in TYPES:
        raise ValueError(f"--row {text!r}: expected {FORM}; engines: {', '.join(TYPES)}")
    engine, kind = found["engine"], found["type"] or ""
    if kind and kind not in TYPES[engine]:
        raise ValueError(f"--row {text!r}: {kind} is no type of {engine}; known: {', '.join(TYPES[engine])}")
    if engine == "transformers" and not kind:
        raise ValueError(f"--row {text!r}: say the type, such as transformers-bfloat16:{found['model']}")
    return Row(found["name"].strip(), engine, kind, found["model"])


def default_rows(model: str) -> list[Row]:
    """Ways to run one model that need no other file than its own."""
    return [
        Row("transformers float32", "transformers", "float32", model),
        Row("transformers bfloat16", "transformers", "bfloat16", model),
        Row("CTranslate2 float32", "ct2", "float32", model),
        Row("CTranslate2 int8", "ct2", "int8", model),
        Row("torch engine bfloat16", "torch", "bfloat16", model),
    ]


def prepare_row(row: Row, made: Path) -> Prepared:
    """Fetch and convert what the row needs. `made` is where a Hugging Face folder is written of a model that
    comes as GGUF or adapter: all rows of one model then have the same weights, those of the folder.

    Raises ModelError, ValueError.
    """
    source = Store().fetch(row.model)
    if row.engine == "llama":
        if source.kind is not Kind.GGUF:
            raise ModelError(f"{row.model}: a {source.kind} model; llama.cpp reads GGUF files")
        return _prepared(row, source)
    if source.kind in (Kind.GGUF, Kind.ADAPTER):
        source = Store().fetch(str(_plain_folder(source, made)))
    if row.engine == "ct2":
        config = ServeConfig(model=str(source.path), quantization=row.type or "int8", engine="ct2")
        source = prepare_source(config)
        card = read_card(source.path)
        if row.type and card and card.quantization != row.type:
            raise ModelError(f"{row.model}: stored as {card.quantization}, not {row.type}; name its source")
    elif source.kind not in (Kind.HF, *((Kind.GPTQ,) if row.engine == "torch" else ())):
        raise ModelError(f"{row.model}: a {source.kind} model, which {row.engine} does not run here")
    return _prepared(row, source)


def _plain_folder(source: Source, made: Path) -> Path:
    folder = made / f"{safe_name(source.name)}-{source.digest[:8]}"
    if not folder.is_dir():
        made.mkdir(parents=True, exist_ok=True)
        convert_to_hf(source, folder)
    return folder


def _prepared(row: Row, source: Source) -> Prepared:
    path = source.path
    weights = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("model.bin")])
    digests = [Store().verified.sha256(file) for file in weights]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
    size = sum(file.stat().st_size for file in weights)
    needed = int(size * _growth(row, source)) + _OTHER_BYTES
    return Prepared(row, source, digest, size_of(path), needed)


def _growth(row: Row, source: Source) -> float:
    if source.kind is not Kind.HF or not row.type:
        return _SPARE
    config = Record.read(source.path / "config.json")
    stored = config.text("dtype") or config.text("torch_dtype")
    return _SPARE * _BYTES.get(row.type, 2) / _BYTES.get(stored, 2)
