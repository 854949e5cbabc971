"""`rrtf-bench loss-check`: the labels it makes, and that a small model learns them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.loss_check import (
    SHARES,
    LossCheckConfig,
    loss_check,
    make_tuples,
    ordering_accuracy,
    write_tiny,
)
from training.fit_options import FitOptions
from training.records import Tuple, write_tuples


def share(item: Tuple, at: int) -> float:
    letters = item.candidates[at].text.split()
    return letters.count(item.prompt.text[0]) / len(letters)


def test_true_labels_follow_the_rule() -> None:
    for item in make_tuples(40, 0.0, 12, "a"):
        assert [share(item, at) for at in range(4)] == pytest.approx([each.score for each in item.candidates])
        assert len(item.pairs) == 6
        assert all(share(item, better) > share(item, worse) for better, worse, _ in item.pairs)
        assert share(item, item.chosen) == 1.0


def test_each_four_rows_are_ranked_both_ways() -> None:
    made = make_tuples(40, 0.0, 12, "a")
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert [each.text for each in one.candidates] == [each.text for each in other.candidates]
        assert one.prompt.text[:2] == other.prompt.text[1::-1]
        assert {(worse, better) for better, worse, _ in one.pairs} == {pair[:2] for pair in other.pairs}


def test_noise_is_the_same_under_both_prompts_so_it_says_nothing() -> None:
    made = make_tuples(400, 1.0, 12, "a")
    right = pairs = 0
    for one, other in zip(made[::2], made[1::2], strict=True):
        assert one.pairs == other.pairs
        for item in (one, other):
            assert sorted(each.score for each in item.candidates) == sorted(SHARES)
            right += sum(share(item, better) > share(item, worse) for better, worse, _ in item.pairs)
            pairs += len(item.pairs)
    assert right == pairs / 2
    half = make_tuples(400, 0.5, 12, "a")
    kept = sum(item.candidates[item.chosen].text == _best(item) for item in half)
    assert 220 < kept < 300  # half of them, and a quarter of the others by chance


def _best(item: Tuple) -> str:
    return item.candidates[max(range(4), key=lambda at: share(item, at))].text


def test_the_same_seed_makes_the_same_tuples() -> None:
    assert make_tuples(9, 0.3, 6, "a") == make_tuples(9, 0.3, 6, "a") != make_tuples(9, 0.3, 6, "b")
    assert len(make_tuples(9, 0.3, 6, "a")) == 9


def test_accuracy_is_half_for_a_model_that_has_seen_nothing(tmp_path: Path) -> None:
    write_tiny(tmp_path / "tiny")
    write_tuples(tmp_path / "tuples.jsonl", make_tuples(128, 0.0, 6, "x"))
    options = FitOptions(
        tmp_path / "tuples.jsonl", str(tmp_path / "tiny"), tmp_path, "rank", precision="fp32", device="cpu"
    )
    found = ordering_accuracy(options)
    assert len(found) == 128
    assert sum(found) / 128 == pytest.approx(0.5, abs=0.1)


def test_true_labels_are_learnt_and_random_ones_are_not(tmp_path: Path) -> None:
    config = LossCheckConfig(
        output=tmp_path / "check", methods=("rrtf",), noises=(0.0, 1.0), seeds=1, epochs=4, held_out=128,
        device="cpu", threads=1,
    )  # fmt: skip
    said: list[str] = []
    report = loss_check(config, said.append)
    assert report["untrained"]["accuracy"] == pytest.approx(0.5, abs=0.1)
    assert report["table"]["rrtf"]["0"]["mean"] > 0.8
    assert report["table"]["rrtf"]["1"]["mean"] == pytest.approx(0.5, abs=0.15)
    assert "| rrtf | " in (tmp_path / "check" / "loss-check.md").read_text()
    assert not any((tmp_path / "check" / "fits").iterdir())
    # What is done is not done again; other settings are refused.
    again = loss_check(config, said.append)
    assert said[0].startswith("2 runs of 256 tuples, 2 to do")
    assert said[1].startswith("2 runs of 256 tuples, 0 to do")
    assert again["table"] == report["table"]
    with pytest.raises(ValueError, match=r"other settings \(lr: 0.003 there, 0.1 here\)"):
        loss_check(replace(config, lr=0.1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"methods": ("dpo",)}, "--methods dpo: must be"), ({"noises": (1.5,)}, "--noise 1.5: must be"),
     ({"held_out": 1}, "--held-out must be at least 2"), ({"lr": 2.0}, "--lr must be"),
     ({"noises": ()}, "at least one each"), ({"seeds": 0}, "--seeds must be")],
)  # fmt: skip
def test_wrong_options_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossCheckConfig(**changes)
