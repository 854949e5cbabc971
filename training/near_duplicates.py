"""Texts that say nearly the same: exact Jaccard similarity of their words and pairs of words.

Only words that carry content count, so that "a string" and "the given string" are the same. Candidates are
found by prefix filtering (Bayardo, Ma and Srikant, WWW 2007, section 4): two sets of Jaccard t or more share
one of the first |x| - ceil(t |x|) + 1 features of either in any fixed order, so nothing is missed.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# Words that two ways of saying one thing differ by. "not", "or", numbers and directions are not among them.
_EMPTY = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be by can each for from given has have in into is it its of on one s specified t "
        "that the their then there these this to using use used whether which will with you your function "
        "python write takes take return returns should if find finds calculate calculates compute computes "
        "get gets determine determines",
    )
)
_SAME = {"array": "list", "arrays": "list", "integer": "number", "integers": "number"}
Feature = str | tuple[str, str]


def content(words: Sequence[str]) -> tuple[str, ...]:
    """The words that carry content, in their order and in the singular."""
    return tuple(_SAME.get(word) or _singular(word) for word in words if word not in _EMPTY)


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def features(words: Sequence[str]) -> frozenset[Feature]:
    """Content words, and pairs of them that stand side by side."""
    kept = content(words)
    return frozenset([*kept, *pairwise(kept)])


def jaccard(first: frozenset[Feature], second: frozenset[Feature]) -> float:
    """Shared features by all features; 0 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 0.0


@dataclass
class NearIndex:
    """Keys of texts, found by texts that are nearly the same. Grows as texts are added."""

    threshold: float  # Jaccard from which two texts are near; above 0, at most 1
    _sets: list[tuple[str, frozenset[Feature]]] = field(default_factory=list)
    _by_feature: dict[Feature, list[int]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"a threshold of similarity must be above 0 and at most 1, not {self.threshold}")

    def add(self, key: str, words: Sequence[str]) -> None:
        found = features(words)
        for each in self._prefix(found):
            self._by_feature[each].append(len(self._sets))
        self._sets.append((key, found))

    def all_near(self, words: Sequence[str]) -> list[tuple[str, float]]:
        """(key, similarity) of every text as near as the threshold, the nearest first."""
        found = features(words)
        at = {each for part in self._prefix(found) for each in self._by_feature.get(part, ())}
        near = ((self._sets[each][0], jaccard(found, self._sets[each][1])) for each in sorted(at))
        return sorted((pair for pair in near if pair[1] >= self.threshold), key=lambda pair: -pair[1])

    def nearest(self, words: Sequence[str]) -> tuple[str, float] | None:
        """The nearest text; None where none is near. Of equals the one that was added first."""
        return next(iter(self.all_near(words)), None)

    def _prefix(self, found: frozenset[Feature]) -> list[Feature]:
        # The small margin keeps a product such as 0.7 * 10 from being rounded up past its exact value.
        length = len(found) - math.ceil(self.threshold * len(found) - 1e-9) + 1
        return sorted(found, key=_order)[: length if found else 0]


def _order(feature: Feature) -> tuple[bool, int, str]:
    """Pairs first, being rarer; then in the order of a checksum, the same in every process."""
    text = feature if isinstance(feature, str) else " ".join(feature)
    return isinstance(feature, str), zlib.crc32(text.encode("utf-8", "surrogatepass")), text
