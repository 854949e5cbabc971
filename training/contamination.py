"""Whether a problem to train on is, or nearly is, one of a benchmark's.

Six rules, on the task in words and on the reference solution (forms: `training.passages`). Thresholds are
`Thresholds`; docs/training-data.md shows what each rule catches on real data.

same-text      the words are the same
text-inside    the whole of one text stands in the other
text-10-gram   the two share runs of ten words that are not common among the benchmarks
near-text      nearly the same content words and pairs of them (`training.near_duplicates`)
same-code      the solutions are the same but for the names they give
code-10-gram   they share runs of ten tokens that are not common among the benchmarks

Runs that three or more different problems of the benchmarks have ("a subarray is a contiguous non empty
sequence of elements within an array") say nothing and are not counted; neither are texts and solutions that
are too short to be anyone's ("return x + y").
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rrtf_serve.problems.mbpp import SPLITS
from rrtf_serve.problems.problem import Problem
from rrtf_serve.problems.suites import SUITES, load_suite
from training.near_duplicates import NearIndex, content
from training.passages import Passage, problem_passage

# Every suite that results are reported on. Others that SUITES knows are parts of these, or for training.
BENCHMARKS = (
    "humaneval",
    "humaneval-plus",
    "mbpp-test",
    "mbpp-sanitized-test",
    "mbpp-plus",
    "leetcode-test",
    "leetcode-after-2022-07",
    *(name for name in SUITES if name.startswith(("codereval-", "infilling-", "multipl-e-"))),
    "codecontests",
)
RULES = ("same-text", "text-inside", "text-10-gram", "near-text", "same-code", "code-10-gram")
GRAM = 10  # words or tokens
COMMON = 3  # different problems of the benchmarks that a run must be in to say nothing

Gram = tuple[str, ...]


@dataclass(frozen=True)
class Thresholds:
    """From where on a likeness rejects. Raises ValueError naming the flag."""

    near_text: float = 0.7  # Jaccard of content words and their pairs
    text_share: float = 0.4  # of the shorter text's runs of ten words
    code_share: float = 0.7  # of the shorter solution's runs of ten tokens
    content_words: int = 2  # least content words of a text that is compared at all
    inside_words: int = 8  # least words of a text that is looked for inside others
    same_code_tokens: int = 20  # least tokens of a solution that must not be the same
    code_tokens: int = 30  # least tokens of a solution whose runs are compared

    def __post_init__(self) -> None:
        for name in ("near_text", "text_share", "code_share"):
            if not 0 < getattr(self, name) <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} must be above 0 and at most 1, not {getattr(self, name)}")
        for each in fields(self):
            if each.type == "int" and getattr(self, each.name) < 1:
                flag = f"--{each.name.replace('_', '-')}"
                raise ValueError(f"{flag} must be at least 1, not {getattr(self, each.name)}")


@dataclass(frozen=True)
class Entry:
    """What one or several problems of the benchmarks say, and which they are: (suite, task_id)."""

    passage: Passage
    names: tuple[tuple[str, str], ...]

    @property
    def identity(self) -> str:
        """One for a problem in all its forms: HumanEval/0 is in twenty suites."""
        return _identity(self.names[0][1])


@dataclass(frozen=True)
class Match:
    """A likeness that rejects."""

    rule: str
    likeness: float  # 1: the same; a share or Jaccard else
    entry: Entry


@dataclass(frozen=True)
class Benchmarks:
    """Problems of all suites that could be loaded, and why the others could not."""

    entries: tuple[Entry, ...]
    sizes: dict[str, int]  # problems by suite
    missing: dict[str, str]  # reason by suite


def load_benchmarks(names: Sequence[str] = BENCHMARKS, data_dir: Path | None = None) -> Benchmarks:
    """Raises ValueError on a name that is no suite; a suite that can't be loaded is in `missing`."""
    found: dict[tuple[tuple[str, ...], tuple[str, ...]], Entry] = {}
    sizes: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name in dict.fromkeys(names):
        if name not in SUITES:
            raise ValueError(f"--against {name}: no suite of that name; suites are {', '.join(SUITES)}")
        try:
            problems = benchmark_problems(name, data_dir)
        except ValueError as error:
            missing[name] = str(error)
            continue
        sizes[name] = len(problems)
        for problem in problems:
            said = problem_passage(problem)
            key = said.words, said.code
            before = found[key].names if key in found else ()
            found[key] = Entry(found[key].passage if before else said, (*before, (name, problem.task_id)))
    return Benchmarks(tuple(found.values()), sizes, missing)


def benchmark_problems(name: str, data_dir: Path | None) -> list[Problem]:
    """Problems of a suite that results are reported on.

    MBPP+ has 154 tasks of MBPP's training, validation and prompt splits besides; no result counts those.
    """
    problems = load_suite(name, data_dir).problems.values()
    if name != "mbpp-plus":
        return list(problems)
    return [each for each in problems if int(each.task_id.removeprefix("Mbpp/")) in SPLITS["test"]]


def _identity(task_id: str) -> str:
    found = re.search(r"HumanEval[/_](\d+)", task_id)
    return f"HumanEval/{found.group(1)}" if found else task_id


def deciding(matches: Sequence[Match]) -> Match:
    """Of the likenesses of one record the one it is rejected by: the first rule's highest."""
    first = min(matches, key=lambda each: RULES.index(each.rule)).rule
    return max((each for each in matches if each.rule == first), key=lambda each: each.likeness)


class Detector:
    """Compares passages with all entries; what comes out depends on nothing but its arguments."""

    def __init__(self, entries: Sequence[Entry], thresholds: Thresholds | None = None) -> None:
        self.thresholds = thresholds or Thresholds()
        self._entries = entries
        self._near = NearIndex(self.thresholds.near_text)
        self._texts: dict[Gram, list[int]] = defaultdict(list)
        self._codes: dict[Gram, list[int]] = defaultdict(list)
        # A text's first words -> the text, and every run of that many words -> the texts that have it.
        self._heads: dict[Gram, list[int]] = defaultdict(list)
        self._runs: dict[Gram, list[int]] = defaultdict(list)
        size = self.thresholds.inside_words
        for at, entry in enumerate(entries):
            words, code = entry.passage.words, entry.passage.code
            if self._says_something(words):
                self._texts[words].append(at)
                self._near.add(str(at), words)
            if len(words) >= size:
                self._heads[words[:size]].append(at)
            for run in grams(words, size):
                self._runs[run].append(at)
            if len(code) >= self.thresholds.same_code_tokens:
                self._codes[code].append(at)
        self._text_grams = _Grams([(entry.identity, entry.passage.words) for entry in entries])
        self._code_grams = _Grams([(entry.identity, entry.passage.code) for entry in entries])

    def matches(self, passage: Passage) -> list[Match]:
        """Every likeness that rejects, in the order of RULES and then of the entries."""
        return [
            Match(rule, likeness, self._entries[at])
            for rule, found in (
                ("same-text", self._same_text(passage)),
                ("text-inside", self._inside(passage)),
                (
                    "text-10-gram",
                    self._shared(passage.words, self._text_grams, self.thresholds.text_share, GRAM),
                ),
                ("near-text", self._near_text(passage)),
                ("same-code", dict.fromkeys(self._codes.get(passage.code, ()), 1.0)),
                (
                    "code-10-gram",
                    self._shared(
                        passage.code,
                        self._code_grams,
                        self.thresholds.code_share,
                        self.thresholds.code_tokens,
                    ),
                ),
            )
            for at, likeness in sorted(found.items())
        ]

    def _says_something(self, words: Gram) -> bool:
        return len(set(content(words))) >= self.thresholds.content_words

    def _same_text(self, passage: Passage) -> dict[int, float]:
        return dict.fromkeys(self._texts.get(passage.words, ()), 1.0)

    def _near_text(self, passage: Passage) -> dict[int, float]:
        if not self._says_something(passage.words):
            return {}
        return {int(key): likeness for key, likeness in self._near.all_near(passage.words)}

    def _inside(self, passage: Passage) -> dict[int, float]:
        words, size = passage.words, self.thresholds.inside_words
        if len(words) < size:
            return {}
        within = {
            at
            for run in grams(words, size)
            for at in self._heads.get(run, ())
            if _contains(words, self._entries[at].passage.words)
        }
        around = {
            at for at in self._runs.get(words[:size], ()) if _contains(self._entries[at].passage.words, words)
        }
        same = set(self._texts.get(words, ()))  # has a rule of its own
        return dict.fromkeys((within | around) - same, 1.0)

    def _shared(self, sequence: Gram, known: _Grams, least_share: float, least: int) -> dict[int, float]:
        """Share of the shorter one's runs that both have and that say something."""
        if len(sequence) < least:
            return {}
        own = grams(sequence)
        counts = Counter(at for gram in own for at in known.telling.get(gram, ()))
        shares = {
            at: count / min(len(own), known.counts[at])
            for at, count in counts.items()
            if known.lengths[at] >= least
        }
        return {at: share for at, share in shares.items() if share >= least_share}


class _Grams:
    """Which sequences have which run of GRAM elements."""

    def __init__(self, sequences: Sequence[tuple[str, Gram]]) -> None:
        """`sequences`: identity of the problem, and its words or tokens."""
        self.lengths = [len(sequence) for _, sequence in sequences]
        self.counts = [0] * len(sequences)
        having: dict[Gram, list[int]] = defaultdict(list)
        for at, (_, sequence) in enumerate(sequences):
            found = grams(sequence)
            self.counts[at] = len(found)
            for gram in found:
                having[gram].append(at)
        self.telling = {
            gram: found for gram, found in having.items() if len({sequences[at][0] for at in found}) < COMMON
        }


def grams(sequence: Gram, size: int = GRAM) -> set[Gram]:
    """Runs of `size` elements; none of a shorter sequence."""
    return set(_runs(sequence, size))


def _runs(sequence: Gram, size: int) -> Iterator[Gram]:
    return (sequence[start : start + size] for start in range(len(sequence) - size + 1))


def _contains(whole: Gram, part: Gram) -> bool:
    return any(run == part for run in _runs(whole, len(part)))
