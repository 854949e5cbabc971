"""A source model -> a plain Hugging Face folder, for transformers, training and other tools.

    convert(source, Path("out/merged"))                    a base with its adapter merged in
    convert(gguf_source, Path("out/qwen"), dtype="float32")   a dequantised GGUF file

Needs neither torch nor transformers. Peak memory is a few blocks of weights plus the vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer
from tokenizers.processors import TemplateProcessing
from tqdm import tqdm

from convert.architectures import Weight, is_tied, specify
from convert.card import make_card
from convert.checkpoint import Checkpoint, open_checkpoint
from convert.families import FAMILIES
from convert.hf_record import config_record, generation_record, tokenizer_record
from convert.hf_view import under_hf_names, whole_weight
from convert.output import check_apart, new_folder
from convert.safetensors_writer import DTYPES, SHARD_BYTES, shards, write_shards
from convert.sources import TensorSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import write_card
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, Source

# What a folder says of itself besides its weights; copied where it is there.
_COPIED = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
)  # fmt: skip
_TOKENIZER_FILES = _COPIED[1:]
_WITH_CONFIG = (Kind.HF, Kind.GPTQ)  # folders that have a config.json to copy
_OTHER_BYTES = 64 << 20  # all files but the weights, at the most
# Buffers that older versions of transformers saved and that no version reads.
_BUFFERS = (".rotary_emb.inv_freq", ".attn.masked_bias")


def convert(
    source: Source,
    destination: Path,
    *,
    dtype: str | None = None,
    progress: bool = True,
    force: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write `source` into the folder `destination`, which appears only once it is complete, and return it.

    `dtype`: float32, float16 or bfloat16; None takes the source's own, for a quantised GGUF file bfloat16.
    `progress` shows a bar where stderr is a terminal; `force` replaces a folder that was converted before.
    Raises ModelError for what the user can mend, ValueError on an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; known: {', '.join(DTYPES)}")
    check_apart(source, destination)
    checkpoint = open_checkpoint(source)
    try:
        specify(checkpoint.tensors)  # for its checks: every tensor there, and of the configuration's shape
        tensors = under_hf_names(checkpoint.tensors)
        weights = {name: whole_weight(tensors, name) for name in _wanted(tensors)}
        rows = _vocabulary_rows(source, checkpoint, tensors)
        kind = dtype or own_dtype(source, tensors, weights)
        parts = shards(weights, kind, shard_bytes)
        total = sum(part.data_bytes for part in parts)
        with new_folder(destination, needed_bytes=total + _OTHER_BYTES, force=force) as folder:
            _write_settings(source, checkpoint, tensors, folder, rows=rows, dtype=kind)
            with tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True) as bar:

                def advance(name: str, count: int) -> None:
                    bar.set_description_str(name, refresh=False)
                    bar.update(count)

                write_shards(folder, parts, tensors, kind, on_progress=advance)
            card = make_card(
                source, checkpoint, kind, folder, context_length=checkpoint.tensors.config.context_length
            )
            write_card(card, folder)
    finally:
        checkpoint.tensors.close()
    return destination


def _vocabulary_rows(source: Source, checkpoint: Checkpoint, tensors: TensorSource) -> int:
    embedding = f"{FAMILIES[tensors.config.architecture].names['hf']['embedding']}.weight"
    rows, count = tensors.shape(embedding)[0], len(checkpoint.tokenizer.tokens)
    if count > rows:
        raise ModelError(
            f"{source.path}: the tokenizer has {count:,} tokens, the embedding {rows:,} rows; "
            "the tokenizer belongs to another model, or tokens were added without resizing the embedding"
        )
    return rows


def _wanted(tensors: TensorSource) -> list[str]:
    """The tensors to write, layer by layer as they are stored; a tied output matrix is written once."""
    output = f"{FAMILIES[tensors.config.architecture].names['hf']['output']}.weight"
    tied = is_tied(tensors)
    return [
        name
        for name in sorted(tensors.names, key=_layer_first)
        if not name.endswith(_BUFFERS)
        and len(tensors.shape(name)) <= 2  # an attention mask, in older files
        and not (name == output and tied)
    ]


def _layer_first(name: str) -> tuple[int, str]:
    number = next((int(part) for part in name.split(".") if part.isdigit()), -1)
    return number, name


def own_dtype(source: Source, tensors: TensorSource, weights: dict[str, Weight]) -> str:
    """What a folder's configuration calls its type, else what most of its weights are stored as."""
    folder = source.base if source.kind is Kind.ADAPTER else source
    if folder is not None and folder.kind in _WITH_CONFIG:
        record = Record.read(folder.path / "config.json")
        named = record.text("dtype") or record.text("torch_dtype")
        if named in DTYPES:
            return named
    if any(tensors.precision(name) not in (16.0, 32.0, 64.0) for name in weights):
        return "bfloat16"  # dequantised weights have no type of their own; models are trained in this one
    sizes: dict[str, int] = {}
    for weight in weights.values():
        sizes[weight.stored_type] = sizes.get(weight.stored_type, 0) + weight.shape[0] * weight.shape[-1]
    return max(sizes, key=lambda kind: sizes[kind])


def _write_settings(
    source: Source, checkpoint: Checkpoint, tensors: TensorSource, folder: Path, *, rows: int, dtype: str
) -> None:
    base = source.base if source.base is not None else source
    own_tokenizer = source.kind is Kind.ADAPTER and (source.path / "tokenizer.json").is_file()
    if base.kind in _WITH_CONFIG:
        config = Record.read(base.path / "config.json").values
        for key in ("dtype", "quantization_config"):
            config.pop(key, None)
        config |= {"torch_dtype": dtype}
        if tensors.config.tied and not is_tied(tensors):  # what it says, and what its files hold
            config["tie_word_embeddings"] = False
        _write_json(folder / "config.json", config)
        tokenizer = source.path if own_tokenizer else base.path
        for name in _COPIED:
            place = (tokenizer if name in _TOKENIZER_FILES else base.path) / name
            if place.is_file():
                shutil.copyfile(place, folder / name)
        return
    facts = checkpoint.tokenizer
    _write_json(folder / "config.json", config_record(tensors.config, tensors.names, facts, rows, dtype))
    _write_json(folder / "generation_config.json", generation_record(facts))
    if own_tokenizer:
        for name in _TOKENIZER_FILES:
            if (source.path / name).is_file():
                shutil.copyfile(source.path / name, folder / name)
        return
    checkpoint.write_tokenizer(folder)
    _write_json(folder / "tokenizer_config.json", tokenizer_record(facts))
    if facts.chat_template:
        (folder / "chat_template.jinja").write_text(facts.chat_template, "utf-8")
    if facts.add_bos and facts.bos_token:
        _add_bos(folder / "tokenizer.json", facts.bos_token, facts.tokens.index(facts.bos_token))


def _add_bos(path: Path, token: str, index: int) -> None:
    """Put the token before every text: tokenizer.json must say so itself, its settings don't count."""
    tokenizer = FastTokenizer.from_file(str(path))
    tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token}:1 $B:1", special_tokens=[(token, index)]
    )
    tokenizer.save(str(path), pretty=False)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", "utf-8")
