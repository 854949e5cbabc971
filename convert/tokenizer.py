"""tokenizer.json and the tokenizer's settings out of a GGUF file's metadata, without transformers.

Two kinds of vocabulary are built (`tokenizer.ggml.model`): "gpt2", a byte-level BPE whose pre-tokenizer is
named by `tokenizer.ggml.pre`, and "llama", a SentencePiece BPE whose merges follow from its scores. The field
names are those of https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the split patterns are the
vendors' own, as in their tokenizer.json files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from convert.gguf_metadata import GgufMetadata
from rrtf_serve.models.errors import ModelError

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_SPACE_MARK = "\u2581"

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# CJK ideographs, U+0800 to U+4E00, and Hangul syllables to U+D7FF
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

# Tokens that end generation wherever they are control tokens, whether or not the file names them as its end.
_END_NAMES = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|end|>",
    "<|EOT|>",
    "<|eot_id|>",
    "</s>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


@dataclass(frozen=True)
class _Splitting:
    """How a byte-level vocabulary cuts text before merging.

    `stages`: regexes, or "digits" for each digit alone. GPT-2's pattern comes last unless `own_pattern`.
    `ignore_merges`: a whole piece that is in the vocabulary is taken as it is.
    """

    stages: tuple[str, ...] = ()
    own_pattern: bool = False
    nfc: bool = False
    ignore_merges: bool = False


_DIGITS = _Splitting(("digits",))
_LLAMA_BPE = _Splitting((_LLAMA3,), own_pattern=True, ignore_merges=True)
SPLITTINGS = {
    "gpt-2": _Splitting(),
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "smollm": _DIGITS,
    "qwen2": _Splitting((_QWEN2,), own_pattern=True, nfc=True),
    "llama-bpe": _LLAMA_BPE,
    "llama3": _LLAMA_BPE,
    "llama-v3": _LLAMA_BPE,
    "deepseek-coder": _Splitting(
        (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_CJK, "digits"), own_pattern=True
    ),
}


@dataclass(frozen=True)
class TokenizerSettings:
    """What a GGUF file says about its tokenizer. Token strings; empty where it says nothing.

    `tokens` lists the vocabulary by id, one string per embedding row, each string once: a repeated one gets
    its id appended. `end_tokens` begins with `eos_token`.
    """

    tokens: list[str]
    bos_token: str
    eos_token: str
    pad_token: str
    add_bos: bool
    chat_template: str
    end_tokens: list[str]


def read_tokenizer_settings(metadata: GgufMetadata) -> TokenizerSettings:
    """Read the settings. Raises ModelError when the file has no vocabulary or names a token outside it."""
    tokens = _unique(_vocabulary(metadata))
    types = _token_types(metadata, len(tokens))

    def named(key: str) -> str:
        token = metadata.integer(f"tokenizer.ggml.{key}_token_id")
        if token is None:
            return ""
        if not 0 <= token < len(tokens):
            raise ModelError(
                f"{metadata.path}: tokenizer.ggml.{key}_token_id is {token}, outside the vocabulary"
            )
        return tokens[token]

    ends = [named("eos"), named("eot"), named("eom")]
    ends += [
        token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL and token in _END_NAMES
    ]
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token")
    if add_bos is None:  # files older than the flag: SentencePiece models add it, byte-level ones do not
        add_bos = metadata.text("tokenizer.ggml.model") == "llama"
    return TokenizerSettings(
        tokens=tokens,
        bos_token=named("bos"),
        eos_token=named("eos"),
        pad_token=named("padding"),
        add_bos=add_bos,
        chat_template=metadata.text("tokenizer.chat_template"),
        end_tokens=list(dict.fromkeys(token for token in ends if token)),
    )


def write_tokenizer(metadata: GgufMetadata, folder: Path) -> None:
    """Write folder/tokenizer.json. Raises ModelError on a vocabulary of an unread kind or a damaged one.

    Entries of type "unused" at the end of the vocabulary, which only fill up the embedding, are left out.
    """
    tokens = _unique(_vocabulary(metadata))
    types = _token_types(metadata, len(tokens))
    used = max((index for index, kind in enumerate(types) if kind != _UNUSED), default=-1) + 1
    tokens, types = tokens[:used], types[:used]
    model = metadata.text("tokenizer.ggml.model")
    try:
        if model == "gpt2":
            built = _byte_level(metadata, tokens)
        elif model == "llama":
            built = _sentencepiece(metadata, tokens, types)
        else:
            raise ModelError(
                f"{metadata.path}: tokenizer.ggml.model is {model!r}; 'gpt2' and 'llama' are read. "
                "Convert from the original Hugging Face folder instead."
            )
    except ModelError:
        raise
    except (
        Exception
    ) as error:  # the tokenizers library raises bare Exception on merges outside the vocabulary
        raise ModelError(
            f"{metadata.path}: its vocabulary and merges do not fit together ({error})"
        ) from error
    entries = zip(tokens, types, strict=True)
    built.add_tokens(
        [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in entries
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) and token
        ]
    )
    if built.get_vocab_size() != len(tokens):
        raise ModelError(
            f"{metadata.path}: {len(tokens)} vocabulary entries became {built.get_vocab_size()}; "
            "the file is damaged"
        )
    built.save(str(folder / "tokenizer.json"), pretty=False)


def _vocabulary(metadata: GgufMetadata) -> list[str]:
    tokens = metadata.strings("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError(f"{metadata.path}: no vocabulary in the file (tokenizer.ggml.tokens)")
    return tokens


def _token_types(metadata: GgufMetadata, count: int) -> list[int]:
    types = [int(kind) for kind in metadata.numbers("tokenizer.ggml.token_type")] or [_NORMAL] * count
    if len(types) != count:
        raise ModelError(f"{metadata.path}: {count} tokens but {len(types)} token types; the file is damaged")
    return types


def _unique(tokens: list[str]) -> list[str]:
    if len(set(tokens)) == len(tokens):
        return tokens
    taken: set[str] = set()
    unique = []
    for index, token in enumerate(tokens):
        name = token
        while name in taken:
            name += f"<{index}>"
        taken.add(name)
        unique.append(name)
    return unique


def _merges(metadata: GgufMetadata) -> list[tuple[str, str]]:
    merges = []
    for rank, merge in enumerate(metadata.strings("tokenizer.ggml.merges")):
        left, _, right = merge.partition(" ")
        if not left or not right:
            raise ModelError(
                f"{metadata.path}: merge {rank} is {merge!r}, not two tokens; the file is damaged"
            )
        merges.append((left, right))
    return merges


def _byte_level(metadata: GgufMetadata, tokens: list[str]) -> tokenizers.Tokenizer:
    name = metadata.text("tokenizer.ggml.pre")
    splitting = SPLITTINGS.get(name)
    if splitting is None:
        raise ModelError(
            f"{metadata.path}: tokenizer.ggml.pre is {name!r}, which this version does not know "
            f"(known: {', '.join(sorted(SPLITTINGS))}). "
            "Convert from the original Hugging Face folder instead."
        )
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(metadata)
    built = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=splitting.ignore_merges))
    stages: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Digits(individual_digits=True)
        if stage == "digits"
        else pre_tokenizers.Split(Regex(stage), "isolated")
        for stage in splitting.stages
    ]
    stages.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not splitting.own_pattern))
    built.pre_tokenizer = pre_tokenizers.Sequence(stages)
    if splitting.nfc:
        built.normalizer = normalizers.NFC()
    built.decoder = decoders.ByteLevel()
    return built


def _sentencepiece(metadata: GgufMetadata, tokens: list[str], types: list[int]) -> tokenizers.Tokenizer:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = _merges(metadata) or _merges_from_scores(metadata, vocabulary, types)
    unknown = tokens[types.index(_UNKNOWN)] if _UNKNOWN in types else None
    built = tokenizers.Tokenizer(
        models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    )
    # llama.cpp and the vendors' files put the space before every stretch of text, also after a special token.
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix") is not False
    spaces = normalizers.Replace(" ", _SPACE_MARK)
    built.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE_MARK), spaces] if prefix else [spaces]
    )
    steps = [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    built.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return built


def _merges_from_scores(
    metadata: GgufMetadata, vocabulary: dict[str, int], types: list[int]
) -> list[tuple[str, str]]:
    """SentencePiece joins the pair whose result scores best, so each way to split a token is a merge.

    Ordered by the result's score, best first; equal scores keep the vocabulary's order.
    """
    scores = metadata.numbers("tokenizer.ggml.scores")
    if len(scores) < len(vocabulary):
        raise ModelError(
            f"{metadata.path}: {len(vocabulary)} tokens but {len(scores)} scores; the file is damaged"
        )
    found: list[tuple[float, int, int, int]] = []
    for token, index in vocabulary.items():
        if types[index] != _NORMAL:
            continue
        for cut in range(1, len(token)):
            left, right = vocabulary.get(token[:cut]), vocabulary.get(token[cut:])
            if left is not None and right is not None and types[left] == types[right] == _NORMAL:
                found.append((-scores[index], index, left, right))
    found.sort()
    names = list(vocabulary)
    return [(names[left], names[right]) for _, _, left, right in found]
