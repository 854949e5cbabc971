from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest
from gguf import GGUFReader
from tiny_gguf import byte_level_fields, write_gguf

from convert.gguf_metadata import read_metadata
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Source


def tiny(folder: Path) -> Path:
    return write_gguf(
        folder / "tiny.gguf", byte_level_fields("qwen2", ["<|end|>"], "def f(x): return x\n" * 20)
    )


def assert_same_as_gguf_package(path: Path) -> None:
    ours, theirs = read_metadata(path), GGUFReader(path)
    assert set(ours.fields) == {key for key in theirs.fields if not key.startswith("GGUF.")}
    for key, value in ours.fields.items():
        assert value == theirs.fields[key].contents(), key
    assert ours.data_offset == theirs.data_offset
    assert [(t.name, t.shape, t.ggml_type, ours.data_offset + t.offset) for t in ours.tensors] == [
        (t.name, tuple(int(n) for n in reversed(t.shape)), int(t.tensor_type), int(t.data_offset))
        for t in theirs.tensors
    ]


def test_reads_what_the_gguf_package_reads(tmp_path: Path) -> None:
    assert_same_as_gguf_package(tiny(tmp_path))


def test_reads_a_real_file(smollm2_source: Source) -> None:
    assert_same_as_gguf_package(smollm2_source.path)


def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    data = tiny(tmp_path).read_bytes()
    end = read_metadata(tmp_path / "tiny.gguf").data_offset
    cut = tmp_path / "cut.gguf"
    for length in [*range(0, 120), *range(120, end, 97), end]:
        cut.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"cut\.gguf"):
            read_metadata(cut)


def test_flipped_bytes_are_read_or_refused_but_nothing_else(tmp_path: Path) -> None:
    data = tiny(tmp_path).read_bytes()
    end = read_metadata(tmp_path / "tiny.gguf").data_offset
    dice = random.Random(1)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[dice.randrange(4, end)] = dice.randrange(256)
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damaged)
        try:
            read_metadata(path)
        except ModelError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"GGML" + bytes(20), "not a GGUF file"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60), "does not fit"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 8, 1 << 40), "elements"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 77), "unknown value type"),
        (
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + (struct.pack("<Q", 1) + b"k" + struct.pack("<I", 9)) * 9,
            "k",
        ),
    ],
)
def test_hostile_heads(tmp_path: Path, head: bytes, message: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(head)
    with pytest.raises(ModelError, match=message):
        read_metadata(path)


def test_absent_and_empty_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.gguf"):
        read_metadata(tmp_path / "none.gguf")
    (tmp_path / "empty.gguf").touch()
    with pytest.raises(ModelError, match="empty"):
        read_metadata(tmp_path / "empty.gguf")


def test_a_field_of_another_type_is_named(tmp_path: Path) -> None:
    metadata = read_metadata(tiny(tmp_path))
    for read, key in (
        (metadata.text, "tokenizer.ggml.eos_token_id"),
        (metadata.integer, "tokenizer.ggml.model"),
        (metadata.flag, "tokenizer.ggml.eos_token_id"),
        (metadata.strings, "tokenizer.ggml.token_type"),
        (metadata.numbers, "tokenizer.ggml.tokens"),
        (metadata.number, "tokenizer.ggml.add_bos_token"),
    ):
        with pytest.raises(ModelError, match=key):
            read(key)
