"""Ids equal to the source tokenizer's, on nasty and random text.

transformers' own reading of a GGUF tokenizer is the reference, except where it is wrong:
- Qwen2: it leaves out the vendor's NFC normalization (its own Qwen2Tokenizer class has it);
- SmolLM: it leaves out the vendor's splitting of numbers into digits (llama.cpp has it), which shows where
  whitespace comes before a digit.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from nasty import TEXTS, texts
from tiny_gguf import CONTROL, NORMAL, byte_level_fields, sentencepiece_fields, write_gguf

from convert.gguf_metadata import read_metadata
from convert.tokenizer import SPLITTINGS, read_tokenizer_settings, write_tokenizer
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.tokens import Tokenizer

SAMPLE = Path(__file__).read_text("utf-8")


@dataclass(frozen=True)
class Pair:
    ours: Tokenizer
    reference: Callable[[str], list[int]]  # transformers, corrected as the docstring above says
    raw: Callable[[str], list[int]]  # transformers as it is
    raw_is_right: Callable[[str], bool]


def no_number_after_space(text: str) -> bool:
    return not any(
        character.isnumeric() and (not character.isascii() or text[max(index - 2, 0) : index].isspace())
        for index, character in enumerate(text)
    )


@pytest.fixture(scope="session", params=["smollm2", pytest.param("qwen", marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    path = request.getfixturevalue(f"{request.param}_source").path
    folder = tmp_path_factory.mktemp(request.param)
    write_tokenizer(read_metadata(path), folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's deprecations
        from transformers import AutoTokenizer

        theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    backend = tokenizers.Tokenizer.from_str(theirs.backend_tokenizer.to_str())
    if request.param == "qwen":
        backend.normalizer = tokenizers.normalizers.NFC()
    else:
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
            [
                tokenizers.pre_tokenizers.Digits(individual_digits=True),
                tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    return Pair(
        ours=Tokenizer.load(folder),
        reference=lambda text: list(backend.encode(text, add_special_tokens=False).ids),
        raw=lambda text: list(theirs.encode(text, add_special_tokens=False)),
        raw_is_right=no_number_after_space
        if request.param == "smollm2"
        else lambda text: unicodedata.is_normalized("NFC", text),
    )


def check(pair: Pair, text: str) -> None:
    ids = pair.ours.encode(text, specials=True)
    assert ids == pair.reference(text)
    if pair.raw_is_right(text):
        assert ids == pair.raw(text)


@pytest.mark.parametrize("text", TEXTS)
def test_same_ids_as_transformers_on_nasty_text(pair: Pair, text: str) -> None:
    check(pair, text)


@given(text=texts)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_same_ids_as_transformers_on_random_text(pair: Pair, text: str) -> None:
    check(pair, text)


def tiny(folder: Path, fields: dict[str, Any]) -> Tokenizer:
    write_tokenizer(read_metadata(write_gguf(folder / "tiny.gguf", fields)), folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def small_qwen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    fields = byte_level_fields("qwen2", ["<|endoftext|>", "<|im_start|>"], SAMPLE)
    from transformers import Qwen2Tokenizer

    tokens = fields["ggml.tokens"][:-2]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ")) for merge in fields["ggml.merges"]]
    reference = Qwen2Tokenizer(vocab=vocabulary, merges=merges, additional_special_tokens=["<|im_start|>"])
    return tiny(tmp_path_factory.mktemp("small"), fields), reference


@given(text=texts)
@settings(max_examples=400, deadline=None)
def test_qwen_splitting_equals_transformers_own_class(small_qwen: tuple[Tokenizer, Any], text: str) -> None:
    ours, reference = small_qwen
    assert ours.encode(text, specials=True) == reference.encode(text, add_special_tokens=False)


PIECES = [
    ("gpt-2", "a  12's\n", ["a", "Ġ", "Ġ12", "'s", "Ċ"]),
    ("starcoder", "a  12's\n", ["a", "ĠĠ", "1", "2", "'s", "Ċ"]),
    ("smollm", "x=10", ["x", "=", "1", "0"]),
    ("refact", "x=10", ["x", "=", "1", "0"]),
    ("qwen2", "IT'S 12\n\n  b", ["IT", "'S", "Ġ", "1", "2", "ĊĊ", "Ġ", "Ġb"]),
    ("llama-bpe", "n12345", ["n", "123", "45"]),
    ("deepseek-coder", "ab 12, c\n\n  d", ["ab", "Ġ", "1", "2", ",", "Ġc", "Ċ", "Ċ", "Ġ", "Ġd"]),
]


@pytest.mark.parametrize(("pre", "text", "pieces"), PIECES)
def test_splits(tmp_path: Path, pre: str, text: str, pieces: list[str]) -> None:
    tiny(tmp_path, byte_level_fields(pre, [], SAMPLE, merges=0))
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.pre_tokenizer is not None
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(text)] == pieces


def test_llama_takes_a_whole_piece_that_no_merge_leads_to(tmp_path: Path) -> None:
    for pre, whole in (("llama-bpe", True), ("qwen2", False)):
        fields = byte_level_fields(pre, [], SAMPLE, merges=0)
        fields["ggml.tokens"][-2:] = ["qqq", "[PAD0]"]
        fields["ggml.token_type"][-2] = NORMAL
        tokenizer = tiny(tmp_path, fields)
        assert (tokenizer.encode("qqq", specials=False) == [tokenizer.token_id("qqq")]) is whole


def test_every_known_splitting_keeps_every_byte(tmp_path: Path) -> None:
    for pre in SPLITTINGS:
        tokenizer = tiny(tmp_path, byte_level_fields(pre, ["<|x|>"], SAMPLE))
        for text in TEXTS:
            expected = unicodedata.normalize("NFC", text) if SPLITTINGS[pre].nfc else text
            assert tokenizer.decode(tokenizer.encode(text, specials=False)) == expected


def test_unused_entries_at_the_end_are_left_out_of_the_tokenizer_but_not_of_the_token_list(
    tmp_path: Path,
) -> None:
    fields = byte_level_fields("qwen2", ["<|end|>"], SAMPLE)
    tokenizer = tiny(tmp_path, fields)
    assert tokenizer.size == len(fields["ggml.tokens"]) - 2
    assert read_tokenizer_settings(read_metadata(tmp_path / "tiny.gguf")).tokens == fields["ggml.tokens"]


WORDS = ["▁the", "▁thesis", "▁is", "▁a", "▁def", "▁return", "ing", "▁▁", "▁▁▁▁", "hello", "▁hello", "éa"]


def naive_sentencepiece(text: str, tokens: list[str], scores: list[float], prefix: bool) -> list[int]:
    """SentencePiece's BPE by its definition: join the neighbours whose result scores best, leftmost first."""
    if not text:
        return []
    index = {token: number for number, token in enumerate(tokens)}
    parts = list((" " if prefix else "").join(["", text]).replace(" ", "▁"))
    while True:
        best = max(
            (
                (scores[index[left + right]], -at)
                for at, (left, right) in enumerate(pairwise(parts))
                if left + right in index
            ),
            default=None,
        )
        if best is None:
            break
        at = -best[1]
        parts[at : at + 2] = ["".join(parts[at : at + 2])]
    return [
        number
        for part in parts
        for number in (
            [index[part]] if part in index else [index[f"<0x{byte:02X}>"] for byte in part.encode()]
        )
    ]


@pytest.mark.parametrize("prefix", [True, False])
@pytest.mark.parametrize(
    "text", [*TEXTS, "the thesis is a hello", " hello", "    return a", "hellohello  theing", "éaéa"]
)
def test_sentencepiece_by_its_definition(tmp_path: Path, text: str, prefix: bool) -> None:
    fields = {**sentencepiece_fields(WORDS), "ggml.add_space_prefix": prefix}
    ids = tiny(tmp_path, fields).encode(text, specials=False)
    assert ids == naive_sentencepiece(text, fields["ggml.tokens"], fields["ggml.scores"], prefix)


def test_settings(tmp_path: Path) -> None:
    fields = byte_level_fields("qwen2", ["<|im_end|>", "<|endoftext|>", "<|other|>"], SAMPLE)
    fields["chat_template"] = "{{ messages }}"
    fields["ggml.bos_token_id"] = fields["ggml.eos_token_id"] + 1
    found = read_tokenizer_settings(read_metadata(write_gguf(tmp_path / "a.gguf", fields)))
    assert (found.bos_token, found.eos_token, found.pad_token) == ("<|endoftext|>", "<|im_end|>", "")
    assert found.end_tokens == ["<|im_end|>", "<|endoftext|>"]
    assert found.chat_template == "{{ messages }}"
    assert not found.add_bos
    llama = read_tokenizer_settings(
        read_metadata(write_gguf(tmp_path / "b.gguf", sentencepiece_fields(WORDS)))
    )
    assert llama.add_bos
    assert llama.end_tokens == ["</s>"]


def test_repeated_tokens_become_unique(tmp_path: Path) -> None:
    fields = byte_level_fields("qwen2", ["<|a|>", "<|b|>"], SAMPLE)
    fields["ggml.tokens"][-1] = fields["ggml.tokens"][-2]
    found = read_tokenizer_settings(read_metadata(write_gguf(tmp_path / "a.gguf", fields)))
    assert len(set(found.tokens)) == len(found.tokens) == len(fields["ggml.tokens"])
    assert found.tokens[:-1] == fields["ggml.tokens"][:-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ggml.pre": "nonesuch"}, "nonesuch.*known.*qwen2"),
        ({"ggml.model": "t5"}, "'t5'"),
        ({"ggml.merges": ["a"]}, "merge 0"),
        ({"ggml.merges": ["zz qq"]}, "do not fit"),
        ({"ggml.token_type": [CONTROL]}, "token types"),
        ({"ggml.eos_token_id": 10**6}, "eos_token_id is 1000000"),
    ],
)
def test_damaged_or_unknown_vocabularies_are_named(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    fields = {**byte_level_fields("qwen2", ["<|a|>"], SAMPLE), **change}
    metadata = read_metadata(write_gguf(tmp_path / "a.gguf", fields))
    with pytest.raises(ModelError, match=message):
        write_tokenizer(metadata, tmp_path)
        read_tokenizer_settings(metadata)


def test_a_file_without_vocabulary_is_refused(tmp_path: Path) -> None:
    metadata = read_metadata(write_gguf(tmp_path / "a.gguf", {}))
    with pytest.raises(ModelError, match="no vocabulary"):
        read_tokenizer_settings(metadata)
