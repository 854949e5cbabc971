"""A model's licence goes along through every conversion, and through several of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from test_adapter_source import LORA_TARGETS, write_adapter
from tiny_models import write_hf

from convert.checkpoint import open_checkpoint
from convert.cli import main
from convert.gguf_metadata import read_metadata
from rrtf_serve.models.folder import read_card, write_card
from rrtf_serve.models.source import Kind, Source

LICENCE = "bigcode-openrail-m"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRTF_HOME", str(tmp_path / "home"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Hugging Face folder whose card names a licence."""
    plain, folder = write_hf(tmp_path / "plain", "llama"), tmp_path / "model"
    assert main(["hf", str(plain), "-o", str(folder), "--quiet"]) == 0
    card = read_card(folder)
    assert card is not None and card.licence == ""
    write_card(replace(card, licence=LICENCE), folder)
    return folder


def licence_of(folder: Path) -> str:
    card = read_card(folder)
    assert card is not None
    return card.licence


@pytest.mark.parametrize("command", ["hf", "ct2"])
def test_a_folders_card_gives_it(command: str, model: Path, tmp_path: Path) -> None:
    assert main([command, str(model), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert licence_of(tmp_path / "out") == LICENCE


def test_an_adapter_takes_its_bases(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    write_adapter(model, adapter, LORA_TARGETS, r=2)
    assert main(["merge", str(model), str(adapter), "-o", str(tmp_path / "merged"), "--quiet"]) == 0
    assert main(["ct2", str(tmp_path / "merged"), "-o", str(tmp_path / "int8"), "--quiet"]) == 0
    assert [licence_of(tmp_path / name) for name in ("merged", "int8")] == [LICENCE, LICENCE]


def test_it_goes_through_gguf_and_back(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    assert main(["gguf", str(model), "-o", str(file), "--quiet"]) == 0
    assert read_metadata(file).fields["general.license"] == LICENCE
    assert main(["hf", str(file), "-o", str(tmp_path / "back"), "--quiet"]) == 0
    assert licence_of(tmp_path / "back") == LICENCE


def test_what_the_store_knows_comes_first(model: Path) -> None:
    checkpoint = open_checkpoint(Source(model, Kind.HF, "model", licence="Apache-2.0"))
    checkpoint.tensors.close()
    assert checkpoint.licence == "Apache-2.0"


def test_a_damaged_card_costs_the_licence_only(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "rrtf.json").write_text(json.dumps({"name": 1}), "utf-8")
    assert main(["ct2", str(model), "-o", str(tmp_path / "out"), "--quiet"]) == 0
    assert licence_of(tmp_path / "out") == ""
    assert "the licence is not carried over" in caplog.text
