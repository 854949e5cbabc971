"""A source model -> a folder that the server can run: model.bin, vocabulary, tokenizer.json and card.

    convert(source, Path("out/qwen-int8"))

Needs neither torch nor transformers. Peak memory is a few blocks of weights plus the vocabulary.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.architectures import Specification, specify
from convert.checkpoint import Checkpoint, open_checkpoint
from convert.output import new_folder
from convert.writer import plan, planned_size, write_model
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import detect_family
from rrtf_serve.models.folder import Card, write_card
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer

_TOKENIZER_BYTES = 64 << 20  # tokenizer.json, vocabulary.json and card together, at the most


def convert(
    source: Source,
    destination: Path,
    *,
    quantization: str = "int8",
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Convert `source` into the folder `destination` and return it.

    The folder appears only once it is complete. `quantization` is one of `writer.QUANTIZATIONS`; `progress`
    shows a bar on stderr; `force` replaces a model folder that is there already. Raises ModelError for what
    the user can mend, ValueError on an unknown quantisation.
    """
    if _inside(source, destination):
        raise ModelError(f"{destination}: lies in or around the source {source.path}; take another folder")
    checkpoint = open_checkpoint(source)
    try:
        specification = specify(checkpoint.tensors)
        variables = plan(specification, quantization)
        vocabulary = padded_vocabulary(
            checkpoint.tokenizer.tokens, specification.vocabulary_size, source.path
        )
        size = planned_size(variables)
        with new_folder(destination, needed_bytes=size + _TOKENIZER_BYTES, force=force) as folder:
            checkpoint.write_tokenizer(folder)
            _write_json(folder / "vocabulary.json", vocabulary)
            _write_json(folder / "config.json", _runtime_config(specification, checkpoint))
            total = sum(variable.size for variable in variables)
            with tqdm(total=total, unit="B", unit_scale=True, disable=not progress) as bar:

                def advance(name: str, count: int) -> None:
                    bar.set_description_str(name.removeprefix("decoder/"), refresh=False)
                    bar.update(count)

                write_model(
                    folder / "model.bin", specification, checkpoint.tensors, quantization, on_progress=advance
                )
            write_card(_card(source, checkpoint, specification, quantization, folder), folder)
    finally:
        checkpoint.tensors.close()
    return destination


def padded_vocabulary(tokens: list[str], size: int, path: Path) -> list[str]:
    """One distinct string per row of the embedding: CTranslate2 refers to tokens by string.

    Rows that no token uses get `<extra_id_N>`, as CTranslate2's own converter names them. Raises ModelError
    when there are more tokens than rows, or two of the same name.
    """
    if len(tokens) > size:
        raise ModelError(
            f"{path}: the tokenizer has {len(tokens):,} tokens, the embedding {size:,} rows; "
            "the tokenizer belongs to another model, or tokens were added without resizing the embedding"
        )
    named = set(tokens)
    free = (text for index in range(size + len(tokens)) if (text := f"<extra_id_{index}>") not in named)
    padded = [token or next(free) for token in tokens] + [next(free) for _ in range(size - len(tokens))]
    if len(set(padded)) != size:
        raise ModelError(f"{path}: two tokens of the vocabulary have the same name; the tokenizer is damaged")
    return padded


def _inside(source: Source, destination: Path) -> bool:
    target = destination.resolve()
    folders = [place.resolve() for place in (source.path, *((source.base.path,) if source.base else ()))]
    return any(target == folder or target in folder.parents or folder in target.parents for folder in folders)


def _runtime_config(specification: Specification, checkpoint: Checkpoint) -> dict[str, Any]:
    facts = checkpoint.tokenizer
    config = specification.spec.config
    config.bos_token = facts.bos_token or facts.pad_token or facts.unk_token or facts.eos_token
    config.eos_token = facts.eos_token
    config.unk_token = facts.unk_token
    config.layer_norm_epsilon = checkpoint.tensors.config.norm_epsilon
    record: dict[str, Any] = config.to_dict()
    return record


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", "utf-8")


def _card(
    source: Source, checkpoint: Checkpoint, specification: Specification, quantization: str, folder: Path
) -> Card:
    facts = checkpoint.tokenizer
    architecture = checkpoint.tensors.config.architecture
    family = source.family or detect_family(
        architecture, Tokenizer.load(folder), source.name, facts.chat_template
    )
    return Card(
        name=source.name,
        architecture=architecture,
        family=family,
        context_length=specification.context_length,
        quantization=quantization,
        licence=source.licence,
        source=_origin(source),
        tools={tool: version(tool) for tool in ("rrtf-serve", "ctranslate2", "gguf", "numpy")},
        tied_output=specification.tied_output,
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        bos_token=facts.bos_token,
        add_bos=facts.add_bos,
        end_tokens=facts.end_tokens,
        chat_template=facts.chat_template,
    )


def _origin(source: Source) -> dict[str, Any]:
    record: dict[str, Any] = {"kind": str(source.kind), "file": source.path.name}
    if source.digest:
        record["sha256"] = source.digest
    if source.origin:
        record["origin"] = source.origin
    if source.base:
        record["base"] = _origin(source.base) | {"name": source.base.name}
    return record
