"""Servable folders: cards come back as they were written, and damaged ones are named with their key."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card, describe, read_card, write_card

CARD = Card(
    name="tiny",
    architecture="llama",
    family="plain",
    context_length=64,
    quantization="int8",
    source={"kind": "gguf", "base": {"kind": "huggingface"}},
    tools={"numpy": "2"},
    end_tokens=["</s>"],
    parity={"rows": 3},
)


def test_a_card_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_card(tmp_path) is None
    for card in (CARD, replace(CARD, parity=None)):
        write_card(card, tmp_path)
        assert read_card(tmp_path) == card


def changed_card(folder: Path, **changes: Any) -> None:
    write_card(CARD, folder)
    path = folder / "rrtf.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_what_a_later_version_adds_is_left_out(tmp_path: Path) -> None:
    changed_card(tmp_path, colour="blue")
    assert read_card(tmp_path) == CARD


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("family", ["plain"]),
        ("licence", "\ud800"),
        ("context_length", "8192"),
        ("context_length", 8192.0),
        ("context_length", True),
        ("add_bos", 1),
        ("end_tokens", None),
        ("end_tokens", "</s>"),
        ("end_tokens", ["</s>", 2]),
        ("source", []),
        ("tools", {"numpy": 2}),
        ("parity", "good"),
        ("chat_template", {"default": ""}),
        ("format", None),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    changed_card(tmp_path, **{key: value})
    with pytest.raises(ModelError, match=rf"rrtf\.json: {key} is .*; it should be "):
        read_card(tmp_path)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "rrtf.json").write_text('{"name": "tiny", "architecture": "llama"}', "utf-8")
    with pytest.raises(ModelError, match=r"rrtf\.json: family is missing"):
        read_card(tmp_path)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff{}", b'{"a":' * 100_000])
def test_a_card_that_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rrtf.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"rrtf\.json: "):
        read_card(tmp_path)


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder as CTranslate2's own converter leaves it, with the tokenizer's files beside."""
    (tmp_path / "model.bin").write_bytes(b"\0" * 10)
    (tmp_path / "config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}', "utf-8")
    (tmp_path / "tokenizer_config.json").write_text(
        '{"model_max_length": 512, "add_bos_token": true, "chat_template": "settings"}', "utf-8"
    )
    return tmp_path


def described(folder: Path) -> Card:
    return describe(folder, name="m", family=None, context_length=None)


def test_a_folder_without_a_card_is_described_from_its_other_files(foreign: Path) -> None:
    card = described(foreign)
    assert (card.context_length, card.size_bytes) == (512, 10)
    assert (card.bos_token, card.add_bos, card.end_tokens) == ("<s>", True, ["</s>"])
    assert card.chat_template == "settings"
    (foreign / "chat_template.jinja").write_text("file ä", "utf-8")
    assert described(foreign).chat_template == "file ä"


def test_named_templates_give_the_default_one(foreign: Path) -> None:
    templates = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    settings = {"model_max_length": 512, "chat_template": templates}
    (foreign / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    assert described(foreign).chat_template == "yes"


def test_a_template_that_is_not_utf8_is_named(foreign: Path) -> None:
    (foreign / "chat_template.jinja").write_bytes(b"\xff\xfe{{")
    with pytest.raises(ModelError, match=r"chat_template\.jinja: not readable as UTF-8"):
        described(foreign)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "bos_token", 1),
        ("config.json", "quantization_type", []),
        ("tokenizer_config.json", "add_bos_token", "yes"),
        ("tokenizer_config.json", "chat_template", 5),
    ],
)
def test_a_foreign_value_of_another_type_is_named(foreign: Path, file: str, key: str, value: object) -> None:
    record = json.loads((foreign / file).read_text("utf-8")) | {key: value}
    (foreign / file).write_text(json.dumps(record), "utf-8")
    with pytest.raises(ModelError, match=f"{file}: {key} is "):
        described(foreign)


def test_huge_lengths_mean_unknown(foreign: Path) -> None:
    for length in ("1e30", str(10**30), "1e400"):
        (foreign / "tokenizer_config.json").write_text(f'{{"model_max_length": {length}}}', "utf-8")
        with pytest.raises(ModelError, match="--context-length TOKENS"):
            described(foreign)
        assert describe(foreign, name="m", family=None, context_length=99).context_length == 99


def test_a_card_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_card(CARD, tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_card(replace(CARD, parity={"other": 1}), tmp_path)
    assert read_card(tmp_path) == CARD
    assert [path.name for path in tmp_path.iterdir()] == ["rrtf.json"]
