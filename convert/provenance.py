"""Where a converted model came from: its source found again, and whether two models belong together."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.runnable import Plan, Runnable
from rrtf_serve.models import catalog, inventory
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.store import Store

_HUB = re.compile(r"hub:(?P<repo>[^@]+)@(?P<revision>.+)")


def source_of(folder: Path, card: Card | None, store: Store, *, progress: bool) -> Source:
    """The model that `folder` was made from, as its card names it; fetched where it is not here.

    By digest among what the store has fetched, by its catalogue name, or by its hub repository and revision.
    Raises ModelError, saying to name SRC, where it can't be found or is not what it was.
    """
    advice = "name it: rrtf-convert verify SRC DST"
    if card is None:
        raise ModelError(f"{folder}: has no card (rrtf.json) that says what it was made from; {advice}")
    digest, origin = (_text(card.source, key) for key in ("sha256", "origin"))
    source = None
    known = [record for record in inventory.records(store.home) if digest and record.digest == digest]
    if known:
        source = replace(store.fetch(known[0].path, progress=progress), name=known[0].name)
    elif catalog.find(card.name):
        source = store.fetch(card.name, progress=progress)
    elif match := _HUB.fullmatch(origin):
        file = f":{_text(card.source, 'file')}" if card.source.get("kind") == Kind.GGUF else ""
        source = store.fetch(match["repo"] + file, revision=match["revision"], progress=progress)
    if source is None:
        file = _text(card.source, "file") or "an unnamed file"
        raise ModelError(f"{folder}: was made from {file}, which is not in the store; {advice}")
    if digest and source.digest != digest:
        raise ModelError(f"{source.path}: is not the file that {folder} was made from; {advice}")
    return source


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    return value if isinstance(value, str) else ""


def check_plans(reference: Plan, model: Plan) -> None:
    """Raise ModelError where two models can't be compared, as far as their files tell before either is
    converted or loaded: another architecture or vocabulary size."""
    name, other = model.source.path, reference.source.path
    if model.architecture != reference.architecture and model.architecture and reference.architecture:
        raise ModelError(
            f"{name}: is a {model.architecture} model, {other} a {reference.architecture} one; verify "
            "compares a model with what it was made from"
        )
    if model.vocabulary_size != reference.vocabulary_size:
        raise ModelError(
            f"{name}: has {model.vocabulary_size:,} rows in its vocabulary, {other} has "
            f"{reference.vocabulary_size:,}; it was made from another model"
        )


def check_tokenizers(reference: Runnable, model: Runnable, sample: str) -> None:
    """Raise ModelError where two loaded models cut `sample` into different tokens."""
    ids = [each.tokenizer.encode(sample, specials=False) for each in (reference, model)]
    if ids[0] != ids[1]:
        at = next((i for i, pair in enumerate(zip(*ids, strict=False)) if pair[0] != pair[1]), len(ids[0]))
        raise ModelError(
            f"{model.name}: cuts the same text into other tokens than {reference.name} (from token {at} on); "
            "it was made from another model, or its tokenizer.json was changed"
        )


def digest_warnings(source: Source, card: Card | None) -> list[str]:
    """What a card's digests say against `source` being what the model was made from; empty: nothing."""
    if card is None:
        return []
    recorded = _text(card.source, "sha256")
    if recorded and source.digest and recorded != source.digest:
        return [
            f"its card says it was made from a file with SHA-256 {recorded[:12]}..., this source has "
            f"{source.digest[:12]}...; the figures include whatever else differs"
        ]
    return []
