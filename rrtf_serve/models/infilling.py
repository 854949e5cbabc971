"""Prompts whose completion goes between a prefix and a suffix, with pieces of other files where they fit.

    infilling = Infilling(tokenizer, family.fim, bos)
    infilling.limited(prefix, suffix, budget_tokens, Setting("a.py", (("b.py", "def f(): ..."),)))

Layouts of several files, `name\\ntext` each:

before   Qwen2.5-Coder: the other files and the file's own name stand before the prefix marker
         (https://github.com/QwenLM/Qwen2.5-Coder, "Repository-level code completion")
between  StarCoder2: the other files before the marker, the file's own name after it (arXiv 2402.19173, 5.1)
within   StarCoder: everything after the marker, since whole documents with their headers were cut for
         infilling in training (arXiv 2305.06161, section 5)
none     the others: files as comments of the language at the top of the prefix, where its name tells which
         language that is; DeepSeek-Coder's own form of it, `#name` and the text as it is, was trained

No text of a user becomes a marker.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from rrtf_serve.models.families import Fim
from rrtf_serve.models.syntax import syntax_named
from rrtf_serve.models.tokens import Tokenizer

# Far more characters than code has per token: longer text is cut before it is encoded, which is what costs.
_CHARACTERS_PER_TOKEN = 32
_NAME_CHARACTERS = 256
_LEAST_SNIPPET = 8  # tokens of a snippet's text; fewer say nothing

_CONTINUATIONS = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))


class PromptError(ValueError):
    """This model can't be asked that way, or the request does not fit; the message names the field."""


@dataclass(frozen=True)
class Setting:
    """Where the text to fill stands. Empty strings: not known."""

    filename: str = ""
    snippets: tuple[tuple[str, str], ...] = ()  # file name and text, the most useful first
    repository: str = ""


NOWHERE = Setting()


class Infilling:
    """For one model that has the markers of `fim` in its vocabulary; `bos` goes before every prompt."""

    def __init__(self, tokenizer: Tokenizer, fim: Fim, bos: Sequence[int]) -> None:
        """Raises PromptError where a marker is missing."""
        self._tokenizer = tokenizer
        self._fim = fim
        self._bos = list(bos)
        markers = [tokenizer.token_id(marker) for marker in (fim.prefix, fim.suffix, fim.middle)]
        known = [token for token in markers if token is not None]
        if len(known) < 3:
            raise PromptError("suffix: the model's vocabulary has no infilling markers")
        self._start, self._gap, self._end = known
        repo, file = (tokenizer.token_id(marker) if marker else None for marker in (fim.repo, fim.file))
        self._repo, self._file = repo, file

    def whole(self, prefix: str, suffix: str) -> list[int]:
        return self._prompt([], [], *self._encoded(prefix, suffix))

    def limited(self, prefix: str, suffix: str, budget_tokens: int, setting: Setting = NOWHERE) -> list[int]:
        """As `whole`, in at most `budget_tokens`, markers and BOS included.

        What does not fit goes: first what `setting` says, then the far ends, in whole lines where the lines
        are not too long: the start of the prefix and the end of the suffix. The suffix keeps at least a
        quarter of the room when it needs it. Raises PromptError on a budget without room for text.
        """
        room = budget_tokens - len(self._prompt([], [], [], []))
        if room < 1:
            raise PromptError(f"a prompt of {budget_tokens} tokens leaves no room for text; lower max_tokens")
        characters = room * _CHARACTERS_PER_TOKEN
        before, after = self._encoded(prefix[-characters:], suffix[:characters])
        cut = len(prefix) > characters, len(suffix) > characters
        kept_after = min(len(after), max(room // 4, room - len(before)))
        kept_before = min(len(before), room - kept_after)
        if kept_before < len(before) or cut[0]:
            before = _from_line_start(self._tokenizer, before[len(before) - kept_before :])
        if kept_after < len(after) or cut[1]:
            after = _to_line_end(self._tokenizer, after[:kept_after])
        outside, inside = self._around(setting, room - kept_before - kept_after)
        return self._prompt(outside, inside, before, after)

    def _encoded(self, prefix: str, suffix: str) -> tuple[list[int], list[int]]:
        encode = self._tokenizer.encode
        return encode(prefix, specials=False), encode(suffix, specials=False, continues=True)

    def _prompt(
        self, outside: list[int], inside: list[int], before: list[int], after: list[int]
    ) -> list[int]:
        head = [*self._bos, *outside, self._start]
        if self._fim.layout == "SPM":
            return [*head, self._gap, *after, self._end, *inside, *before]
        return [*head, *inside, *before, self._gap, *after, self._end]

    def _around(self, setting: Setting, room: int) -> tuple[list[int], list[int]]:
        """What goes before the prefix marker, and what right after it, in at most `room` tokens."""
        if self._file is None or not self._fim.files:
            return [], self._comments(setting, room)
        name = self._name(setting.filename)
        own = [self._file, *name] if name else []
        header: list[int] = []
        if setting.repository and self._repo is not None:
            # Only Qwen's ends its line.
            ended = self._fim.files == "before"
            header = [self._repo, *self._text(_one_line(setting.repository) + ("\n" if ended else ""))]
        if setting.snippets and not own:
            own = [self._file]
        if len(header) + len(own) > room:
            return [], []
        room -= len(header) + len(own)
        files: list[int] = []
        for filename, text in setting.snippets:
            title = [self._file, *self._name(filename)]
            body = self._fitting(text, room - len(title))
            if body:
                files = [*title, *body, *files]  # the most useful next to the cursor
                room -= len(title) + len(body)
        if not files and not name:
            return [], []
        if self._fim.files == "within":
            return [], [*header, *files, *own]
        if self._fim.files == "between":
            return [*header, *files, self._file], own[1:]
        return [*header, *files, *own], []

    def _comments(self, setting: Setting, room: int) -> list[int]:
        mark = self._fim.file_comment
        inside: list[int] = []
        for filename, text in setting.snippets:
            name = _one_line(filename)
            if mark:
                shown = f"{mark}{name}\n{text.rstrip()}\n"
            else:
                syntax = syntax_named(setting.filename) if setting.filename else None
                if syntax is None or not syntax.line_comment:
                    return []
                lines = [f"Path: {name}", *text.rstrip().split("\n")]
                shown = "".join(f"{syntax.line_comment} {line}".rstrip() + "\n" for line in lines)
            body = self._fitting(shown, room)
            inside = [*body, *inside]
            room -= len(body)
        own = self._text(f"{mark}{_one_line(setting.filename)}\n") if mark and inside else []
        return [*inside, *own] if len(own) <= room else inside

    def _fitting(self, text: str, room: int) -> list[int]:
        """As many whole lines as fit; none where that is next to nothing."""
        text = text.rstrip() + "\n"
        if room < 1 or not text.strip():
            return []
        ids = self._text(text[: room * _CHARACTERS_PER_TOKEN])
        if len(ids) <= room and len(text) <= room * _CHARACTERS_PER_TOKEN:
            return ids
        kept = _to_line_end(self._tokenizer, ids[:room])
        return kept if len(kept) >= _LEAST_SNIPPET else []

    def _name(self, filename: str) -> list[int]:
        name = _one_line(filename)
        return self._text(f"{name}\n") if name else []

    def _text(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, specials=False, continues=True)


def ending_in(tokenizer: Tokenizer, text: str, room: int) -> list[int]:
    """The end of a text in at most `room` tokens."""
    characters = room * _CHARACTERS_PER_TOKEN
    ids = tokenizer.encode(text[-characters:], specials=False)
    if len(ids) <= room and len(text) <= characters:
        return ids
    return _from_line_start(tokenizer, ids[max(0, len(ids) - room) :])


def _from_line_start(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Without the rest of a line at the beginning, unless that is half of the text; at any rate without the
    rest of a character."""
    for index, token in enumerate(ids[: len(ids) // 2]):
        text = tokenizer.token_bytes(token)
        if text.endswith(b"\n"):
            return ids[index + 1 :]
        if text.startswith(b"\n"):
            return ids[index:]
    while ids and tokenizer.token_bytes(ids[0])[:1] in _CONTINUATIONS:
        ids = ids[1:]  # the rest of a character whose start was cut away
    return ids


def _to_line_end(tokenizer: Tokenizer, ids: list[int]) -> list[int]:
    """Likewise at the end."""
    for index in range(len(ids) - 1, len(ids) // 2, -1):
        text = tokenizer.token_bytes(ids[index])
        if text.endswith(b"\n"):
            return ids[: index + 1]
        if text.startswith(b"\n"):
            return ids[:index]
    for length in range(len(ids), max(len(ids) - 4, -1), -1):  # a character has at most four bytes
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.decode(b"".join(tokenizer.token_bytes(token) for token in ids[:length][-4:]))
        if not decoder.getstate()[0]:  # no bytes wait for the rest of their character
            return ids[:length]
    return ids


def _one_line(name: str) -> str:
    return " ".join(name[-_NAME_CHARACTERS:].split())
