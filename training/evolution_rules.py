"""Why an evolved task is thrown away. Rules, in the order in which they are asked:

cut-off         the answer ran into its token limit
empty           fewer than four words
refusal         the evolver speaks of itself or declines
forbidden-words a phrase that the paper bans (`training.evolution.FORBIDDEN`)
echoes-request  it speaks of the rewriting itself, or hands the rules back
repeats-itself  the same six words four times or more
too-short, too-long   against its parent
code-alone      code without words that say what to do with it
no-new-task     the same words as its parent, or nearly
answers-itself  it holds a solution, where only the method of wrong code may show code that its parent lacks
other-language  it asks for another language than Python
no-code-asked   nothing in it asks for code
needs-outside   a file, the network, a keyboard, a screen, a database, the clock or chance is needed
duplicate, near-duplicate   of a seed or of a task that was kept before

A seed has to pass other-language, no-code-asked, needs-outside, too-long and the two of duplicates.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from training.evolution import FORBIDDEN
from training.near_duplicates import NearIndex, features, jaccard
from training.passages import task_words

_REFUSAL = re.compile(
    r"\bas an? (?:\w+ )?(?:ai|language model)\b|\bi(?:'m| am) (?:sorry|unable)\b|\bsorry, (?:but )?i\b|"
    r"\bi (?:cannot|can't|can not) (?:help|assist|provide|rewrite|answer|do)\b",
    re.IGNORECASE,
)
_LANGUAGES = re.compile(
    r"\b(?:java ?script|typescript|node\.?js|java|html\d?|css|sql|mysql|postgres\w*|php|ruby|bash|kotlin|"
    r"golang|shell script|react|angularjs|vue|jquery|swift|rust|scala|perl|matlab|visual basic|vb\.net|"
    r"haskell|lua|powershell|latex|objective-c)\b|\bc(?:\+\+|#)|"
    r"(?-i:\bin (?:C|R|Go|Assembly)\b|\b(?:C|R|Go) (?:program|code|function|language)\b)",
    re.IGNORECASE,
)
_CODE = re.compile(
    r"\b(?:functions?|methods?|def|class|programs?|programme|implement\w*|code|algorithms?|routine|procedure|"
    r"write|return\w*|comput\w+|calculat\w+|sort|find|determine|count|convert)\b",
    re.IGNORECASE,
)
_TALK = re.compile(
    r"^\W*(?:explain|describe|discuss|what (?:is|are|does)|why|how (?:does|do|is|are|would|can)|"
    r"differentiate|define the|summari[sz]e|suggest|predict|give (?:an|some) examples?|propose|correct|edit|"
    r"debug|optimi[sz]e|rewrite|refactor)\b",
    re.IGNORECASE,
)
_OUTSIDE = re.compile(
    r"\b(?:read|open|load|save|write|parse)\w*\b[^.]{0,40}\b(?:files?|csv|disk|folder|director(?:y|ies))\b|"
    r"\b(?:csv|json|text|log|excel) files?\b|\bfrom (?:a|the) files?\b|"
    r"\b(?:apis?|https?|web ?sites?|web ?pages?|web ?servers?|scrap(?:e|er|ing)|download\w*|endpoints?|"
    r"databases?|tables? in sql|sockets?|e-?mails? (?:to|server)|gui|tkinter|pygame|turtle|"
    r"flask|django|tensorflow|pytorch|keras|sklearn|scikit-learn|"
    r"keyboard|user'?s? input|input from (?:the )?user|(?:prompt|ask)s? the user|stdin|standard input|"
    r"current (?:date|time)|random(?:ly)?|machine learning|neural network|classifier|chatbot)\b",
    re.IGNORECASE,
)
_ECHO = re.compile(
    r"\bno title\b|\bno remarks\b|\b(?:new|old|original|provided|harder|following rewritten) task\b|"
    r"\b(?:add|with) one more constraint\b|\bconstraint or requirement\b|\bprogramming contest\b|"
    r"\bthis method\b|\bmislead(?:s|ing)? the reader\b",
    re.IGNORECASE,
)
_BLOCK = re.compile(r"```.*?(?:```|$)|^\s*(?:def|class|import|from) .*", re.DOTALL | re.MULTILINE)
_FENCE = re.compile(r"```|^\s*def \w+\(", re.MULTILINE)
_RUN, _TIMES = 6, 4


@dataclass(frozen=True)
class Limits:
    """How far a child may be from its parent. Raises ValueError naming the flag."""

    shortest: float = 0.5  # of the parent's words
    longest: float = 2.0
    slack_words: int = 40  # a child may always have as many more: a dozen words can't take a constraint else
    most_words: int = 400  # of any task
    near_parent: float = 0.8  # Jaccard from which a child is its parent
    near: float = 0.8  # Jaccard from which two tasks are one

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= 1 <= self.longest:
            raise ValueError(
                f"--shortest {self.shortest} must be above 0 and at most 1, "
                f"--longest {self.longest} at least 1"
            )
        for name in ("near_parent", "near"):
            if not 0 < getattr(self, name) <= 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} must be above 0 and at most 1, not {getattr(self, name)}")
        if self.slack_words < 0 or self.most_words < 1:
            raise ValueError(f"--slack-words {self.slack_words}, --most-words {self.most_words}: too small")

    def words(self, parent: str) -> tuple[int, int]:
        """Least and most words of a child."""
        count = len(parent.split())
        most = max(int(self.longest * count), count + self.slack_words)
        return max(1, int(self.shortest * count)), min(most, self.most_words)


Broken = tuple[str, str]  # rule, what broke it


class Eliminator:
    """Applies the rules, and remembers what was kept, so that the order of its calls matters."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._kept: dict[tuple[str, ...], str] = {}
        self._near = NearIndex(limits.near)

    def keep(self, task_id: str, text: str) -> None:
        """A seed or an accepted task: later ones must differ from it."""
        words = task_words(text)
        self._kept.setdefault(words, task_id)
        self._near.add(task_id, words)

    def broken(self, text: str, parent: str, method: str, finish: str) -> Broken | None:
        """The first rule that a child breaks."""
        if finish == "length":
            return "cut-off", text[-80:]
        return (
            _talk(text)
            or self._length(text, parent)
            or self._sameness(text, parent)
            or _solution(text, parent, method)
            or purpose(text)
            or self.repeats(text)
        )

    def _length(self, text: str, parent: str) -> Broken | None:
        least, most = self._limits.words(parent)
        count = len(text.split())
        if count < least:
            return "too-short", f"{count} words, the parent has {len(parent.split())}"
        if count > most:
            return "too-long", f"{count} words, the parent has {len(parent.split())}"
        return None

    def _sameness(self, text: str, parent: str) -> Broken | None:
        words, before = task_words(text), task_words(parent)
        likeness = 1.0 if words == before else jaccard(features(words), features(before))
        return (
            ("no-new-task", f"{likeness:.2f} like its parent")
            if likeness >= self._limits.near_parent
            else None
        )

    def repeats(self, text: str) -> Broken | None:
        words = task_words(text)
        if words in self._kept:
            return "duplicate", self._kept[words]
        near = self._near.nearest(words)
        return ("near-duplicate", f"{near[1]:.2f} like {near[0]}") if near else None


def purpose(text: str) -> Broken | None:
    """Whether code in Python that runs by itself is asked for; for seeds too."""
    if found := _LANGUAGES.search(text):
        return "other-language", found.group()
    if found := _TALK.search(text):
        return "no-code-asked", found.group()
    if not _CODE.search(text):
        return "no-code-asked", text[:80]
    if found := _OUTSIDE.search(text):
        return "needs-outside", found.group()
    return None


def _talk(text: str) -> Broken | None:
    if len(text.split()) < 4:
        return "empty", text
    if found := _REFUSAL.search(text):
        return "refusal", found.group()
    lower = text.lower()
    if phrase := next((each for each in FORBIDDEN if each in lower), None):
        return "forbidden-words", phrase
    if found := _ECHO.search(text):
        return "echoes-request", found.group()
    if len(_BLOCK.sub(" ", text).split()) < 4:
        return "code-alone", text[:80]
    words = lower.split()
    runs = Counter(tuple(words[start : start + _RUN]) for start in range(len(words) - _RUN + 1))
    run, times = max(runs.items(), key=lambda item: item[1], default=((), 0))
    return ("repeats-itself", " ".join(run)) if times >= _TIMES else None


def _solution(text: str, parent: str, method: str) -> Broken | None:
    found = _FENCE.search(text)
    if found and method != "wrong-code" and not _FENCE.search(parent):
        return "answers-itself", text[found.start() : found.start() + 80]
    return None
