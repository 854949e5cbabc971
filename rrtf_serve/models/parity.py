"""A card's parity record as people read it: for `rrtf-models show`, the page, and `rrtf-convert verify`.

`rrtf-convert verify` writes the record (convert/verify.py). A card is a file like any other, so nothing is
taken for granted here: what is not as expected is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def parity_facts(parity: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Label and text of each figure of a parity record, with its interval; empty for none."""
    if not parity:
        return []
    facts = [
        ("top-1 agreement", _estimate(parity, "top1_agreement", lambda x: f"{100 * x:.2f} %")),
        ("mean KL", _estimate(parity, "mean_kl", lambda x: f"{x:.3g}", " nats per token")),
        ("perplexity ratio", _perplexity(parity)),
        ("greedy divergence", _divergence(parity)),
        ("measured on", _data(parity)),
        ("reference", _reference(parity)),
        ("within its thresholds", _thresholds(parity)),
    ]
    warnings = parity.get("warnings")
    if isinstance(warnings, list):
        facts += [("warning", str(warning)) for warning in warnings]
    return [(label, text) for label, text in facts if text]


def _number(record: object, key: str) -> float | None:
    value = record.get(key) if isinstance(record, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _estimate(parity: Mapping[str, Any], key: str, form: Any, unit: str = "") -> str:
    record = parity.get(key)
    value, low, high = (_number(record, name) for name in ("value", "low", "high"))
    if value is None:
        return ""
    interval = f" ({form(low)} to {form(high)})" if low is not None and high is not None else ""
    return f"{form(value)}{unit}{interval}"


def _perplexity(parity: Mapping[str, Any]) -> str:
    text = _estimate(parity, "perplexity_ratio", lambda x: f"{x:.4f}")
    before, after = (_number(parity.get(key), "value") for key in ("perplexity_reference", "perplexity"))
    if text and before is not None and after is not None:
        text += f", from {before:.3f} to {after:.3f}"
    return text


def _divergence(parity: Mapping[str, Any]) -> str:
    record = parity.get("greedy_divergence")
    text = _estimate(parity, "greedy_divergence", lambda x: f"{x:g}")
    limit, equal, n = (_number(record, key) for key in ("limit", "equal", "n"))
    if not text or limit is None or equal is None or n is None:
        return text
    return f"after {text} tokens, median; {equal:g} of {n:g} equal over all {limit:g}"


def _data(parity: Mapping[str, Any]) -> str:
    data = parity.get("data")
    tokens, documents = _number(data, "tokens"), _number(parity, "documents")
    if tokens is None or documents is None or not isinstance(data, Mapping):
        return ""
    return f"{tokens:,.0f} tokens of {documents:g} documents, {data.get('source')}"


def _reference(parity: Mapping[str, Any]) -> str:
    record = parity.get("reference")
    if not isinstance(record, Mapping) or not record.get("name"):
        return ""
    return f"{record['name']} in {record.get('quantization')}"


def _thresholds(parity: Mapping[str, Any]) -> str:
    if not isinstance(parity.get("threshold"), Mapping):
        return ""
    broken = parity.get("failures")
    if isinstance(broken, list) and broken:
        return "no: " + "; ".join(map(str, broken))
    return f"yes ({parity.get('variant')})"
