"""Families without a table here: CTranslate2's own converter takes them, where torch and transformers are.

Listed are the families whose float32 conversions were compared with transformers (tests/test_foreign.py);
that converter knows more, some of which it gets wrong. convert/whole_model runs it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

_DEFAULT_CONTEXT = 2048  # positions without a limit of their own (ALiBi): what these models were trained with


@dataclass(frozen=True)
class Foreign:
    """`context`: the key of config.json that holds its length in tokens. `wrong_when`: settings under which
    CTranslate2 computes something else than transformers."""

    context: str = "max_position_embeddings"
    wrong_when: Mapping[str, object] = field(default_factory=dict)


FOREIGN = {
    "bloom": Foreign("seq_length"),
    "codegen": Foreign("n_positions"),
    "falcon": Foreign(wrong_when={"alibi": True}),
    "gemma": Foreign(),
    "gemma3_text": Foreign(),
    "gpt2": Foreign("n_positions"),
    "gpt_neox": Foreign(),
    "gptj": Foreign("n_positions"),
    "mpt": Foreign("max_seq_len"),
    "opt": Foreign(),
    "phi": Foreign(wrong_when={"qk_layernorm": True}),
}
# Known to CTranslate2's converter, and wrong after it.
REFUSED = {
    "gemma2": "CTranslate2 leaves out the soft capping of its attention scores and logits",
}


def known_types(streaming: Iterable[str]) -> str:
    """Both lists of model types, for an error."""
    return (
        f"known: {', '.join(sorted(streaming))}; with torch and transformers installed, to CTranslate2 only: "
        f"{', '.join(sorted(FOREIGN))}"
    )


def is_foreign(record: Record) -> bool:
    """Whether this config.json is a family that CTranslate2's own converter is to take.

    Raises ModelError on one that it gets wrong.
    """
    model_type = record.text("model_type")
    if model_type in REFUSED:
        raise ModelError(
            f"{record.path}: model_type {model_type!r} can't be converted: {REFUSED[model_type]}"
        )
    if model_type not in FOREIGN:
        return False
    for key, value in FOREIGN[model_type].wrong_when.items():
        if record.values.get(key) == value:
            raise ModelError(
                f"{record.path}: a {model_type} model with {key} {str(value).lower()} can't be converted: "
                "CTranslate2 computes something else than transformers"
            )
    return True


def context_length(record: Record) -> int:
    """Tokens that the model takes: its positions, or its sliding window where that is less."""
    length = record.count(FOREIGN[record.text("model_type")].context, _DEFAULT_CONTEXT)
    return min(length, record.optional_count("sliding_window") or length)
