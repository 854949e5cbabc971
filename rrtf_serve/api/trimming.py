"""Ends a completion where an editor wants it to end, as its text comes.

    cursor = Cursor(prefix, suffix, filename)   # once per request
    trim = Trim(cursor)                         # once per completion
    text, ended = trim.push("return a + b\\n")  # what is safe to show
    text = trim.flush()                         # the rest, once the model has ended by itself

What comes out is always a beginning of what went in, and the same however that was cut into pieces. It ends

- at a blank line after a complete statement, unless the next line with text in it is indented deeper than
  where the completion began: then a body is still open;
- where the block closes that the cursor's own line begins, or the one that the cursor stands in;
- before a bracket that the suffix closes already;
- before a line that is the suffix's first one with text in it;
- at the line's end where text follows the cursor on its line, unless that only closes what stands before the
  cursor (as editors write it by themselves) and the completion begins on the next line;

and it never ends with what the suffix begins with, unless that would cut a word in two. Blocks are told by
brackets, by indentation, and by the words and tags that close one.
"""

from __future__ import annotations

from collections import Counter

from rrtf_serve.api.scanner import CLOSERS, Scanner
from rrtf_serve.models.syntax import HASH, PROSE, syntax_of

NEAR = 8000  # characters before and after the cursor that are looked at
OVERLAP = 1000  # characters of the suffix that a completion may end with
BLANK_LINES = 2  # in a row; more end it, since models that have nothing more to say may go on with them
_TAB = 4

# What goes on with a statement whose block has just closed, at the beginning of a line.
_WORDS = (
    *("else", "elif", "elsif", "except", "finally", "catch", "rescue", "ensure", "when", "case"),
    *("end", "endif", "endfor", "endforeach", "endwhile", "endfunction", "endmacro", "endef", "\\end"),
)
# The same where a line before it ends with that word; elsewhere they are names like any other.
_WORDS_AFTER = {"fi": "then", "done": "do", "esac": "in", "until": "repeat"}
_SIGNS = ".{|&?:,)]}"
_OPEN_ENDS = frozenset("([{,:=+-*/%&|^~<.\\?@")


class Cursor:
    """What the text around the cursor says of where a completion ends. Read-only; shared by all rows."""

    def __init__(self, prefix: str, suffix: str, filename: str | None = None) -> None:
        near = prefix[-NEAR:]
        if len(near) < len(prefix):
            near = near.partition("\n")[2]
        after = suffix[:NEAR]
        self.syntax = syntax_of(filename, near + after)
        self.before = Scanner(self.syntax).take(near)
        line = near.rpartition("\n")[2]
        self.line = line
        self.line_is_blank = not line.strip()
        self.indentation = _width(line)
        self.head = after[:OVERLAP]
        own = after.partition("\n")[0]
        self.cuts_line = bool(own.strip()) and not self.line_is_blank
        self.starts_line = self.line_is_blank and bool(own.strip())  # what comes next stands on its own line
        self.in_word = _is_word(line[-1:]) and _is_word(own[:1])
        self.next_line = self._next_line(line, after)
        self.closes_line = self.cuts_line and (own.lstrip().startswith("</") or not own.strip(" \t\r)]};,"))
        self.line_ends = _line_ends(near)
        self.may_close = self._may_close(after)

    def _next_line(self, line: str, after: str) -> str | None:
        """The first line below the completion that says something, whole but for the space at its end."""
        own, _, below = after.partition("\n")
        if own.strip():
            return (line + own).rstrip() if self.line_is_blank and _says_something(own) else None
        first = next((each for each in below.split("\n") if each.strip()), "")
        return first.rstrip() if _says_something(first) else None

    def _may_close(self, after: str) -> Counter[str]:
        """By closing bracket, how many are open before the cursor and not closed after it."""
        rest = Scanner(self.syntax, like=self.before).take(after)
        opened = Counter(self.before.open)
        left = {closer: opened[opener] - rest.closed[closer] for closer, opener in CLOSERS.items()}
        return Counter({closer: count for closer, count in left.items() if count > 0})


class Trim:
    def __init__(self, cursor: Cursor) -> None:
        self.ended = False
        self._cursor = cursor
        self._text = ""
        self._shown = 0  # characters
        self._scanner = Scanner(cursor.syntax, like=cursor.before)
        self._content = 0  # where the last line with text in it ends, trailing space left out
        self._last = self._before_last = ""  # the last two characters of code that are not space
        self._lines = 0  # line breaks so far
        self._below = 0  # lines with text in them, below the cursor's
        self._line = 0  # where the line begins
        self._above = 0  # where the last line above it with text in it ends
        self._blank = cursor.line_is_blank  # nothing stands in the line yet
        self._paused = 0  # blank lines of which the next line's indentation will tell whether they end it
        self._word: int | None = None  # where a line's first word begins, while it is not decided
        self._base = None if cursor.line_is_blank else cursor.indentation
        self._own_block = False  # the cursor's line begins a block
        self._left = False  # the block that the cursor stands in has closed

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is safe to show, and whether the completion has ended; afterwards nothing more comes."""
        for character in text:
            if self.ended:
                break
            self._text += character
            end = self._step(character)
            if end is not None:
                self._end(end)
        if self.ended:
            return self._show(len(self._text)), True
        return self._show(self._safe()), False

    def flush(self) -> str:
        """What was held back, when the text ends by itself."""
        if not self.ended:
            if self._repeats():
                self._end(self._end_above())
            else:
                self._end(self._whole_lines() if self._paused else len(self._text))
        return self._show(len(self._text))

    def _show(self, end: int) -> str:
        start, self._shown = self._shown, max(self._shown, end)
        return self._text[start:end]

    def _end(self, end: int) -> None:
        """Keep so many characters, less what the suffix says again and the space before a line break."""
        head = self._cursor.head
        text = self._text[:end]
        kept = text[: self._overlap(text, exact=True)]
        if not head.strip() or head[0] in "\r\n":
            if kept == text:  # without the space at its end it may say it after all
                text = text.rstrip()
                kept = text[: self._overlap(text, exact=True)]
            kept = kept.rstrip()
        self._text, self.ended = kept, True

    def _safe(self) -> int:
        """How much stays whatever comes."""
        text = self._text if self._word is None else self._text[: self._word]
        if self._repeats(beginning=True):
            text = text[: self._line]
        text = text.rstrip()
        return len(text[: self._overlap(text, exact=False)].rstrip())

    def _overlap(self, text: str, *, exact: bool) -> int:
        """Where the text begins to say what the suffix begins with, up to its end; its length if nowhere."""
        head = self._cursor.head
        if not head:
            return len(text)
        start = max(0, len(text) - len(head))
        while (start := text.find(head[0], start)) >= 0:
            repeats = head.startswith(text[start:]) and not self._cuts_word(text, start)
            if repeats and not (exact and self._belongs(text, start)):
                return start
            start += 1
        return len(text)

    def _cuts_word(self, text: str, start: int) -> bool:
        """Whether text[start:] begins inside a word and the suffix does not: `e` of `value` before `e)`."""
        return (
            start > 0
            and not self._cursor.in_word
            and _is_word(text[start - 1])
            and _is_word(text[start : start + 1])
        )

    def _repeats(self, *, beginning: bool = False) -> bool:
        """Whether the line is the suffix's next one, or, with `beginning`, may still become it."""
        cursor = self._cursor
        if cursor.next_line is None or not (self._lines or cursor.line_is_blank):
            return False
        line = self._text[self._line :] if self._lines else cursor.line + self._text
        if beginning:
            return cursor.next_line.startswith(line) or line.rstrip() == cursor.next_line
        return line.rstrip() == cursor.next_line

    def _end_above(self) -> int:
        """The end of the line above with text in it, with its line break where what comes next needs one."""
        if self._cursor.starts_line:
            return self._text.find("\n", self._above) + 1 if self._above else 0
        return self._above

    def _belongs(self, text: str, start: int) -> bool:
        """Whether text[start:] closes brackets that the completion itself opened, and does nothing else:
        `f(a)` before `)` is not a repetition."""
        tail = text[start:]
        if not tail.strip() or any(each not in ")]};," for each in tail if not each.isspace()):
            return False
        own = Scanner(self._cursor.syntax, like=self._cursor.before).take(text[:start]).open
        return any(CLOSERS.get(each) in own for each in tail)

    def _step(self, character: str) -> int | None:
        """Where the completion ends, once that is known."""
        at = len(self._text) - 1
        scanner, cursor = self._scanner, self._cursor
        closed = sum(scanner.closed.values())
        was_code = scanner.mode == "code"
        code = scanner.step(character)
        if character.isspace():
            return self._space(at, character)
        if self._paused and not self._goes_on(at):
            return self._whole_lines()
        if sum(scanner.closed.values()) > closed:
            if scanner.closed[character] > cursor.may_close[character] and not self._is_text(character):
                return at
            self._left = self._left or character == "}"
        if self._blank and self._lines:
            self._below += 1
            if was_code and (end := self._first_of_line(at, character)) is not None:
                return end
        self._blank = False
        if code:
            self._last, self._before_last = character, self._last
        elif was_code and len(cursor.syntax.line_comment) != 1:  # its first character looked like code
            self._last = self._before_last
        if self._word is not None and (end := self._decide(at, character)) is not None:
            return end
        if self._word is None:
            self._content = at + 1
        if self._base is None:
            self._base = self._indentation(at)
        return None

    def _is_text(self, character: str) -> bool:
        """Whether a bracket that closes nothing means nothing: in prose, and in a shell's `case`."""
        syntax = self._cursor.syntax
        return character == ")" and (syntax == PROSE or (syntax == HASH and self._follows("in")))

    def _follows(self, word: str) -> bool:
        """Whether a line before this one, the cursor's own included, ends with the word."""
        above = self._cursor.line + self._text[: self._line]
        return word in self._cursor.line_ends or word in _line_ends(above)

    def _space(self, at: int, character: str) -> int | None:
        if character != "\n":
            return self._decide(at, character)
        end = self._end_above() if self._repeats() else None
        if end is None and self._scanner.mode == "code":
            end = self._line_ended(at)
        self._lines += 1
        self._line, self._blank, self._above = at + 1, True, self._content
        return end

    def _goes_on(self, at: int) -> bool:
        """Whether the first line with text after blank ones belongs to a body that is open."""
        self._paused = 0
        return self._base is None or self._indentation(at) > self._base

    def _indentation(self, at: int) -> int:
        line = self._text[self._line : at]
        return _width(line) if self._lines else self._cursor.indentation + _width(line)

    def _first_of_line(self, at: int, character: str) -> int | None:
        """The first character of a line is there: whether the line belongs to the completion."""
        if self._scanner.open or self._base is None or self._directive(character):
            return None
        indentation = self._indentation(at)
        if character not in CLOSERS and indentation < self._base:
            return self._whole_lines()
        if indentation > self._base:
            self._own_block = self._own_block or (self._below == 1 and not self._cursor.line_is_blank)
        elif (self._own_block or self._left) and character not in _SIGNS:
            self._word = at
        return None

    def _directive(self, character: str) -> bool:
        """A preprocessor's line stands at the margin, wherever it belongs."""
        return character == "#" and self._cursor.syntax.line_comment == "//"

    def _decide(self, at: int, character: str) -> int | None:
        """Whether the line whose first word is being read goes on with the statement before it."""
        if self._word is None:
            return None
        word = self._text[self._word : at + 1]
        if word in ("<", "\\"):
            return None
        if word != "</":  # a tag that closes
            unfinished = _is_word(character)
            found = [
                each
                for each in (*_WORDS, *_WORDS_AFTER)
                if (each.startswith(word) if unfinished else each == word[:-1])
            ]
            if not any(each in _WORDS or self._follows(_WORDS_AFTER[each]) for each in found):
                return self._whole_lines()
            if unfinished:
                return None
        self._word, self._left = None, False
        self._content = len(self._text[: at + 1].rstrip())
        return None

    def _line_ended(self, at: int) -> int | None:
        end = self._decide(at, "\n")
        if end is not None:
            return end
        if not self._lines:
            self._own_block = bool(self._scanner.open) and not self._cursor.line_is_blank
        if self._content and not self._scanner.open:
            if self._cursor.cuts_line and not self._fills_block():
                return self._content
            if self._blank and self._lines and self._last not in _OPEN_ENDS:
                self._paused += 1
                if self._paused > BLANK_LINES:
                    return self._whole_lines()
        return None

    def _fills_block(self) -> bool:
        """Whether it began on the line below a cursor after which its block closes."""
        return self._cursor.closes_line and self._text.lstrip(" \t\r").startswith("\n")

    def _whole_lines(self) -> int:
        """The end of the last line that belongs to the completion; with its line break where what comes next
        needs a line of its own."""
        if self._cursor.starts_line or self._fills_block():
            return self._text.find("\n", self._content) + 1
        return self._content


def _line_ends(text: str) -> frozenset[str]:
    """The last word of each line."""
    lines = text.split("\n")
    return frozenset(words[-1] for line in lines if (words := line.replace(";", " ").split()))


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _says_something(line: str) -> bool:
    """A bracket alone may close anything."""
    return any(_is_word(each) for each in line)


def _width(line: str) -> int:
    """Of its leading space, in columns."""
    expanded = line.expandtabs(_TAB)
    return len(expanded) - len(expanded.lstrip())
