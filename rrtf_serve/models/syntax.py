"""How languages write comments and strings, by the names of their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Syntax:
    line_comment: str = ""  # empty: none
    block_comment: tuple[str, str] | None = None
    quotes: str = "\"'"
    long_quotes: bool = False  # three quotes make a string of several lines


HASH = Syntax("#", long_quotes=True)
SLASHES = Syntax("//", ("/*", "*/"), quotes="\"'`")
# An apostrophe is more often a lifetime than a character.
RUST = Syntax("//", ("/*", "*/"), quotes='"')
DASHES = Syntax("--")
LISP = Syntax(";", quotes='"')
STYLE = Syntax("", ("/*", "*/"))
PROSE = Syntax(quotes="")

_EXTENSIONS = {
    HASH: "py pyi pyx rb sh bash zsh fish yaml yml toml r pl pm jl ex exs nix cmake mk tf ps1 coffee",
    SLASHES: "c h cc cpp cxx hpp hh java js jsx mjs cjs ts tsx go swift kt kts scala cs php dart m mm zig "
    "groovy gradle proto v sol json jsonc",
    RUST: "rs",
    DASHES: "sql lua hs elm adb ads vhd vhdl",
    LISP: "lisp el clj cljs cljc scm rkt",
    STYLE: "css scss less",
    PROSE: "md txt rst html htm xml svg vue tex",
}
_BY_EXTENSION = {name: syntax for syntax, names in _EXTENSIONS.items() for name in names.split()}
_BY_NAME = {"makefile": HASH, "dockerfile": HASH, "containerfile": HASH, "rakefile": HASH, "gemfile": HASH}


def syntax_named(filename: str) -> Syntax | None:
    """None where the name doesn't tell."""
    path = PurePosixPath(filename.replace("\\", "/"))
    return _BY_EXTENSION.get(path.suffix[1:].lower()) or _BY_NAME.get(path.name.lower())


def syntax_of(filename: str | None, text: str) -> Syntax:
    """By the file's name; else by how the text's lines end."""
    known = syntax_named(filename) if filename else None
    if known is not None:
        return known
    return SLASHES if any(line.rstrip()[-1:] in tuple("{};") for line in text.split("\n")) else HASH
