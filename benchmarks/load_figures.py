"""Figures of a load: quantiles of waiting, tokens per second, by kind of request."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from benchmarks.load_client import Reply


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them don't exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread_ms(seconds: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and the largest, in milliseconds; None of nothing."""
    if not seconds:
        return None
    return {
        "p50": 1000 * quantile(seconds, 0.5),
        "p95": 1000 * quantile(seconds, 0.95),
        "max": 1000 * max(seconds),
        "n": len(seconds),
    }


def figures(replies: Sequence[Reply], wall_s: float) -> dict[str, Any]:
    """first_token_ms: of streams, from the request that was let in. between_ms: from one event with text of a
    stream to the next. whole_ms: of answers that came whole, from request to end."""
    streams = [reply for reply in replies if reply.ask.streamed]
    gaps = [later - earlier for each in streams for earlier, later in itertools.pairwise(each.arrivals)]
    tokens = sum(reply.completion_tokens for reply in replies)
    return {
        "requests": len(replies),
        "refused": sum(reply.refused for reply in replies),
        "completion_tokens": tokens,
        "tokens_per_s": tokens / wall_s,
        "first_token_ms": spread_ms(
            [each.first_token_s for each in streams if each.first_token_s is not None]
        ),
        "between_ms": spread_ms(gaps),
        "whole_ms": spread_ms([each.ended - each.started for each in replies if not each.ask.streamed]),
    }


def by_kind(replies: Sequence[Reply], wall_s: float) -> dict[str, dict[str, Any]]:
    kinds = sorted({reply.ask.kind for reply in replies})
    return {kind: figures([each for each in replies if each.ask.kind == kind], wall_s) for kind in kinds}
