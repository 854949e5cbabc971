"""A source opened for conversion: its tensors, and what its tokenizer says of itself."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from convert.adapter_source import AdapterSource
from convert.gguf_metadata import GgufMetadata
from convert.gguf_source import GgufSource
from convert.gptq_source import GptqSource
from convert.hf_view import under_hf_names
from convert.safetensors_source import SafetensorsSource
from convert.sources import TensorSource
from convert.tokenizer import read_tokenizer_settings, write_tokenizer
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.hf_folder import TokenizerFacts, hf_facts
from rrtf_serve.models.records import is_text
from rrtf_serve.models.source import Kind, Source

__all__ = ["Checkpoint", "TokenizerFacts", "card_licence", "hf_facts", "open_checkpoint"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    tensors: TensorSource
    tokenizer: TokenizerFacts
    write_tokenizer: Callable[[Path], None]  # puts tokenizer.json into a folder
    licence: str  # the source's, else what the files say, else the base's; empty: unknown


def open_checkpoint(source: Source) -> Checkpoint:
    """Open what `source` names: a GGUF file, a Hugging Face folder, or a PEFT adapter with its base.

    The caller closes `tensors`. Raises ModelError on anything missing, damaged or of an unknown kind.
    """
    if source.kind is Kind.GGUF:
        tensors = GgufSource(source.path)
        return Checkpoint(
            tensors,
            _gguf_facts(tensors.metadata),
            partial(write_tokenizer, tensors.metadata),
            source.licence or _gguf_licence(tensors.metadata),
        )
    if source.kind in (Kind.HF, Kind.GPTQ):
        facts = hf_facts(source.path)
        licence = source.licence or card_licence(source.path)
        opened = SafetensorsSource(source.path) if source.kind is Kind.HF else GptqSource(source.path)
        return Checkpoint(opened, facts, partial(_copy_tokenizer, source.path), licence)
    if source.kind is Kind.ADAPTER:
        return _open_adapter(source)
    raise ModelError(
        f"{source.path}: a {source.kind} model can't be converted; give the model it was made from"
    )


def _open_adapter(source: Source) -> Checkpoint:
    base = source.base
    if base is None:
        raise ModelError(f"{source.path}: its base model is not known; name it, or fetch it first")
    if base.kind not in (Kind.HF, Kind.GGUF):
        raise ModelError(
            f"{source.path}: its base {base.path} is a {base.kind} model; "
            "an adapter can be merged only into a Hugging Face folder or a GGUF file"
        )
    below = open_checkpoint(base)
    try:
        tensors = AdapterSource(source.path, under_hf_names(below.tensors))
        licence = source.licence or card_licence(source.path) or below.licence
        # An adapter that was trained with a tokenizer of its own keeps that beside it.
        if not (source.path / "tokenizer.json").is_file():
            return replace(below, tensors=tensors, licence=licence)
        facts = hf_facts(source.path, base.path if base.kind is Kind.HF else None)
        return Checkpoint(tensors, facts, partial(_copy_tokenizer, source.path), licence)
    except ModelError:
        below.tensors.close()
        raise


def card_licence(folder: Path) -> str:
    """The licence that the folder's card names; empty where it names none or can't be read."""
    try:
        card = read_card(folder)
    except ModelError as error:  # its weights can be converted all the same
        logger.warning("the licence is not carried over: %s", error)
        return ""
    return card.licence if card else ""


def _gguf_licence(metadata: GgufMetadata) -> str:
    named = metadata.fields.get("general.license")
    return named if is_text(named) else ""


def _copy_tokenizer(source: Path, folder: Path) -> None:
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")


def _gguf_facts(metadata: GgufMetadata) -> TokenizerFacts:
    settings = read_tokenizer_settings(metadata)
    unknown = metadata.integer("tokenizer.ggml.unknown_token_id")
    if unknown is not None and not 0 <= unknown < len(settings.tokens):
        raise ModelError(f"{metadata.path}: tokenizer.ggml.unknown_token_id is {unknown}, no token of it")
    return TokenizerFacts(
        tokens=list(settings.tokens),
        bos_token=settings.bos_token,
        eos_token=settings.eos_token,
        unk_token="" if unknown is None else settings.tokens[unknown],
        pad_token=settings.pad_token,
        add_bos=settings.add_bos,
        end_tokens=list(settings.end_tokens),
        chat_template=settings.chat_template,
    )
