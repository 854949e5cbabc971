"""Code, character by character: which characters are code, and which brackets are open.

A rough reading that suits every language alike: it knows strings, comments and brackets, no grammar. What it
gets wrong (a regular expression that holds a quote, say) it gets over at the end of the line.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from rrtf_serve.models.syntax import Syntax

CLOSERS = {")": "(", "]": "[", "}": "{"}
OPENERS = {opener: closer for closer, opener in CLOSERS.items()}


class Scanner:
    """`mode` is that of the characters taken so far; `open` holds the brackets that they opened and left
    open, and `closed` counts, by closing bracket, those that something before them must have opened."""

    def __init__(self, syntax: Syntax, *, like: Scanner | None = None) -> None:
        """`like`: go on inside the string or comment in which that one ended."""
        self.mode: Literal["code", "string", "line comment", "block comment"] = "code"
        self.open: list[str] = []
        self.closed: Counter[str] = Counter()
        self._syntax = syntax
        self._delimiter = ""
        self._recent = ""  # the last characters of this mode: what two or three of them mean together
        self._escaped = False
        if like is not None:
            self.mode, self._delimiter, self._escaped = like.mode, like._delimiter, like._escaped
            self._recent = like._recent

    def take(self, text: Iterable[str]) -> Scanner:
        for character in text:
            self.step(character)
        return self

    def step(self, character: str) -> bool:
        """Whether the character is code: not in a string and not in a comment."""
        if self.mode == "code":
            return self._code(character)
        if self.mode == "string":
            return self._string(character)
        if self.mode == "line comment":
            if character == "\n":
                self._enter("code")
                return True
            return False
        assert self._syntax.block_comment is not None
        end = self._syntax.block_comment[1]
        self._recent = (self._recent + character)[-len(end) :]
        if self._recent == end:
            self._enter("code")
        return False

    def _enter(self, mode: Literal["code", "string", "line comment", "block comment"]) -> None:
        self.mode, self._recent, self._escaped = mode, "", False

    def _code(self, character: str) -> bool:
        syntax = self._syntax
        self._recent = (self._recent + character)[-2:]
        if syntax.line_comment and self._recent.endswith(syntax.line_comment):
            self._enter("line comment")
            return False
        if syntax.block_comment is not None and self._recent.endswith(syntax.block_comment[0]):
            self._enter("block comment")
            return False
        if character in syntax.quotes:
            self._enter("string")
            self._delimiter = character
            return True
        if character in OPENERS:
            self.open.append(character)
        elif character in CLOSERS:
            self._close(character)
        return True

    def _close(self, closer: str) -> None:
        opener = CLOSERS[closer]
        if opener not in self.open:
            self.closed[closer] += 1
            return
        while self.open.pop() != opener:  # whatever was left open inside ends with it
            pass

    def _string(self, character: str) -> bool:
        quote = self._delimiter[0]
        if len(self._delimiter) == 1 and self._recent == quote != character:  # "" was all of it
            self._enter("code")
            return self._code(character)
        if self._escaped:
            self._escaped = False
            self._recent += "."
        elif character == "\\":
            self._escaped = True
        elif character == "\n" and len(self._delimiter) == 1 and quote != "`":
            self._enter("code")
            return True
        elif character == quote:
            return self._quote(quote)
        else:
            self._recent = "."
        return False

    def _quote(self, quote: str) -> bool:
        """A quote inside a string: its end, unless the first two of three have just begun it."""
        if len(self._delimiter) == 3:
            self._recent = (self._recent + quote)[-3:]
            if self._recent == self._delimiter:
                self._enter("code")
                return True
            return False
        if self._syntax.long_quotes and not self._recent:
            self._recent = quote  # "" or the beginning of three
            return True
        if self._syntax.long_quotes and self._recent == quote:
            self._delimiter, self._recent = quote * 3, ""
            return True
        self._enter("code")
        return True
