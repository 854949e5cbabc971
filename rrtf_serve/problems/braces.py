"""Whether a C++ or Bash programme has closed every brace it opened.

Braces in comments, strings and character constants are text; in Bash also those of expansions, and those that
don't stand where a command begins. Macros and aliases are not expanded.
"""

from __future__ import annotations

import re

# C++ ([lex]): what may hold a brace that is none. Numbers, because ' separates their digits.
_CPP = re.compile(
    r"""
      //(?:\\\n|[^\n])*
    | /\*.*?(?:\*/|\Z)
    | (?:u8|[uUL])?R"([^()\\\s]{0,16})\(.*?(?:\)\1"|\Z)
    | "(?:\\.|[^"\\\n])*"?
    | \.?\d(?:'?[\w.])*
    | \w+
    | '(?:\\.|[^'\\\n])*'?
    | [^\w"'/{}.]+
    | .
    """,
    re.VERBOSE | re.DOTALL,
)

# Bash (POSIX.1-2024, XCU 2.2 and 2.10), by what the scanner is inside of.
_QUOTED = re.compile(r'\\.|\$\(\(|\$\(|\$\{|"|[^\\$"]+|.', re.DOTALL)
_EXPANSION = re.compile(r"\\.|\$\(\(|\$\(|\$\{|\"|\}|[^\\$\"}']+|.", re.DOTALL)
_ARITHMETIC = re.compile(r"\\.|\$\(\(|\$\(|\$\{|\"|'[^']*'?|[()]|[^\\$\"'()]+|.", re.DOTALL)
_CODE = re.compile(
    r"""
      \\.
    | \$?'(?:(?<=\$')(?:\\.|[^'\\])*|[^']*)'?
    | \$?"
    | \$?\(\(? | \)
    | \$\{
    | \$[^\s"'({]
    | <<<
    | <<-?[ \t]*(?:'[^'\n]*'|"[^"\n]*"|\\?[\w.-]+)
    | \n | [;&|]+ | [ \t\r]+ | [{}]
    | \#[^\n]*
    | [^\s\\'"$(){}<>;&|#][^\s\\'"$(){}<>;&|]*
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_BEFORE_COMMANDS = {"then", "do", "else", "elif", "if", "while", "until", "time", "!"}
_AFTER_COMMANDS = {"fi", "done", "esac", "}"}
_RULES = {'"': _QUOTED, "${": _EXPANSION, "((": _ARITHMETIC, "$((": _ARITHMETIC}


def closes_all(program: str, language: str) -> bool:
    """Whether as many braces are closed as are opened. `language` is "cpp" or "bash"; in any other each brace
    counts."""
    if language == "bash":
        return _Bash(program).depth == 0
    if language != "cpp":
        return program.count("{") == program.count("}")
    depth = 0
    for token in _CPP.finditer(program):
        depth += (token[0] == "{") - (token[0] == "}")
    return depth == 0


class _Bash:
    """Reads a script once, from its beginning; `depth` is the number of braces left open."""

    def __init__(self, text: str) -> None:
        self.depth = 0
        self._text = text
        self._inside: list[str] = []  # quotes, expansions and brackets that are open
        self._command = True  # a command may begin here
        self._glued = False  # nothing stands between the last token and this place
        self._word = ""  # the last whole word
        self._first = ""  # the command's first word
        self._documents: list[str] = []  # here-documents that begin with the next line
        at = 0
        while at < len(text):
            within = self._inside[-1] if self._inside else ""
            token = _RULES.get(within, _CODE).match(text, at)
            if token is None:  # not reached: each rule ends in "any character"
                break
            at = token.end()
            if within in _RULES:
                self._expand(token[0], within)
            elif token[0].startswith("#"):  # a comment, but for a # within a word
                at = token.start() + 1 if self._glued else at
            elif token[0] == "\n":
                self._separate()
                at = self._skip_documents(at)
            else:
                self._read(token[0], text[at : at + 1])

    def _expand(self, token: str, within: str) -> None:
        """Inside of quotes, an expansion or arithmetic."""
        ends = {'"': '"', "${": "}", "((": ")", "$((": ")"}
        if token in ("$(", "$((", "${") or (token == '"' and within != '"'):
            self._enter(token)
        elif token == "(" and within.endswith("(("):
            self._inside.append(within)
        elif token == ends[within]:
            self._leave()

    def _read(self, token: str, following: str) -> None:
        """A token of commands."""
        if token.endswith('"'):
            self._enter('"')
        elif token in ("(", "((", "$(", "$((", "${"):
            self._enter(token)
        elif token == ")":
            if self._inside:
                self._leave()
            else:  # of a pattern
                self._separate()
        elif token[0] in ";&|":
            self._separate()
        elif token.isspace():
            self._glued = False
        elif token in "{}" and self._is_brace(token, following):
            self.depth += 1 if token == "{" else -1
            self._separate()
            self._command = token == "{"
            self._word = token
        else:
            if token.startswith("<<") and token != "<<<":
                self._documents.append(token)
            self._add_word(token)

    def _is_brace(self, token: str, following: str) -> bool:
        if self._glued:
            return False
        if token == "{":
            return (self._command or self._first == "function") and (not following or following.isspace())
        return (self._command or self._word in _AFTER_COMMANDS) and (
            not following or following in " \t\r\n;&|)<>"
        )

    def _add_word(self, token: str) -> None:
        if self._command:
            self._first = token
        self._command = self._command and not self._glued and token in _BEFORE_COMMANDS
        self._word = "" if self._glued else token
        self._glued = True

    def _separate(self) -> None:
        """A command has ended."""
        self._command, self._glued, self._word, self._first = True, False, "", ""

    def _enter(self, token: str) -> None:
        self._inside.append(token)
        if token.endswith("(("):
            self._inside.append(token)  # it ends with two brackets
        if token in ("(", "$("):
            self._separate()

    def _leave(self) -> None:
        ended = self._inside.pop()
        if ended in ("(", "(("):
            self._separate()
        else:  # part of a word
            self._command, self._glued, self._word = False, True, ""

    def _skip_documents(self, at: int) -> int:
        """Past the here-documents that were announced in the line before `at`."""
        for announced in self._documents:
            end = announced.lstrip("<-").strip(" \t").strip("'\"\\")
            tabs = r"\t*" if announced.startswith("<<-") else ""
            found = re.compile(rf"^{tabs}{re.escape(end)}$", re.MULTILINE).search(self._text, at)
            at = found.end() if found else len(self._text)
        self._documents.clear()
        return at
