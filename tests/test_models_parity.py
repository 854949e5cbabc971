"""A card's parity as text: every figure with its interval, and nothing taken for granted."""

from __future__ import annotations

from typing import Any

import pytest

from rrtf_serve.models.parity import parity_facts

RECORD: dict[str, Any] = {
    "reference": {"name": "qwen", "quantization": "float32"},
    "data": {"source": "standard library", "tokens": 4096},
    "documents": 32,
    "top1_agreement": {"value": 0.9388, "low": 0.93, "high": 0.95, "n": 4096},
    "mean_kl": {"value": 0.01421, "low": 0.012, "high": 0.016, "n": 4096},
    "perplexity_reference": {"value": 3.0, "low": 2.0, "high": 4.0, "n": 4096},
    "perplexity": {"value": 3.03, "low": 2.0, "high": 4.0, "n": 4096},
    "perplexity_ratio": {"value": 1.01, "low": 1.0, "high": 1.02, "n": 4096},
    "greedy_divergence": {"value": 20.5, "low": 10, "high": 64, "n": 32, "limit": 64, "equal": 9},
    "variant": "int8",
    "threshold": {"most_kl": 0.03},
    "failures": [],
    "warnings": [],
}


def test_every_figure_with_its_interval() -> None:
    assert dict(parity_facts(RECORD)) == {
        "top-1 agreement": "93.88 % (93.00 % to 95.00 %)",
        "mean KL": "0.0142 nats per token (0.012 to 0.016)",
        "perplexity ratio": "1.0100 (1.0000 to 1.0200), from 3.000 to 3.030",
        "greedy divergence": "after 20.5 (10 to 64) tokens, median; 9 of 32 equal over all 64",
        "measured on": "4,096 tokens of 32 documents, standard library",
        "reference": "qwen in float32",
        "within its thresholds": "yes (int8)",
    }


def test_broken_thresholds_and_warnings_are_said() -> None:
    facts = dict(parity_facts(RECORD | {"failures": ["mean KL is 1"], "warnings": ["another source"]}))
    assert facts["within its thresholds"] == "no: mean KL is 1"
    assert facts["warning"] == "another source"


@pytest.mark.parametrize(
    "record",
    [
        None,
        {},
        {"kl": 0.02},
        dict.fromkeys(RECORD),
        dict.fromkeys(RECORD, "text"),
        {key: [1] for key in RECORD if key not in ("warnings", "failures")},
        {"top1_agreement": {"value": "0.9"}, "mean_kl": {"value": True}},
    ],
)
def test_records_of_another_make_are_left_out(record: Any) -> None:
    assert all(isinstance(text, str) for _, text in parity_facts(record))
    assert not any(label in ("top-1 agreement", "mean KL") for label, _ in parity_facts(record))


def test_a_figure_without_interval_is_shown_alone() -> None:
    assert parity_facts({"mean_kl": {"value": 0.5}}) == [("mean KL", "0.5 nats per token")]
