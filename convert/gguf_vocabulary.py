"""tokenizer.json -> the `tokenizer.ggml.*` fields of a GGUF file: the way back of convert.tokenizer.

A byte-level BPE is written with the name of its splitting (`tokenizer.ggml.pre`), which has to be one that
llama.cpp knows: the tokenizer's own stages are held against those of convert.tokenizer. A SentencePiece BPE
is written with scores; tokenizer.json has none, so that they are made from the order of its tokens, which
must lead to the same merges. Whatever can't be written exactly is refused.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from convert.checkpoint import Checkpoint, TokenizerFacts
from convert.gguf_metadata import GgufMetadata
from convert.gguf_source import GgufSource
from convert.tokenizer import SPLITTINGS, _merges_from_scores, read_tokenizer_settings, write_tokenizer
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record
from rrtf_serve.models.tokens import Tokenizer

Fields = dict[str, Any]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")
# Text on which a wrong splitting, normalisation or merge shows.
_PROBES = (
    "def f(x):\n\treturn x  # 12345 it's IT'S\r\n\n\n    y = [1.5e-3,  'é', \"\u00e9e\u0301\"]\n",
    "x=10+20;;  \t\t a\u00a0b  \u4f60\u597d\u4e16\u754c 안녕 \U0001f600\u200d\U0001f600 ½²³ \u0660\u0661",
    " leading", "  two", "\n", "trailing ", "we'll've", "ABCdefGHI_snake_case camelCase __init__",
)  # fmt: skip


def tokenizer_fields(checkpoint: Checkpoint, rows: int, path: Path) -> Fields:
    """The `tokenizer.` fields for a model of `rows` embedding rows; `path` is named in errors.

    Raises ModelError on a tokenizer that GGUF can't hold exactly.
    """
    source = checkpoint.tensors
    if isinstance(source, GgufSource):
        return {key: value for key, value in source.metadata.fields.items() if key.startswith("tokenizer.")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint.write_tokenizer(folder)
        fields = _fields(Record.read(folder / "tokenizer.json"), checkpoint, rows, path)
        _check(fields, Tokenizer.load(folder), checkpoint.tokenizer, path)
    return fields


def _fields(record: Record, checkpoint: Checkpoint, rows: int, path: Path) -> Fields:
    facts = checkpoint.tokenizer
    model = record.record("model")
    if model.text("type", "BPE") != "BPE":
        raise _refused(path, f"its tokenizer is {model.text('type')}, not BPE")
    if rows < len(facts.tokens):
        raise ModelError(
            f"{path}: the tokenizer has {len(facts.tokens):,} tokens, the embedding {rows:,} rows; "
            "the tokenizer belongs to another model"
        )
    tokens = [token or f"[PAD{index}]" for index, token in enumerate(facts.tokens)]
    tokens += [f"[PAD{index}]" for index in range(len(tokens), rows)]
    merges = [
        tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in _list(model)
    ]
    sentencepiece = model.flag("byte_fallback", False)
    types = _types(record, facts, tokens, sentencepiece)
    fields: Fields = {
        "tokenizer.ggml.model": "llama" if sentencepiece else "gpt2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
    }
    if sentencepiece:
        fields |= _scores(tokens, types, merges, path)
        fields["tokenizer.ggml.pre"] = "default"
        fields["tokenizer.ggml.add_space_prefix"] = _adds_space(record)
    else:
        fields["tokenizer.ggml.pre"] = _splitting(record, source_architecture(checkpoint), path)
        fields["tokenizer.ggml.merges"] = [" ".join(merge) for merge in merges]
    return fields | _special(facts)


def source_architecture(checkpoint: Checkpoint) -> str:
    return checkpoint.tensors.config.architecture


def _list(model: Record) -> list[Any]:
    merges = model.values.get("merges", [])
    return merges if isinstance(merges, list) else []


def _refused(path: Path, what: str) -> ModelError:
    return ModelError(
        f"{path}: {what}; GGUF can't hold it exactly. Use llama.cpp's own converter, which knows it by name."
    )


def _types(record: Record, facts: TokenizerFacts, tokens: list[str], sentencepiece: bool) -> list[int]:
    types = [_NORMAL if token else _UNUSED for token in facts.tokens]
    types += [_UNUSED] * (len(tokens) - len(types))
    if sentencepiece:
        types = [
            _BYTE if _BYTE_TOKEN.fullmatch(token) else kind for token, kind in zip(tokens, types, strict=True)
        ]
    added = record.values.get("added_tokens")
    for entry in added if isinstance(added, list) else []:
        match entry:
            case {"id": int(index), "special": bool(special)} if 0 <= index < len(types):
                types[index] = _CONTROL if special else _USER_DEFINED
    if sentencepiece and facts.unk_token in facts.tokens:
        types[facts.tokens.index(facts.unk_token)] = _UNKNOWN
    return types


def _special(facts: TokenizerFacts) -> Fields:
    fields: Fields = {"tokenizer.ggml.add_bos_token": facts.add_bos}
    named = {
        "bos": facts.bos_token,
        "eos": facts.eos_token,
        "unknown": facts.unk_token,
        "padding": facts.pad_token,
        # A second end that the model's own settings name; llama.cpp ends an answer at either.
        "eot": next((token for token in facts.end_tokens if token != facts.eos_token), ""),
    }
    for name, token in named.items():
        if token and token in facts.tokens:
            fields[f"tokenizer.ggml.{name}_token_id"] = facts.tokens.index(token)
    if facts.chat_template:
        fields["tokenizer.chat_template"] = facts.chat_template
    return fields


def _splitting(record: Record, architecture: str, path: Path) -> str:
    """The name of the tokenizer's splitting. Several names may stand for one; the family's own is taken."""
    found = _signature(record)
    names = [
        name
        for name, each in SPLITTINGS.items()
        if found
        == (
            each.nfc,
            each.ignore_merges,
            (*each.stages, "bytes" if each.own_pattern else "gpt2 bytes"),
        )
    ]
    if not names:
        raise _refused(path, "its tokenizer splits text in a way of its own")
    return "smollm" if architecture == "llama" and "smollm" in names else names[0]


def _signature(record: Record) -> tuple[bool, bool, tuple[str, ...]] | None:
    """(NFC, ignore_merges, stages) as in convert.tokenizer._Splitting; None for anything else."""
    normalizer = record.record("normalizer").values
    nfc = normalizer.get("type") == "NFC"
    if normalizer and not nfc and normalizer != {"type": "Sequence", "normalizers": []}:
        return None
    pre = record.record("pre_tokenizer").values
    parts = pre.get("pretokenizers", [pre]) if pre.get("type") == "Sequence" else [pre]
    stages = []
    for part in parts:
        match part:
            case {"type": "Digits", "individual_digits": True}:
                stages.append("digits")
            case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
                stages.append(regex)
            case {"type": "ByteLevel", "add_prefix_space": False}:
                stages.append("gpt2 bytes" if part.get("use_regex", True) else "bytes")
            case _:
                return None
    return nfc, record.record("model").flag("ignore_merges", False), tuple(stages)


def _adds_space(record: Record) -> bool:
    """Whether the tokenizer puts a space before a text's first word."""
    text = json.dumps([record.values.get("normalizer"), record.values.get("pre_tokenizer")])
    never = '"prepend_scheme": "never"' in text
    return '"Prepend"' in text or ('"Metaspace"' in text and not never)


def _scores(tokens: list[str], types: list[int], merges: list[tuple[str, ...]], path: Path) -> Fields:
    """Scores that lead to `merges`: SentencePiece's BPE numbers its pieces in the order of their merges."""
    scores = [-float(index) if kind == _NORMAL else 0.0 for index, kind in enumerate(types)]
    fields: Fields = {"tokenizer.ggml.scores": scores}
    metadata = GgufMetadata(path, 3, fields, [], 0, 0)
    derived = _merges_from_scores(metadata, {token: index for index, token in enumerate(tokens)}, types)
    same = {tuple(merge) for merge in merges} == set(derived)
    results = [list(dict.fromkeys("".join(merge) for merge in each)) for each in (merges, derived)]
    if not same or results[0] != results[1]:
        raise _refused(path, "its SentencePiece merges do not follow the order of its tokens")
    return fields


def _check(fields: Fields, tokenizer: Tokenizer, facts: TokenizerFacts, path: Path) -> None:
    """Read the fields back and hold the tokenizer made of them against the source's."""
    metadata = GgufMetadata(path, 3, fields, [], 0, 0)
    settings = read_tokenizer_settings(metadata)
    with tempfile.TemporaryDirectory() as name:
        write_tokenizer(metadata, Path(name))
        again = Tokenizer.load(Path(name))
    specials = "".join(facts.tokens[index] for index in sorted(tokenizer.special_ids)[:50])
    for probe in (*_PROBES, specials, "".join(_PROBES) + specials):
        if tokenizer.encode(probe, specials=True) != again.encode(probe, specials=True):
            raise _refused(path, f"its tokenizer gives other tokens for {probe[:40]!r} when read back")
    told = (
        settings.bos_token,
        settings.eos_token,
        settings.pad_token,
        settings.add_bos,
        settings.chat_template,
    )
    if told != (facts.bos_token, facts.eos_token, facts.pad_token, facts.add_bos, facts.chat_template):
        raise _refused(path, "its special tokens are not what they were when read back")
