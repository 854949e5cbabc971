"""Rotary positions that were stretched: what each frequency is divided by, and what that does to attention.

Every scaling that Hugging Face knows and that does not change while a text grows is one table of divisors,
one per pair of dimensions, and one number that attention scores are multiplied by. CTranslate2 takes both
(its "su" scaling and its queries' scale); its fields for Llama 3.1 are not filled in by its own converter.

Llama 3.1: https://github.com/meta-llama/llama-models, models/llama3/reference_impl; YaRN: arXiv 2309.00071,
sections 3.2 and 3.4; LongRoPE: arXiv 2402.13753. Key names are those of transformers' modeling_rope_utils.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import Record

KNOWN = ("default", "linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched.

    `factor` divides every position alike (linear); or `divisors`, head_dim / 2 of them, divide the
    frequencies. `attention_scale` multiplies the attention scores. `longest`: tokens up to which this holds;
    0: no limit.
    """

    factor: float = 1.0
    divisors: tuple[float, ...] = ()
    attention_scale: float = 1.0
    longest: int = 0


def read_rope_scaling(
    record: Record, *, head_dim: int, theta: float, context_length: int
) -> RopeScaling | None:
    """The scaling that rope_parameters (transformers 5) or rope_scaling (older) describes; None: none.

    `theta` is the base of the frequencies, `context_length` the model's own limit in tokens. Raises
    ModelError naming the key that is wrong or the kind that is not known.
    """
    kind = record.text("rope_type") or record.text("type", "default")
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(_positive(record, "factor", 1.0))
    if kind not in (*KNOWN, "su"):
        raise ModelError(
            f"{record.path}: rotary scaling {kind!r} can't be converted; known: {', '.join(KNOWN)}"
        )
    original = record.count("original_max_position_embeddings", context_length)
    if kind == "llama3":
        return _llama3(record, _frequencies(head_dim, theta), original)
    if kind == "yarn":
        return _yarn(record, head_dim, theta, original, context_length)
    return _longrope(record, head_dim, original, context_length)


def _frequencies(head_dim: int, theta: float) -> npt.NDArray[np.float64]:
    powers: npt.NDArray[np.float64] = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    return powers


def _llama3(record: Record, frequencies: npt.NDArray[np.float64], original: int) -> RopeScaling:
    """High frequencies stay, low ones are divided by the factor, those between get a mean of both."""
    factor = _positive(record, "factor", 8.0)
    low, high = _positive(record, "low_freq_factor", 1.0), _positive(record, "high_freq_factor", 4.0)
    if not low < high:
        raise ModelError(f"{record.path}: low_freq_factor is {low}, not below high_freq_factor, {high}")
    turns = original * frequencies / (2 * math.pi)  # made within the original context
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return RopeScaling(divisors=_table(1 / (kept + (1 - kept) / factor)))


def _yarn(record: Record, head_dim: int, theta: float, original: int, context_length: int) -> RopeScaling:
    factor = _positive(record, "factor", context_length / original)

    def dimension(turns: float) -> float:
        """The pair of dimensions that makes so many turns within the original context."""
        return head_dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension(_positive(record, "beta_fast", 32))
    last = dimension(_positive(record, "beta_slow", 1))
    if record.flag("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    ramp = (np.arange(head_dim // 2) - first) / (last - first or 0.001)
    kept = 1 - np.clip(ramp, 0, 1)
    # The score of two vectors that were both multiplied by the factor.
    return RopeScaling(
        divisors=_table(1 / (kept + (1 - kept) / factor)), attention_scale=_yarn_factor(record, factor) ** 2
    )


def _yarn_factor(record: Record, factor: float) -> float:
    given = record.number("attention_factor", 0.0)
    if given:
        return given

    def magnitude(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    both = record.number("mscale", 0.0), record.number("mscale_all_dim", 0.0)
    return magnitude(both[0]) / magnitude(both[1]) if all(both) else magnitude(1.0)


def _longrope(record: Record, head_dim: int, original: int, context_length: int) -> RopeScaling:
    """The table for short texts. Past the original context another one would have to take its place."""
    divisors = record.values.get("short_factor")
    if (
        not isinstance(divisors, list)
        or len(divisors) != head_dim // 2
        or not all(isinstance(x, int | float) and 0 < x < math.inf for x in divisors)
    ):
        raise ModelError(
            f"{record.path}: short_factor of the rotary scaling should be {head_dim // 2} positive numbers"
        )
    factor = _positive(record, "factor", context_length / original)
    scale = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    scale = record.number("attention_factor", scale)
    return RopeScaling(divisors=tuple(map(float, divisors)), attention_scale=scale**2, longest=original)


def _table(divisors: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(float(value) for value in divisors)


def _positive(record: Record, key: str, default: float) -> float:
    value = record.number(key, default)
    if value <= 0:
        raise ModelError(f"{record.path}: {key} of the rotary scaling is {value}; it should be above 0")
    return value
