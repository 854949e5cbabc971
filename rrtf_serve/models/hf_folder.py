"""A Hugging Face folder described: what its tokenizer and its settings say, and its card.

Read are tokenizer.json, tokenizer_config.json, chat_template.jinja, config.json and generation_config.json.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card, adjusted, read_card, read_chat_template
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, Source


@dataclass(frozen=True)
class TokenizerFacts:
    """`tokens` is the vocabulary by id; an id without a token holds "". Absent special tokens are "" too."""

    tokens: list[str]
    bos_token: str
    eos_token: str
    unk_token: str
    pad_token: str
    add_bos: bool
    end_tokens: list[str]
    chat_template: str


def hf_facts(folder: Path, model_folder: Path | None = None) -> TokenizerFacts:
    """Facts from tokenizer.json, tokenizer_config.json, chat_template.jinja and the model's configuration.

    `model_folder` holds config.json and generation_config.json when they lie elsewhere. Raises ModelError
    naming the file that is absent or damaged.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{path}: missing; save the model's fast tokenizer there "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...))"
        )
    try:
        tokenizer = FastTokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises bare Exception on every bad file
        raise ModelError(f"{path}: not a readable tokenizer ({error})") from error
    settings = Record.read_if_there(folder / "tokenizer_config.json")
    tokens = _tokens_by_id(path, tokenizer)
    bos, eos = _special(settings, "bos_token"), _special(settings, "eos_token")
    return TokenizerFacts(
        tokens=tokens,
        bos_token=bos,
        eos_token=eos,
        unk_token=_special(settings, "unk_token"),
        pad_token=_special(settings, "pad_token"),
        add_bos=bool(bos) and settings.flag("add_bos_token", tokenizer.encode("").tokens[:1] == [bos]),
        end_tokens=_end_tokens(model_folder or folder, tokens, eos),
        chat_template=read_chat_template(folder, settings),
    )


def _tokens_by_id(path: Path, tokenizer: FastTokenizer) -> list[str]:
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    last = max(vocabulary.values(), default=-1)
    if last > 4 * len(vocabulary) + 65536:  # a list of that length would be an attack, not a vocabulary
        raise ModelError(
            f"{path}: {len(vocabulary):,} tokens, but an id of {last:,}; the tokenizer is damaged"
        )
    tokens = [""] * (last + 1)
    for token, index in vocabulary.items():
        tokens[index] = token
    return tokens


def _special(settings: Record, key: str) -> str:
    value = settings.values.get(key)
    return settings.record(key).text("content") if isinstance(value, dict) else settings.text(key)


def _end_tokens(folder: Path, tokens: list[str], eos: str) -> list[str]:
    """Every token that the model's own settings name as an end, generation settings first."""
    ids = [
        index
        for name in ("generation_config.json", "config.json")
        for index in Record.read_if_there(folder / name).ids("eos_token_id")
    ]
    found = [tokens[index] for index in ids if index < len(tokens) and tokens[index]]
    return list(dict.fromkeys([*found, eos] if eos else found))


def describe_hf(source: Source, *, family: str | None, context_length: int | None) -> Card:
    """The card of a Hugging Face or GPTQ folder: its own, or one made from its files.

    `family` and `context_length` (tokens), where given, override what the folder says. Raises ModelError
    naming the file or flag.
    """
    card = read_card(source.path) or _made_card(source)
    return adjusted(card, family=family, context_length=context_length)


def _made_card(source: Source) -> Card:
    folder = source.path
    config = Record.read(folder / "config.json")
    facts = hf_facts(folder)
    model_type = config.text("model_type")
    bigcode = model_type == "gpt_bigcode"
    origin: dict[str, Any] = {"kind": str(source.kind), "file": folder.name}
    if source.digest:
        origin["sha256"] = source.digest
    if source.origin:
        origin["origin"] = source.origin
    return Card(
        name=source.name,
        architecture="starcoder" if bigcode else model_type,
        family=source.family,
        context_length=config.count("n_positions" if bigcode else "max_position_embeddings"),
        quantization=_weight_type(source, config),
        licence=source.licence,
        source=origin,
        size_bytes=sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        bos_token=facts.bos_token,
        add_bos=facts.add_bos,
        end_tokens=facts.end_tokens,
        chat_template=facts.chat_template,
    )


def _weight_type(source: Source, config: Record) -> str:
    if source.kind is not Kind.GPTQ:
        # transformers 5 writes dtype, older ones torch_dtype.
        return config.text("dtype") or config.text("torch_dtype") or "float32"
    record = config.record("quantization_config")
    if not record.values:
        record = Record.read_if_there(source.path / "quantize_config.json")
    return f"gptq-{record.count('bits')}bit"
