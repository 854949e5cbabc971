"""A servable folder: a CTranslate2 model with its tokenizer and its card.

Layout (written by convert/ct2, complete or absent):
    model.bin, config.json, vocabulary.json   CTranslate2's own
    tokenizer.json                            Hugging Face tokenizers format
    rrtf.json                                 the card

A folder from another converter has no card; tokenizer_config.json, generation_config.json and a Hugging Face
config (`hf_config.json`) are then read where they lie, and the rest must be said on the command line.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
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
