"""What each variant may cost at most: a conversion beyond it is broken, not merely rounded.

How the limits were set: docs/verify.md, "Thresholds". They hold on the held-out code that `verify` reads by
default; a model on other text or with other lengths gives other figures.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from convert.parity import Parity

_GPTQ = re.compile(r"gptq-(?P<bits>\d)bit")


@dataclass(frozen=True)
class Threshold:
    """Limits on the estimates: share of positions, nats per token, and the ratio of perplexities."""

    least_top1: float
    most_kl: float
    most_perplexity_ratio: float

    def record(self) -> dict[str, float]:
        return asdict(self)


THRESHOLDS = {
    "float32": Threshold(0.999, 0.00001, 1.001),
    "float16": Threshold(0.995, 0.00005, 1.002),
    "bfloat16": Threshold(0.99, 0.0005, 1.005),
    "int16": Threshold(0.945, 0.003, 1.01),
    "int8": Threshold(0.77, 0.11, 1.09),
    "gptq-8bit": Threshold(0.96, 0.002, 1.01),
    "gptq-4bit": Threshold(0.54, 0.47, 1.43),
    "gptq-3bit": Threshold(0.3, 1.5, 3.0),
}


def variant(quantization: str) -> str:
    """The row of THRESHOLDS that a card's quantisation belongs to; empty where there is none."""
    if match := _GPTQ.match(quantization):
        name = f"gptq-{match['bits']}bit"
        return name if name in THRESHOLDS else ""
    if quantization.startswith("int8"):
        return "int8"
    return quantization if quantization in THRESHOLDS else ""


def failures(parity: Parity, threshold: Threshold) -> list[str]:
    """One sentence per limit that is broken, saying by how much; empty when all hold."""
    found = []
    checks = (
        ("top-1 agreement", parity.top1_agreement.value, threshold.least_top1, "at least"),
        ("mean KL (nats per token)", parity.mean_kl.value, threshold.most_kl, "at most"),
        ("perplexity ratio", parity.perplexity_ratio.value, threshold.most_perplexity_ratio, "at most"),
    )
    for name, value, limit, word in checks:
        beyond = limit - value if word == "at least" else value - limit
        # Written so that NaN fails.
        if not beyond <= 0:
            found.append(f"{name} is {value:.5g}, it should be {word} {limit:g} (off by {beyond:.3g})")
    return found
