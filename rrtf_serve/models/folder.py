"""A servable folder: a CTranslate2 model with its tokenizer and its card.

Layout (written by convert/ct2, complete or absent):
    model.bin, config.json, vocabulary.json   CTranslate2's own
    tokenizer.json                            Hugging Face tokenizers format
    rrtf.json                                 the card

A folder from another converter has no card; `describe` then reads tokenizer_config.json and
chat_template.jinja where they lie, and what is still unknown must be said on the command line.
"""

from __future__ import annotations

import json
import os
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record, is_text

CARD_FORMAT = 1
# CTranslate2's storage types; what a machine can compute in is checked when the model is loaded.
QUANTIZATIONS = (
    "int8", "int8_float32", "int8_float16", "int8_bfloat16", "int16", "float16", "bfloat16", "float32",
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What a converted model says of itself; shown by /v1/models, the page and `rrtf-models show`."""

    name: str
    architecture: str  # "qwen2", "llama", "starcoder", "starcoder2"
    family: str  # key into families.FAMILIES
    context_length: int  # tokens, prompt and completion together
    quantization: str  # CTranslate2 type the weights were written as
    licence: str = ""
    source: dict[str, Any] = field(default_factory=dict)  # kind, file, sha256, origin
    tools: dict[str, str] = field(default_factory=dict)  # tool -> version
    tied_output: str = ""  # which stored tensor serves as embedding and output matrix; empty: not tied
    size_bytes: int = 0
    bos_token: str = ""
    add_bos: bool = False
    end_tokens: list[str] = field(default_factory=list)  # generation ends at any of these
    chat_template: str = ""  # untrusted jinja2 text; empty: the family's own format
    recipe: dict[str, Any] | None = None  # how a calibrated quantisation was made: settings, calibration data
    parity: dict[str, Any] | None = None  # filled by `rrtf-convert verify`
    format: int = CARD_FORMAT

    def public(self) -> dict[str, Any]:
        """The card without its chat template, which is long and nobody's business in a model list."""
        record = asdict(self)
        del record["chat_template"]
        return record


def write_card(card: Card, folder: Path) -> None:
    """Write the folder's card, whole or not at all: a card that is there stays until the new one is."""
    fresh = folder / f".rrtf.json.{os.getpid()}"
    try:
        with fresh.open("w", encoding="utf-8") as file:
            file.write(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(folder / "rrtf.json")
    finally:
        fresh.unlink(missing_ok=True)


def read_card(folder: Path) -> Card | None:
    """The folder's card, or None where it has none. Raises ModelError on a card that can't be read."""
    path = folder / "rrtf.json"
    if not path.is_file():
        return None
    record = Record.read(path).values
    hints = get_type_hints(Card)
    known = {}
    for item in fields(Card):
        if item.name in record:
            value = known[item.name] = record[item.name]
            if not _fits(value, hints[item.name]):
                raise ModelError(f"{path}: {item.name} is {value!r:.200}; it should be {item.type}")
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ModelError(f"{path}: {item.name} is missing; convert the model again")
    return Card(**known)


def _fits(value: object, hint: Any) -> bool:
    """Whether a value out of JSON has the annotated type; true is no number here."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if inner:  # a union
        return any(_fits(value, member) for member in inner)
    return hint is Any or (is_text(value) if hint is str else type(value) is hint)


def read_chat_template(folder: Path, settings: Record) -> str:
    """The text of chat_template.jinja, or what `settings` (tokenizer_config.json) holds; empty: neither.

    Raises ModelError naming the file that can't be read.
    """
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file}: not readable as UTF-8 text ({error})") from error
    value = settings.values.get("chat_template")
    if isinstance(value, list):  # several named templates
        named = [Record(settings.path, item) for item in value if isinstance(item, dict)]
        return next((item.text("template") for item in named if item.text("name") == "default"), "")
    return settings.text("chat_template")


def describe(folder: Path, *, name: str, family: str | None, context_length: int | None) -> Card:
    """The folder's card, or one made from what other converters leave beside model.bin.

    `family` and `context_length` (tokens), where given, override what the folder says. Raises ModelError
    naming the missing file or flag.
    """
    card = read_card(folder) or foreign_card(folder, name, context_length)
    return adjusted(card, family=family, context_length=context_length)


def adjusted(card: Card, *, family: str | None, context_length: int | None) -> Card:
    """The card with what the user says instead, where they say it. Raises ModelError naming the flag."""
    if context_length is not None:
        if card.context_length and context_length > card.context_length:
            raise ModelError(
                f"--context-length {context_length}: the model takes at most {card.context_length} tokens"
            )
        card = replace(card, context_length=context_length)
    return card if family is None else replace(card, family=family)


def foreign_card(folder: Path, name: str, context_length: int | None) -> Card:
    """A card from what other converters leave beside model.bin.

    `context_length` (tokens) is for folders that don't say; without it they are a ModelError that names the
    flag, as is a damaged file.
    """
    config = Record.read_if_there(folder / "config.json")
    settings = Record.read_if_there(folder / "tokenizer_config.json")
    limit = settings.values.get("model_max_length")
    # Hugging Face writes 1e30 for "no limit known".
    known = limit if isinstance(limit, int) and 1 < limit < 10_000_000 else 0
    if context_length is None and not known:
        raise ModelError(
            f"{folder}: neither rrtf.json nor tokenizer_config.json says how long its context is; "
            "give --context-length TOKENS"
        )
    end = config.values.get("eos_token")
    return Card(
        name=name,
        architecture="",
        family="",
        context_length=known,
        quantization=config.text("quantization_type"),
        size_bytes=(folder / "model.bin").stat().st_size,
        bos_token=config.text("bos_token"),
        add_bos=settings.flag("add_bos_token", False),
        end_tokens=[end] if is_text(end) else [],
        chat_template=read_chat_template(folder, settings),
    )
