"""The card (rrtf.json) of a model that was just written: what it was made from, and with what."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, TokenizerFacts
from rrtf_serve.models.families import detect_family
from rrtf_serve.models.folder import Card
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer

TOOLS = ("rrtf-serve", "ctranslate2", "gguf", "numpy")


def make_card(
    source: Source,
    checkpoint: Checkpoint,
    quantization: str,
    folder: Path,
    *,
    context_length: int,
    tied_output: str = "",
) -> Card:
    """The card of `folder`, where everything but the card lies already.

    `context_length` in tokens; `quantization`: the type of the weights, or the method that made them.
    """
    card = describe_folder(
        source,
        checkpoint.tokenizer,
        checkpoint.tensors.config.architecture,
        quantization,
        folder,
        context_length=context_length,
        licence=checkpoint.licence,
    )
    return replace(card, tied_output=tied_output)


def describe_folder(  # a card has many facts by nature
    source: Source,
    facts: TokenizerFacts,
    architecture: str,
    quantization: str,
    folder: Path,
    *,
    context_length: int,
    licence: str,
    tools: tuple[str, ...] = TOOLS,
) -> Card:
    """Like `make_card`, from the facts alone; `tools`: the packages whose versions are noted."""
    family = source.family or detect_family(
        architecture, Tokenizer.load(folder), source.name, facts.chat_template
    )
    return Card(
        name=source.name,
        architecture=architecture,
        family=family,
        context_length=context_length,
        quantization=quantization,
        licence=licence,
        source=origin_record(source),
        tools={tool: version(tool) for tool in tools},
        size_bytes=sum(path.stat().st_size for path in folder.iterdir()),
        bos_token=facts.bos_token,
        add_bos=facts.add_bos,
        end_tokens=facts.end_tokens,
        chat_template=facts.chat_template,
    )


def origin_record(source: Source) -> dict[str, Any]:
    """What a card says of its source: kind, file, SHA-256 and origin, and the same of an adapter's base."""
    record: dict[str, Any] = {"kind": str(source.kind), "file": source.path.name}
    if source.digest:
        record["sha256"] = source.digest
    if source.origin:
        record["origin"] = source.origin
    if source.base:
        record["base"] = origin_record(source.base) | {"name": source.base.name}
    return record
