"""The windows that parity is measured on: disjoint, spread, deterministic, and apart from calibration."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import pytest
from tiny_models import write_tokenizer

from convert.calibration import standard_library_files
from convert.held_out import held_out_windows
from rrtf_serve.models.tokens import Tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


def test_windows_are_of_one_length_and_spread_over_documents(tokenizer: Tokenizer) -> None:
    found = held_out_windows(tokenizer, tokens=1000, length=100, seed=0)
    assert [len(window.ids) for window in found.windows] == [101] * 10
    assert found.documents == 10
    assert found.source.startswith("standard library of CPython 3.")


def test_more_windows_than_documents_take_several_of_each_without_overlap(tokenizer: Tokenizer) -> None:
    count = len(standard_library_files("held-out"))
    found = held_out_windows(tokenizer, tokens=100 * 2 * count, length=100, seed=0)
    assert found.documents == count
    assert len(set(found.windows)) == len(found.windows)


def test_the_text_is_the_held_out_files_and_never_the_calibration_files(tokenizer: Tokenizer) -> None:
    held_out, calibration = (set(standard_library_files(part)) for part in ("held-out", "calibration"))
    assert not held_out & calibration
    folder = Path(sysconfig.get_path("stdlib"))
    assert all(folder in path.parents for path in held_out)
    texts = [tokenizer.decode(tokenizer.encode(path.read_text("utf-8"), specials=False)) for path in held_out]
    for window in held_out_windows(tokenizer, tokens=1000, length=100, seed=3).windows:
        assert any(tokenizer.decode(window.ids) in text for text in texts)


def test_seed_and_sizes_decide_the_digest(tokenizer: Tokenizer) -> None:
    first, again = (held_out_windows(tokenizer, tokens=400, length=100, seed=1) for _ in range(2))
    assert first == again
    others = [
        held_out_windows(tokenizer, tokens=400, length=100, seed=2),
        held_out_windows(tokenizer, tokens=500, length=100, seed=1),
        held_out_windows(tokenizer, tokens=400, length=80, seed=1),
        held_out_windows(tokenizer, tokens=400, length=100, seed=1, first=1),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5


def test_a_first_token_takes_one_place(tokenizer: Tokenizer) -> None:
    found = held_out_windows(tokenizer, tokens=200, length=100, seed=0, first=1)
    assert all(window.ids[0] == 1 and len(window.ids) == 101 for window in found.windows)


@pytest.mark.parametrize(
    ("tokens", "length", "message"),
    [
        (100, 100, "--tokens 100"),
        (10**9, 100, "--tokens 1000000000: the held-out code gives"),
        (100, 1, "--length is 1"),
        (10**7, 10**6, "ask for fewer"),
    ],
)
def test_sizes_that_cannot_be_served_name_the_flag(
    tokenizer: Tokenizer, tokens: int, length: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        held_out_windows(tokenizer, tokens=tokens, length=length, seed=0)
