"""Are the answers of a loaded server right? Each repeatable one must be what the same prompt got alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.load_client import Reply

SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class Alone:
    """What a question got while nothing else ran. texts, finishes: by choice."""

    texts: Mapping[int, str]
    finishes: Mapping[int, str]
    prompt_tokens: int | None
    completion_tokens: int


@dataclass(frozen=True)
class Wrong:
    """One wrong answer. came, expected: from where they begin to differ."""

    kind: str
    problem: str
    came: str = ""
    expected: str = ""

    def line(self) -> str:
        shown = f": {self.came!r}, alone {self.expected!r}" if self.came or self.expected else ""
        return f"{self.kind}: {self.problem}{shown}"


def alone_of(reply: Reply) -> Alone:
    return Alone(dict(reply.texts), dict(reply.finishes), reply.prompt_tokens, reply.completion_tokens)


def check(replies: Iterable[Reply], alone: Mapping[str, Alone]) -> list[Wrong]:
    """Everything that is wrong with these replies. alone: by Ask.question, of every repeatable one."""
    replies = list(replies)
    found = [Wrong(reply.ask.kind, fault) for reply in replies for fault in reply.faults]
    for reply in replies:
        if not reply.faults:
            found += _repeated(reply, alone) if reply.ask.repeatable else []
    twice = [name for name, count in Counter(reply.id for reply in replies if reply.id).items() if count > 1]
    return found + [Wrong("all", f"the id {name} came with several answers") for name in twice]


def _repeated(reply: Reply, alone: Mapping[str, Alone]) -> list[Wrong]:
    expected, kind = alone[reply.ask.question], reply.ask.kind
    if not set(reply.texts) <= set(expected.texts):
        return [Wrong(kind, f"choices {sorted(reply.texts)} came, alone {sorted(expected.texts)}")]
    found = []
    if reply.left and not any(reply.texts.values()):
        found.append(Wrong(kind, "nothing had come when the client left"))
    for index, finish in sorted(reply.finishes.items()):
        if finish != expected.finishes.get(index):
            found.append(Wrong(kind, "finish_reason", finish, str(expected.finishes.get(index))))
    for index, text in sorted(reply.texts.items()):
        right = expected.texts[index]
        if text == right or (reply.left and right.startswith(text)):
            continue
        at = next((i for i, (a, b) in enumerate(zip(text, right, strict=False)) if a != b), None)
        start = min(len(text), len(right)) if at is None else at
        came, wanted = (each[start : start + SHOWN_CHARACTERS] for each in (text, right))
        whose = _owner_of(text, reply.ask.question, alone)
        problem = f"the answer to another prompt ({whose})" if whose else f"differs from character {start} on"
        found.append(Wrong(kind, problem, came, wanted))
    if not (reply.left or found) and expected.prompt_tokens is not None and reply.prompt_tokens is not None:
        counts = (reply.prompt_tokens, reply.completion_tokens)
        right_counts = (expected.prompt_tokens, expected.completion_tokens)
        if counts != right_counts:
            found.append(Wrong(kind, f"usage is {counts}, and was {right_counts} alone"))
    return found


def _owner_of(text: str, question: str, alone: Mapping[str, Alone]) -> str:
    """The other question that got this very answer alone; empty where none did."""
    if not text.strip():
        return ""
    return next(
        (
            each[:SHOWN_CHARACTERS]
            for each in alone
            if each != question and text in alone[each].texts.values()
        ),
        "",
    )
