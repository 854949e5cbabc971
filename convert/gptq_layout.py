"""One layout for what the back-ends leave behind: file names, configurations, the tokenizer's files.

Each library writes its own: other file names, other keys in two configurations that must agree, a tokenizer
saved anew. What comes out here is the same for all, and what every loader reads.
"""

from __future__ import annotations

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np

from convert.families import FAMILIES
from convert.gptq_source import GptqSource
from convert.hf_config import read_config
from convert.safetensors_source import SafetensorsFile
from convert.sources import ModelConfig
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import read_json

_COPIED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "tokenizer.model", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
_LINEAR_ROLES = ("q", "k", "v", "qkv", "o", "gate", "up", "down")
_INDEX = "model.safetensors.index.json"
_TYPES = {"F16": "float16", "BF16": "bfloat16"}


def settle(folder: Path, plain: Path, quantization: dict[str, Any], *, copy: bool) -> None:
    """Bring `folder`, which a back-end wrote from the Hugging Face folder `plain`, into the one layout.

    `quantization` goes into both configurations. `copy`: a tied output matrix is stored a second time under
    its own name; auto-gptq 0.7.1 leaves it uninitialised otherwise (accelerate ties it again from the wrong
    end after loading). Raises ModelError where a matrix was left as it was, or the parts of one do not fit.
    """
    found = list(folder.glob("*.safetensors"))
    if len(found) == 1:
        found[0].rename(folder / "model.safetensors")
    _write_json(folder / "quantize_config.json", quantization)
    for name in _COPIED:
        (folder / name).unlink(missing_ok=True)
        if (plain / name).is_file():
            shutil.copyfile(plain / name, folder / name)
    config = read_config(Record.read(plain / "config.json"))
    names = FAMILIES[config.architecture].names["hf"]
    settings = _readable_by_all(read_json(plain / "config.json"))
    # A back-end may have rounded what it does not quantise: gptqmodel makes bfloat16 of float32.
    settings["torch_dtype"] = _stored_type(folder, f"{names['embedding']}.weight")
    _write_json(folder / "config.json", settings | {"quantization_config": quantization})
    if copy and config.tied:
        _add_copy(folder, f"{names['output']}.weight", f"{names['embedding']}.weight")
    _check(folder, names, config)


def _readable_by_all(settings: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the keys of transformers 5 and of 4: auto-gptq's reads the latter alone."""
    found = {key: value for key, value in settings.items() if key != "dtype"}
    rope = settings.get("rope_parameters")
    if isinstance(rope, dict):
        found["rope_theta"] = rope.get("rope_theta", 10_000.0)
        if rope.get("rope_type", "default") != "default":
            found["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return found


def _check(folder: Path, names: dict[str, str], config: ModelConfig) -> None:
    source = GptqSource(folder)
    try:
        roles = [
            role
            for role in _LINEAR_ROLES
            if role in names and (role != "gate" or FAMILIES[config.architecture].gated)
        ]
        wanted = [f"{names[role].format(layer)}.weight" for layer in range(config.layers) for role in roles]
        if left := [name for name in wanted if name not in source.quantised]:
            raise ModelError(
                f"the back-end left {len(left)} of {len(wanted)} matrices as they were, first {left[0]}"
            )
        for name in wanted:
            if not np.isfinite(source.layer(name).scales).all():
                raise ModelError(f"the back-end gave {name} scales that are not finite numbers; raise --damp")
    finally:
        source.close()


def _stored_type(folder: Path, name: str) -> str:
    index = folder / _INDEX
    places = Record.read_if_there(index).record("weight_map").values
    opened = SafetensorsFile(folder / places.get(name, "model.safetensors"))
    opened.file.close()
    return _TYPES.get(opened.entries[name].dtype, "float32")


def _add_copy(folder: Path, name: str, original: str) -> None:
    """Store the tensor `original` once more as `name`, in the same file; nothing where `name` is there."""
    index = folder / _INDEX
    record = read_json(index) if index.is_file() else {}
    places: dict[str, str] = Record(index, record).record("weight_map").values
    path = folder / places.get(original, "model.safetensors")
    opened = SafetensorsFile(path)
    try:
        if name in opened.entries or name in places:
            return
        entry = opened.entries[original]
        size = opened.file.size
    finally:
        opened.file.close()
    fresh = path.with_name(f"{path.name}.fresh")
    with path.open("rb") as old, fresh.open("wb") as new:
        (length,) = struct.unpack("<Q", old.read(8))
        header = json.loads(old.read(length))
        start, stop = header[original]["data_offsets"]
        end = size - 8 - length
        header[name] = header[original] | {"data_offsets": [end, end + stop - start]}
        text = json.dumps(header, separators=(",", ":")).encode("utf-8")
        text += b" " * (-len(text) % 8)  # data begins at a multiple of 8
        new.write(struct.pack("<Q", len(text)) + text)
        shutil.copyfileobj(old, new, 1 << 24)
        old.seek(entry.offset)
        left = stop - start
        while left:
            block = old.read(min(left, 1 << 24))
            new.write(block)
            left -= len(block)
    fresh.replace(path)
    if record:
        places[name] = path.name
        record["metadata"] = {
            "total_size": sum(_data_bytes(folder / shard) for shard in set(places.values()))
        }
        _write_json(index, record)


def _data_bytes(path: Path) -> int:
    opened = SafetensorsFile(path)
    opened.file.close()
    widths = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2}
    return sum(widths[entry.dtype] * math.prod(entry.shape) for entry in opened.entries.values())


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
