"""A source model -> a folder that the server can run: model.bin, vocabulary, tokenizer.json and card.

    convert(source, Path("out/qwen-int8"))

Needs neither torch nor transformers, and peak memory is a few blocks of weights plus the vocabulary; a family
without a table of ours is handed to convert/whole_model, which needs both and holds the model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from convert.architectures import Specification, specify
from convert.card import make_card
from convert.checkpoint import Checkpoint, open_checkpoint
from convert.foreign import is_foreign
from convert.output import check_apart, new_folder
from convert.whole_model import convert_whole
from convert.writer import check_quantization, plan, planned_size, write_model
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import write_card
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, Source

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

    The folder appears only once it is complete. `quantization` is one of `folder.QUANTIZATIONS`; `progress`
    shows a bar where stderr is a terminal; `force` replaces a model folder that is there already. Raises
    ModelError for what the user can mend, ValueError on an unknown quantisation.
    """
    check_apart(source, destination)
    if source.kind is Kind.HF and is_foreign(Record.read(source.path / "config.json")):
        check_quantization(quantization)
        return convert_whole(source, destination, quantization, force=force)
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
            with tqdm(total=total, unit="B", unit_scale=True, disable=None if progress else True) as bar:

                def advance(name: str, count: int) -> None:
                    bar.set_description_str(name.removeprefix("decoder/"), refresh=False)
                    bar.update(count)

                write_model(
                    folder / "model.bin", specification, checkpoint.tensors, quantization, on_progress=advance
                )
            card = make_card(
                source,
                checkpoint,
                quantization,
                folder,
                context_length=specification.context_length,
                tied_output=specification.tied_output,
            )
            write_card(card, folder)
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
