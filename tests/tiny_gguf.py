"""Small GGUF files with a vocabulary, written with the gguf package, for tests of what is read from them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from gguf import GGUFWriter
from tokenizers import models, pre_tokenizers, trainers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def write_gguf(path: Path, fields: Mapping[str, Any], architecture: str = "qwen2") -> Path:
    """A GGUF file with these `tokenizer.` fields and one small tensor."""
    writer = GGUFWriter(path, architecture)
    for key, value in fields.items():
        name = f"tokenizer.{key}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, str):
            writer.add_string(name, value)
        else:
            writer.add_array(name, value)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def byte_level_fields(pre: str, specials: list[str], text: str, merges: int = 300) -> dict[str, Any]:
    """A byte-level vocabulary trained on a text, special tokens last, then two unused entries."""
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        [text],
        trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=alphabet, show_progress=False),
    )
    vocabulary = sorted(trained.get_vocab(), key=trained.token_to_id)
    state = json.loads(trained.to_str())["model"]
    tokens = [*vocabulary, *specials, "[PAD0]", "[PAD1]"]
    types = [NORMAL] * len(vocabulary) + [CONTROL] * len(specials) + [UNUSED] * 2
    return {
        "ggml.model": "gpt2",
        "ggml.pre": pre,
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.merges": [" ".join(pair) for pair in state["merges"]],
        "ggml.eos_token_id": len(vocabulary),
        "ggml.add_bos_token": False,
    }


def sentencepiece_fields(words: list[str]) -> dict[str, Any]:
    """A SentencePiece-shaped vocabulary: unk, bos, eos, all bytes, characters, and every prefix of each word.

    A longer piece has a better score, so that merges lead to whole words.
    """
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = sorted({character for word in words for character in word})
    pieces = sorted(
        {word[:end] for word in words for end in range(2, len(word) + 1)}, key=lambda p: (-len(p), p)
    )
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces, *characters]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(pieces) + len(characters))
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces) + len(characters))]
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.tokens": tokens,
        "ggml.token_type": types,
        "ggml.scores": scores,
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
        "ggml.unknown_token_id": 0,
    }
