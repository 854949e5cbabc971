"""How far a converted model is from its reference, from both models' log-probabilities over the same text.

Per position, p the reference's next-token distribution and q the other's:
- top-1 agreement: whether both find the same token likeliest
- KL(p || q) = sum p (log p - log q), in nats: what is lost by coding p's tokens with q (Kullback and Leibler,
  Annals of Mathematical Statistics 22, 1951)
- perplexity: exp of the mean -log probability of the token that really follows
Positions of one document resemble each other, so intervals come from resampling documents, not positions
(percentile bootstrap; Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
_ROWS = 32  # positions worked on at once: bounds the temporaries to a few rows of the vocabulary


@dataclass(frozen=True)
class Tally:
    """Sums over positions of one document; logarithms are natural."""

    positions: int = 0
    agreed: int = 0
    divergence: float = 0.0
    reference_surprise: float = 0.0  # sum of -log p(next token)
    surprise: float = 0.0  # the same under q

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.positions + other.positions,
            self.agreed + other.agreed,
            self.divergence + other.divergence,
            self.reference_surprise + other.reference_surprise,
            self.surprise + other.surprise,
        )


@dataclass(frozen=True)
class Estimate:
    """A figure with the bounds of its 95 % interval. `n` counts what it was measured on."""

    value: float
    low: float
    high: float
    n: int

    def record(self) -> dict[str, float]:
        return {key: _digits(value) for key, value in asdict(self).items()}


@dataclass(frozen=True)
class Divergence:
    """Where greedy answers first differ: the median over prompts, in tokens after the prompt.

    `limit` tokens were generated; `equal` of the `n` prompts show no difference within them and count as
    `limit` (a median of `limit` means "at least").
    """

    value: float
    low: float
    high: float
    n: int
    limit: int
    equal: int

    def record(self) -> dict[str, float]:
        return {key: _digits(value) for key, value in asdict(self).items()}


def tally(reference: FloatArray, other: FloatArray, following: Sequence[int]) -> Tally:
    """Compare two models over one stretch of text.

    `reference` and `other` are log-probabilities, (positions, vocabulary); `following` holds the token that
    really follows each position. Rows need be normalised only roughly: libraries do it in float32, which
    leaves errors of 1e-5, and so it is done again here. Raises ValueError on unequal shapes or NaN.
    """
    if reference.shape != other.shape or len(following) != len(reference):
        raise ValueError(f"shapes {reference.shape} and {other.shape} for {len(following)} following tokens")
    total = Tally()
    targets = np.asarray(following)
    for start in range(0, len(targets), _ROWS):
        stop = start + _ROWS
        total += _tally_rows(reference[start:stop], other[start:stop], targets[start:stop])
    return total


def _tally_rows(p: FloatArray, q: FloatArray, targets: npt.NDArray[np.int_]) -> Tally:
    weights = np.exp(p)
    p_sum = weights.sum(axis=1, dtype=np.float64)
    q_sum = np.exp(q).sum(axis=1, dtype=np.float64)
    if not (np.isfinite(p_sum).all() and np.isfinite(q_sum).all()):
        raise ValueError("a model gives probabilities that are not finite numbers; its weights are damaged")
    p_shift, q_shift = np.log(p_sum), np.log(q_sum)
    # A token that p thinks impossible adds nothing, whatever q says; -inf - -inf would be NaN.
    with np.errstate(invalid="ignore"):
        weighted = np.where(weights > 0, weights * (p - q), np.float32(0))
    divergence = weighted.sum(axis=1, dtype=np.float64) / p_sum - p_shift + q_shift
    at = np.arange(len(targets))
    return Tally(
        positions=len(targets),
        agreed=int((p.argmax(axis=1) == q.argmax(axis=1)).sum()),
        divergence=float(divergence.sum()),
        reference_surprise=float((p_shift - p[at, targets]).sum()),
        surprise=float((q_shift - q[at, targets]).sum()),
    )


def first_difference(first: Sequence[int], second: Sequence[int], limit: int) -> int:
    """How many tokens two greedy answers share before they differ; `limit` where they do not."""
    shared = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            return shared
        shared += 1
    return limit if len(first) == len(second) else shared


@dataclass(frozen=True)
class Parity:
    """What `rrtf-convert verify` finds, without where it came from."""

    top1_agreement: Estimate  # share of positions
    mean_kl: Estimate  # nats per token
    perplexity_reference: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate  # of the model over the reference
    greedy_divergence: Divergence
    documents: int

    def record(self) -> dict[str, object]:
        names = ("top1_agreement", "mean_kl", "perplexity_reference", "perplexity", "perplexity_ratio")
        estimates = {name: getattr(self, name).record() for name in names}
        return {
            **estimates,
            "greedy_divergence": self.greedy_divergence.record(),
            "documents": self.documents,
            "interval": f"{CONFIDENCE:.0%}, percentile bootstrap over documents, {RESAMPLES} resamples",
        }


def summarise(documents: Iterable[Tally], differences: Sequence[int], limit: int, seed: int) -> Parity:
    """Estimates and intervals from one tally per document and one first difference per prompt.

    Raises ValueError on fewer than two documents or no prompt: there is no spread to take an interval from.
    """
    tallies = list(documents)
    if len(tallies) < 2 or not differences:
        raise ValueError(f"{len(tallies)} documents and {len(differences)} prompts; two and one are needed")
    columns = {
        name: np.array([getattr(each, name) for each in tallies], np.float64)
        for name in ("positions", "agreed", "divergence", "reference_surprise", "surprise")
    }
    drawn = np.random.default_rng(seed).integers(len(tallies), size=(RESAMPLES, len(tallies)))
    sums = {name: column[drawn].sum(axis=1) for name, column in columns.items()}
    totals = {name: np.array([column.sum()]) for name, column in columns.items()}
    n = int(totals["positions"][0])

    def estimate(figure: Callable[[dict[str, Doubles]], Doubles]) -> Estimate:
        low, high = _bounds(figure(sums))
        return Estimate(float(figure(totals)[0]), low, high, n)

    return Parity(
        top1_agreement=estimate(lambda t: t["agreed"] / t["positions"]),
        # Rounding may leave -1e-9 where the models are equal; a divergence is never negative.
        mean_kl=estimate(lambda t: np.maximum(t["divergence"] / t["positions"], 0.0)),
        perplexity_reference=estimate(lambda t: np.exp(t["reference_surprise"] / t["positions"])),
        perplexity=estimate(lambda t: np.exp(t["surprise"] / t["positions"])),
        perplexity_ratio=estimate(
            lambda t: np.exp((t["surprise"] - t["reference_surprise"]) / t["positions"])
        ),
        greedy_divergence=_median(differences, limit, seed),
        documents=len(tallies),
    )


def _median(differences: Sequence[int], limit: int, seed: int) -> Divergence:
    values = np.array(differences, np.float64)
    drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = _bounds(np.median(values[drawn], axis=1))
    equal = int((values >= limit).sum())
    return Divergence(float(np.median(values)), low, high, len(values), limit, equal)


def _bounds(resampled: Doubles) -> tuple[float, float]:
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _digits(value: float) -> float:
    """Six significant digits: more would be noise in a card."""
    return value if isinstance(value, int) else float(f"{value:.6g}")
