"""What a load asks of a server: requests of many kinds, made of the tutorial's problems, never of test sets.

`code` is what editors and people ask a code server: completions short and long, fill in the middle, chat,
streamed and whole, one and several choices and prompts, greedy and drawn, and some that go away half-way.
`plain` is the part of it that every OpenAI-compatible server answers, for comparing servers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import training

PROBLEMS = Path(training.__file__).parent / "demo" / "problems.jsonl"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
LONG_STUBS = 6  # solved functions before the one to write, in a long prompt
MIXES = ("code", "plain")
SAMPLED = {"temperature": 0.8, "top_p": 0.95}
# Drawn, from the likeliest token alone: an answer that is the same each time, on any engine.
TIED = {**SAMPLED, "top_k": 1}
GREEDY = {"temperature": 0}


@dataclass(frozen=True)
class Ask:
    """One request. leave_after: events of its stream after which the client goes away, None: it stays."""

    kind: str
    path: str
    body: dict[str, Any]
    leave_after: int | None = None
    # Sent as an editor's: the server keeps it short and lets it pass long ones. None: it tells by itself.
    interactive: bool | None = None

    @property
    def repeatable(self) -> bool:
        """Whether the same question gets the same answer each time."""
        return float(self.body["temperature"]) == 0 or self.body.get("top_k") == 1

    @property
    def choices(self) -> int:
        prompt = self.body.get("prompt")
        several = isinstance(prompt, list) and isinstance(prompt[0], str)
        return int(self.body.get("n", 1)) * (len(prompt or "") if several else 1)

    @property
    def streamed(self) -> bool:
        return bool(self.body.get("stream"))

    @property
    def question(self) -> str:
        """Equal for asks whose answers, if repeatable, must be equal: however sent, whoever leaves."""
        asked = {name: value for name, value in self.body.items() if name not in ("stream", "stream_options")}
        return json.dumps([self.path, self.interactive, asked], sort_keys=True)

    def alone(self) -> Ask:
        """The same question as one that stays and gets its answer whole."""
        body = {name: self.body[name] for name in self.body if name not in ("stream", "stream_options")}
        return Ask(self.kind, self.path, body, interactive=self.interactive)


@dataclass(frozen=True)
class Stub:
    """A function to write: what stands before its body, and the body."""

    head: str
    body: str


def stubs() -> list[Stub]:
    lines = PROBLEMS.read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    return [Stub(record["prompt"], record["canonical_solution"]) for record in records]


Maker = Callable[[list[Stub], int], tuple[str, dict[str, Any]]]


def _short(all_stubs: list[Stub], at: int) -> tuple[str, dict[str, Any]]:
    return COMPLETIONS, {"prompt": all_stubs[at].head, "max_tokens": 24}


def _two(all_stubs: list[Stub], at: int) -> tuple[str, dict[str, Any]]:
    heads = [all_stubs[(at + step) % len(all_stubs)].head for step in range(2)]
    return COMPLETIONS, {"prompt": heads, "max_tokens": 24}


def _long(all_stubs: list[Stub], at: int) -> tuple[str, dict[str, Any]]:
    before = [all_stubs[(at + step) % len(all_stubs)] for step in range(1, LONG_STUBS + 1)]
    solved = "\n\n".join(stub.head + stub.body for stub in before)
    return COMPLETIONS, {"prompt": f"{solved}\n\n{all_stubs[at].head}", "max_tokens": 96}


def _infill(all_stubs: list[Stub], at: int) -> tuple[str, dict[str, Any]]:
    stub = all_stubs[at]
    lines = stub.body.splitlines(keepends=True)
    middle = len(lines) // 2
    prefix = stub.head + "".join(lines[:middle]) + "    "
    return COMPLETIONS, {"prompt": prefix, "suffix": "\n" + "".join(lines[middle + 1 :]), "max_tokens": 32}


def _chat(all_stubs: list[Stub], at: int) -> tuple[str, dict[str, Any]]:
    text = f"Write this function in Python:\n\n{all_stubs[at].head}"
    return CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 64}


@dataclass(frozen=True)
class Kind:
    """How often it is asked, what, with which options; plain: how often in the mix `plain`; leave: asked in a
    stream that the client leaves; interactive: as in Ask."""

    share: int
    make: Maker
    options: dict[str, Any]
    plain: int = 0
    leave: bool = False
    interactive: bool | None = None


STREAM = {"stream": True, "stream_options": {"include_usage": True}}

KINDS = {
    "completion": Kind(6, _short, GREEDY, plain=6),
    "completion, streamed": Kind(6, _short, {**GREEDY, **STREAM}, plain=6),
    "completion, long, streamed": Kind(3, _long, {**GREEDY, **STREAM}, plain=3),
    "completion, likeliest, echo": Kind(2, _short, {**TIED, "echo": True}),
    "completion, likeliest, 3 choices": Kind(2, _short, {**TIED, "n": 3}),
    "completion, 2 prompts, 2 choices, streamed": Kind(1, _two, {**GREEDY, **STREAM, "n": 2}),
    "editor": Kind(2, _short, GREEDY, interactive=True),
    "editor, streamed": Kind(3, _short, {**GREEDY, **STREAM}, interactive=True),
    "infill": Kind(4, _infill, GREEDY),
    "infill, streamed": Kind(4, _infill, {**GREEDY, **STREAM}),
    # An editor's would often end before its client leaves.
    "infill, left": Kind(2, _infill, {**GREEDY, **STREAM, "max_tokens": 128}, leave=True, interactive=False),
    "chat": Kind(2, _chat, GREEDY, plain=2),
    "chat, streamed": Kind(4, _chat, {**GREEDY, **STREAM}, plain=4),
    "chat, likeliest, streamed": Kind(2, _chat, {**TIED, **STREAM}),
    "chat, sampled, streamed": Kind(1, _chat, {**SAMPLED, **STREAM}, plain=3),
    "chat, left": Kind(2, _chat, {**GREEDY, **STREAM, "max_tokens": 256}, leave=True),
}


def asks(count: int, *, mix: str, seed: int, infill: bool, model: str) -> list[Ask]:
    """`count` requests in a random order of their own; the same for the same arguments.

    infill: whether the model fills in the middle; where not, those requests are completions. Raises
    ValueError on an unknown mix.
    """
    if mix not in MIXES:
        raise ValueError(f"--mix {mix}: choose one of {', '.join(MIXES)}")
    drawn = random.Random(seed)
    all_stubs = stubs()
    shares = {
        name: kind.share if mix == "code" else kind.plain
        for name, kind in KINDS.items()
        if infill or not name.startswith("infill")
    }
    asked = {name: share for name, share in shares.items() if share}
    names = drawn.choices(list(asked), list(asked.values()), k=count)
    return [_ask(name, KINDS[name], all_stubs, drawn, model) for name in names]


def _ask(name: str, kind: Kind, all_stubs: list[Stub], drawn: random.Random, model: str) -> Ask:
    path, body = kind.make(all_stubs, drawn.randrange(len(all_stubs)))
    leave_after = drawn.randrange(1, 8) if kind.leave else None
    return Ask(name, path, {"model": model, **body, **kind.options}, leave_after, kind.interactive)
