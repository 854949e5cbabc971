"""`rrtf-convert card`: shown where there is one, made from the model's own files where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import write_gguf, write_hf

from convert.cli import main
from convert.ct2 import convert
from rrtf_serve.models.folder import read_card
from rrtf_serve.models.source import Kind, Source


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "tiny-llama", "llama", dtype="bfloat16")


@pytest.fixture
def converted(llama: Path, tmp_path: Path) -> Path:
    return convert(Source(llama, Kind.HF, "tiny-llama", digest="d1"), tmp_path / "ct2", progress=False)


def card_of(capsys: pytest.CaptureFixture[str], *command: str) -> dict[str, object]:
    assert main(["card", *command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert isinstance(record["card"], dict)
    return record["card"] | {"kind": record["kind"]}


def test_a_card_is_shown(converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (converted / "rrtf.json").read_bytes()
    assert main(["card", str(converted)]) == 0
    said = capsys.readouterr().out
    assert "quantization    int8" in said and "sha256 d1" in said
    assert card_of(capsys, str(converted))["kind"] == "ctranslate2"
    assert (converted / "rrtf.json").read_bytes() == before


@pytest.mark.parametrize("damage", [None, "{", '{"name": 3}'])
def test_a_folder_of_another_converter_gets_one(
    converted: Path, damage: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = converted / "rrtf.json"
    path.unlink()
    if damage is not None:
        path.write_text(damage, "utf-8")
        assert main(["card", str(converted)]) == 1
        assert "--write makes a new one" in capsys.readouterr().err
    assert main(["card", str(converted), "--write"]) == 1
    assert "give --context-length TOKENS" in capsys.readouterr().err
    card = card_of(capsys, str(converted), "--write", "--context-length", "200", "--family", "smollm2")
    assert (card["context_length"], card["family"], card["end_tokens"]) == (200, "smollm2", ["</s>"])
    written = read_card(converted)
    assert written is not None and written.public() == {k: v for k, v in card.items() if k != "kind"}


def test_what_the_command_line_says_is_kept_with_write(
    converted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", str(converted), "--context-length", "128"]) == 0
    assert "shown, not written" in capsys.readouterr().err
    assert main(["card", str(converted), "--context-length", "128", "--write"]) == 0
    card = read_card(converted)
    assert card is not None and (card.context_length, card.source["sha256"]) == (128, "d1")
    for wrong in (["--family", "gpt"], ["--context-length", "0"]):
        assert main(["card", str(converted), *wrong]) == 1


def test_other_kinds_say_what_they_are(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = card_of(capsys, str(llama))
    assert (card["kind"], card["architecture"], card["quantization"]) == ("huggingface", "llama", "bfloat16")
    assert card["context_length"] == 256
    file = write_gguf(tmp_path / "tiny.gguf", llama)
    card = card_of(capsys, str(file))
    assert (card["kind"], card["quantization"]) == ("gguf", "32.0 bits per weight")
    assert card["size_bytes"] == file.stat().st_size
    assert main(["card", str(file), "--write"]) == 1
    assert "a file can't hold a card" in capsys.readouterr().err
