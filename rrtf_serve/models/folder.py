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
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rrtf_serve.models.errors import ModelError

CARD_FORMAT = 1


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
    parity: dict[str, Any] | None = None  # filled by `rrtf-convert verify`
    format: int = CARD_FORMAT

    def public(self) -> dict[str, Any]:
        """The card without its chat template, which is long and nobody's business in a model list."""
        record = asdict(self)
        del record["chat_template"]
        return record


def write_card(card: Card, folder: Path) -> None:
    (folder / "rrtf.json").write_text(json.dumps(asdict(card), indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_card(folder: Path) -> Card | None:
    """The folder's card, or None where it has none. Raises ModelError on a card that can't be read."""
    path = folder / "rrtf.json"
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
        known = {key: record[key] for key in Card.__dataclass_fields__ if key in record}
        return Card(**known)
    except (ValueError, TypeError) as error:
        raise ModelError(f"{path}: not a readable card ({error})") from error


def describe(folder: Path, *, name: str, family: str | None, context_length: int | None) -> Card:
    """The folder's card, or one made from what other converters leave beside model.bin.

    `family` and `context_length` (tokens), where given, override what the folder says. Raises ModelError
    naming the missing file or flag.
    """
    card = read_card(folder) or _foreign_card(folder, name, context_length)
    if context_length is not None:
        if card.context_length and context_length > card.context_length:
            raise ModelError(
                f"--context-length {context_length}: the model takes at most {card.context_length} tokens"
            )
        card = replace(card, context_length=context_length)
    if family is not None:
        card = replace(card, family=family)
    return card


def _foreign_card(folder: Path, name: str, context_length: int | None) -> Card:
    config = _read_json(folder / "config.json")
    tokenizer_config = _read_json(folder / "tokenizer_config.json")
    limit = tokenizer_config.get("model_max_length")
    # Hugging Face writes 1e30 for "no limit known".
    known = limit if isinstance(limit, int) and 1 < limit < 10_000_000 else 0
    if context_length is None and not known:
        raise ModelError(
            f"{folder}: neither rrtf.json nor tokenizer_config.json says how long its context is; "
            "give --context-length TOKENS"
        )
    template_file = folder / "chat_template.jinja"
    template = (
        template_file.read_text("utf-8") if template_file.is_file() else tokenizer_config.get("chat_template")
    )
    return Card(
        name=name,
        architecture="",
        family="",
        context_length=known,
        quantization=str(config.get("quantization_type") or ""),
        size_bytes=(folder / "model.bin").stat().st_size,
        bos_token=str(config.get("bos_token") or ""),
        add_bos=tokenizer_config.get("add_bos_token") is True,
        end_tokens=[config["eos_token"]] if isinstance(config.get("eos_token"), str) else [],
        chat_template=template if isinstance(template, str) else "",
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(record, dict):
        raise ModelError(f"{path}: not a JSON object")
    return record
