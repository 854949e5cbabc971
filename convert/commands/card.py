"""`rrtf-convert card`: what a model says of itself."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from convert.commands.options import Commands, make_parser
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card, read_card, write_card
from rrtf_serve.models.parity import parity_facts
from rrtf_serve.models.source import Source, detect_kind, name_of

_EXAMPLES = """\
examples:
  rrtf-convert card ./qwen-int8                  what it was made from, and what that cost
  rrtf-convert card ./model.gguf --json          facts out of the file itself
  rrtf-convert card ./from-another-converter --write --context-length 4096
"""


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Make the command's parser."""
    parser = make_parser(
        commands,
        "card",
        summary="show a model's card, or write one for a folder that has none",
        description="Show the card (rrtf.json) of a model's folder. Where there is none, show what the "
        "model's own files say; --write puts that into the folder, also in place of a damaged card.",
        examples=_EXAMPLES,
    )
    option = parser.add_argument
    option("model", metavar="DIR", type=Path, help="a model's folder, or a GGUF file")
    option("--write", action="store_true", help="write the card into the folder")
    option("--family", metavar="NAME", help=f"how to prompt it: {', '.join(sorted(FAMILIES))}")
    option("--context-length", type=int, metavar="TOKENS", help="prompt and completion together")
    option("--json", action="store_true", help="print the card as one JSON object")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    path: Path = arguments.model.expanduser().absolute()
    kind = detect_kind(path)
    if arguments.context_length is not None and arguments.context_length < 1:
        raise ModelError(f"--context-length {arguments.context_length}: should be at least 1")
    try:
        card = read_card(path) if path.is_dir() else None
    except ModelError as error:
        if not arguments.write:
            raise ModelError(f"{error}; --write makes a new one from the model's own files") from error
        card = None
    if card is None:
        from convert.inspection import card_from_facts  # noqa: PLC0415  # slow to import

        source = Source(path, kind, name_of(path), origin="local")
        try:
            card = card_from_facts(source, family=arguments.family, context_length=arguments.context_length)
        except ValueError as error:
            raise ModelError(str(error)) from error
    else:
        card = _changed(card, arguments)
    if arguments.write:
        if not path.is_dir():
            raise ModelError(f"{path}: a file can't hold a card; convert it, or leave out --write")
        write_card(card, path)
    if arguments.json:
        print(json.dumps({"path": str(path), "kind": kind, "card": card.public()}, ensure_ascii=False))
    else:
        _show(path, kind, card)
    return 0


def _changed(card: Card, arguments: argparse.Namespace) -> Card:
    """The card with what the command line says otherwise."""
    family, length = arguments.family, arguments.context_length
    if family is not None and family not in FAMILIES:
        raise ModelError(f"--family {family!r} is unknown; known: {', '.join(sorted(FAMILIES))}")
    if (family or length) and not arguments.write:
        print("rrtf-convert: shown, not written; --write keeps it", file=sys.stderr)
    return replace(card, family=family or card.family, context_length=length or card.context_length)


def _show(path: Path, kind: str, card: Card) -> None:
    facts = [("path", str(path)), ("kind", str(kind))]
    facts += [
        (key.replace("_", " "), _text(value))
        for key, value in card.public().items()
        if key not in ("format", "parity") and value not in (None, "", [], {}, 0)
    ]
    facts += parity_facts(card.parity)
    width = max(len(key) for key, _ in facts)
    for key, text in facts:
        print(f"{key:{width}}  {text}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items() if item not in (None, ""))
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
