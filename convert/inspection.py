"""The card of a model that has none: what can be said of any folder or file that is known here."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from convert.card import make_card
from convert.checkpoint import open_checkpoint
from convert.hf import own_dtype
from convert.hf_view import whole_weight
from convert.runnable import configured_quantization
from convert.sources import TensorSource
from rrtf_serve.models.families import FAMILIES, detect_family
from rrtf_serve.models.folder import Card, foreign_card
from rrtf_serve.models.inventory import size_of
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.tokens import Tokenizer


def card_from_facts(source: Source, *, family: str | None, context_length: int | None) -> Card:
    """A card out of the model's own files, as if it had none.

    `family` and `context_length` (tokens), where given, are taken instead of what the files say. Raises
    ModelError naming the file that is missing or damaged, or the flag that has to be given, ValueError on an
    unknown family.
    """
    if family is not None and family not in FAMILIES:
        raise ValueError(f"--family {family!r} is unknown; known: {', '.join(sorted(FAMILIES))}")
    card = _foreign(source, context_length) if source.kind is Kind.CT2 else _unconverted(source)
    return replace(
        card,
        size_bytes=size_of(source.path),
        tools={},  # ours made nothing of it
        context_length=context_length or card.context_length,
        family=family or card.family,
    )


def _foreign(source: Source, context_length: int | None) -> Card:
    """A folder that CTranslate2's own converter wrote. It doesn't say what the model was made from."""
    card = foreign_card(source.path, source.name, context_length)
    tokenizer = Tokenizer.load(source.path)
    return replace(card, family=detect_family("", tokenizer, source.name, card.chat_template))


def _unconverted(source: Source) -> Card:
    checkpoint = open_checkpoint(source)
    try:
        # A GGUF file's tokenizer has to be written before it can be asked.
        with tempfile.TemporaryDirectory() as scratch:
            checkpoint.write_tokenizer(Path(scratch))
            return make_card(
                source,
                checkpoint,
                configured_quantization(source) or _stored_as(source, checkpoint.tensors),
                Path(scratch),
                context_length=checkpoint.tensors.config.context_length,
            )
    finally:
        checkpoint.tensors.close()


def _stored_as(source: Source, tensors: TensorSource) -> str:
    if source.kind is not Kind.GGUF:
        return own_dtype(source, tensors, {name: whole_weight(tensors, name) for name in tensors.names})
    sizes = {name: int(np.prod(tensors.shape(name), dtype=object)) for name in tensors.names}
    bits = sum(size * tensors.precision(name) for name, size in sizes.items()) / sum(sizes.values())
    return f"{bits:.1f} bits per weight"
