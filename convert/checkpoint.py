"""A source opened for conversion: its tensors, and what its tokenizer says of itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tokenizers import Tokenizer as FastTokenizer

from convert.adapter_source import AdapterSource
from convert.gguf_metadata import GgufMetadata
from convert.gguf_source import GgufSource
from convert.gptq_source import GptqSource
from convert.hf_view import under_hf_names
from convert.safetensors_source import SafetensorsSource
from convert.sources import TensorSource
from convert.tokenizer import read_tokenizer_settings, write_tokenizer
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import read_chat_template
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


@dataclass(frozen=True)
class Checkpoint:
    tensors: TensorSource
    tokenizer: TokenizerFacts
    write_tokenizer: Callable[[Path], None]  # puts tokenizer.json into a folder


def open_checkpoint(source: Source) -> Checkpoint:
    """Open what `source` names: a GGUF file, a Hugging Face folder, or a PEFT adapter with its base.

    The caller closes `tensors`. Raises ModelError on anything missing, damaged or of an unknown kind.
    """
    if source.kind is Kind.GGUF:
        tensors = GgufSource(source.path)
        return Checkpoint(tensors, _gguf_facts(tensors.metadata), partial(write_tokenizer, tensors.metadata))
    if source.kind is Kind.HF:
        facts = hf_facts(source.path)
        return Checkpoint(SafetensorsSource(source.path), facts, partial(_copy_tokenizer, source.path))
    if source.kind is Kind.GPTQ:
        facts = hf_facts(source.path)
        return Checkpoint(GptqSource(source.path), facts, partial(_copy_tokenizer, source.path))
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
        # An adapter that was trained with a tokenizer of its own keeps that beside it.
        if not (source.path / "tokenizer.json").is_file():
            return replace(below, tensors=tensors)
        facts = hf_facts(source.path, base.path if base.kind is Kind.HF else None)
        return Checkpoint(tensors, facts, partial(_copy_tokenizer, source.path))
    except ModelError:
        below.tensors.close()
        raise


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
