"""JSON of other people's model folders: a value of the wrong type or size is named with its file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record


def record(tmp_path: Path, text: str) -> Record:
    path = tmp_path / "config.json"
    path.write_text(text, "utf-8")
    return Record.read(path)


@pytest.mark.parametrize(
    "value", [str(10**400), f"-{10**400}", "1e400", "1e39", "NaN", "-Infinity", '"1"', "true"]
)
def test_a_number_is_finite_in_float32(tmp_path: Path, value: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json: theta is .*; it should be a finite number"):
        record(tmp_path, f'{{"theta": {value}}}').number("theta", 1.0)


def test_the_numbers_of_real_models_are_read(tmp_path: Path) -> None:
    numbers = record(tmp_path, '{"theta": 100000000000, "epsilon": 1e-6, "scale": -2, "none": null}')
    assert numbers.number("theta", 0) == 1e11
    assert numbers.number("epsilon", 0) == 1e-6
    assert numbers.number("scale", 0) == -2
    assert numbers.number("none", 7) == numbers.number("absent", 7) == 7


@pytest.mark.parametrize("value", ["0", "-1", str(2**31), str(10**400), "2.0", "true", '"8"', "null"])
def test_a_count_fits_into_32_bits(tmp_path: Path, value: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json: size is .*from 1 to 2,147,483,647"):
        record(tmp_path, f'{{"size": {value}}}').count("size")


def test_a_count_has_the_limit_that_is_asked_for(tmp_path: Path) -> None:
    sizes = record(tmp_path, '{"heads": 16}')
    assert sizes.count("heads", most=16) == 16
    with pytest.raises(ModelError, match="heads is 16; it should be a whole number from 1 to 15"):
        sizes.count("heads", most=15)


@pytest.mark.parametrize("value", [r'"\ud83d"', "1", "[]"])
def test_a_text_can_be_written(tmp_path: Path, value: str) -> None:
    with pytest.raises(ModelError, match=r"config\.json: name is .*; it should be a string"):
        record(tmp_path, f'{{"name": {value}}}').text("name")
    assert record(tmp_path, r'{"name": "\ud83d\ude00"}').text("name") == "\U0001f600"


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        record(tmp_path, json.dumps({"name": ["x" * 100_000]})).text("name")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"a": "\xff"}', b'{"a":' * 100_000, b"1" * 5000])
def test_a_file_that_holds_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"config\.json: "):
        Record.read(path)


def test_an_absent_file_is_missing_or_empty_as_asked(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"config\.json: missing"):
        Record.read(tmp_path / "config.json")
    assert Record.read_if_there(tmp_path / "config.json").values == {}
