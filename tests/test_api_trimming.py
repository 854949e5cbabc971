"""Where an editor's completion ends: known cases, and what holds for any text however it is cut."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from rrtf_serve.api.trimming import Cursor, Trim

PYTHON, SCRIPT = "a.py", "a.js"


def trimmed(text: str, prefix: str, suffix: str = "", filename: str | None = None) -> tuple[str, bool]:
    """The completion, and whether it was ended before the model did."""
    trim = Trim(Cursor(prefix, suffix, filename))
    shown, ended = trim.push(text)
    return shown + trim.flush(), ended


@pytest.mark.parametrize(
    ("prefix", "text", "kept"),
    [
        ("def add(a, b):\n    ", "return a + b\n\ndef sub", "return a + b"),
        ("def add(a, b):\n    ", "return a + b\n\n    c", "return a + b"),
        ("def add(a, b):\n    ", "return a + b\n\n[c]", "return a + b"),
        ("def add(a, b):\n    ", "return a + b\n\n\n\n", "return a + b"),
        ("def add(a, b):", "\n    return a + b\n\n\nx", "\n    return a + b"),
        # nothing was said yet, nothing is complete yet
        ("import os\n", "\n\nx = 1\n\ny", "\n\nx = 1"),
        ("", "def f(\n\n    a):\n\n    return a\n\ny", "def f(\n\n    a):\n\n    return a"),
        ("", "x = [\n\n    1,\n]\n\ny", "x = [\n\n    1,\n]"),
        ("", 'x = """a\n\nb"""\n\ny', 'x = """a\n\nb"""'),
        ("", "x = ''\n\ny", "x = ''"),
        ("# sort ", "the list\n\nx", "the list"),
        ("", "x = 1  # (\n \t\ny", "x = 1  # ("),
    ],
)
def test_a_blank_line_after_a_complete_statement_ends_it(prefix: str, text: str, kept: str) -> None:
    assert trimmed(text, prefix, filename=PYTHON) == (kept, True)


@pytest.mark.parametrize(
    ("prefix", "text", "kept", "filename"),
    [
        # the block that the cursor's line begins
        ("for x in y:", "\n    a()\n    b()\nc()", "\n    a()\n    b()", PYTHON),
        ("def f(", "x):\n    return x\nprint(1)", "x):\n    return x", PYTHON),
        ("if x:", "\n    a()\nelse:\n    b()\nc()", "\n    a()\nelse:\n    b()", PYTHON),
        ("function f", "() {\n  a();\n}\ng();", "() {\n  a();\n}", SCRIPT),
        ("const f = ", "() => {\n  a();\n};\ng();", "() => {\n  a();\n};", SCRIPT),
        ("if (x) {", "\n  a();\n} else {\n  b();\n}\nc();", "\n  a();\n} else {\n  b();\n}", SCRIPT),
        ("def f", "(x)\n  x\nend\ng", "(x)\n  x\nend", "a.rb"),
        # the block that the cursor stands in
        ("def f(x):\n    ", "y = x\n    return y\nprint(1)", "y = x\n    return y", PYTHON),
        ("def f(x):\n", "    return x\nprint(1)", "    return x", PYTHON),
        ("function f() {\n  ", "a();\n}\nfunction g", "a();\n}", SCRIPT),
        ("fn f<'a>(x: &'a str) {\n    ", "g(x);\n}\nfn h", "g(x);\n}", "a.rs"),
    ],
)
def test_a_balanced_block_ends_it(prefix: str, text: str, kept: str, filename: str) -> None:
    assert trimmed(text, prefix, filename=filename) == (kept, True)


@pytest.mark.parametrize(
    ("prefix", "body", "after", "filename"),
    [
        ("def f(x):", "\n    y = x\n\n    return y", "\n\nprint(1)", PYTHON),
        ("def f(x):", "\n    y = x\n\n\n    return y", "\n\n\nclass A:", PYTHON),
        ("def f(x):", "\n    if x:\n        y()\n \t\n    return y", "\n\n@z", PYTHON),
        ("class A:\n", "    def f(self):\n        a()\n\n        b()", "\n\n    def g", PYTHON),
        ("class A:\n    ", "def f(self):\n        a()\n\n        # b\n        b()", "\n\n    c", PYTHON),
        ("", "for x in y:\n\n    a()\n\n    b()", "\n\nc()", PYTHON),
        ("", "def f\n\n  a\n\n  b", "\n\nend", "a.rb"),
        ("function f() {\n  ", "if (x) {\n    a();\n\n    b();\n  }", "\n\n  c();", SCRIPT),
        ("function f", "() {\n  a();\n\n  b();\n}", "\n\ng();", SCRIPT),
        ("if x:\n\t", "for y in x:\n\t\ta()\n\n\t\tb()", "\n\n\tc()", PYTHON),
    ],
)
def test_a_blank_line_inside_a_body_that_is_open_does_not_end_it(
    prefix: str, body: str, after: str, filename: str
) -> None:
    assert trimmed(body + after, prefix, filename=filename) == (body, True)
    assert trimmed(body, prefix, filename=filename) == (body, False)


def test_blank_lines_at_the_end_are_not_shown() -> None:
    assert trimmed("a()\n\n    ", "def f():\n    ", filename=PYTHON) == ("a()", False)
    assert trimmed("x = 1\n\n", "import os\n", "print(x)\n", PYTHON) == ("x = 1\n", False)
    trim = Trim(Cursor("def f():", "", PYTHON))
    pieces = ("\n    a()", "\n", "\n", "    ", "b()")
    assert [trim.push(piece)[0] for piece in pieces] == ["\n    a()", "", "", "", "\n\n    b()"]


LINES = strategies.lists(
    strategies.tuples(strategies.integers(0, 3), strategies.sampled_from(["a", "b()", ""])), max_size=12
)


@given(LINES, strategies.integers(0, 2))
def test_in_lines_without_brackets_indentation_alone_decides(
    lines: list[tuple[int, str]], level: int
) -> None:
    """Held against the rule said once more, over whole lines."""
    cursor = "    " * level
    written = ["x", *(("    " * depth + line) if line else "" for depth, line in lines)]
    expected, blank = 1, 0
    for number, line in enumerate(written[1:], 1):
        depth = len(line) // 4 if line else None
        if depth is None:
            blank += 1
        elif depth < level or (blank and depth <= level):
            break
        else:
            expected, blank = number + 1, 0
        if blank > 2:
            break
    kept = "\n".join(written[:expected])
    assert trimmed("\n".join(written), cursor, filename=PYTHON)[0] == kept


def test_a_body_goes_on_after_a_block_in_it() -> None:
    body = "total = 0\n    for x in y:\n        total += x\n    return total"
    assert trimmed(body + "\n\nprint()", "def f(y):\n    ", filename=PYTHON) == (body, True)
    body = "let t = 0;\n  for (const x of y) {\n    t += x;\n  }\n  return t;"
    assert trimmed(body + "\n\n  g", "function f(y) {\n  ", "\n}\n", SCRIPT) == (body, True)


@pytest.mark.parametrize(
    ("prefix", "text", "suffix", "kept"),
    [
        ("print(", "a, b)\nprint(c)", ")\n", "a, b"),
        ("print(", "f(a))", ")", "f(a)"),
        ("print(", "f(a)", ")", "f(a)"),  # its own bracket
        ("x[", "i]", "] = 1", "i"),
        ("print(f(", "a), b)\n", ")\n", "a), b"),  # one of the two is closed by the suffix
        ("function f() {\n  ", "a();\n}\n", "\n}\n", "a();"),
        ("function f() {\n  ", "if (x) {\n    a();\n  }", "\n}\n", "if (x) {\n    a();\n  }"),
        ("{\n  a: ", "[1,\n  2],\n}", "\n\n}", "[1,\n  2],"),
    ],
)
def test_brackets_that_the_suffix_closes_are_left_to_it(
    prefix: str, text: str, suffix: str, kept: str
) -> None:
    assert trimmed(text, prefix, suffix, SCRIPT)[0] == kept


@pytest.mark.parametrize(
    ("text", "suffix", "kept"),
    [
        ("a + b\n    return c", "\n    return c\n", "a + b"),
        ("a + b", " + b", "a"),
        ("name, ", ", other", "name"),
        ('say("', '")', "say("),
        ("a", "b", "a"),
        ("", "b", ""),
        ("same", "same", ""),
        ("aa", "aab", ""),
        ("x = 1  \n", "\ny", "x = 1"),
        ("x = 1\n   ", "", "x = 1"),
        ("x = 1 ", "# why", "x = 1 "),
    ],
)
def test_the_suffix_is_not_said_again(text: str, suffix: str, kept: str) -> None:
    assert trimmed(text, "    ", suffix, PYTHON)[0] == kept


@pytest.mark.parametrize(
    ("prefix", "text", "suffix", "kept"),
    [
        ("x = ", "value", "e)", "value"),
        ("x = ", "f(name", "e, 1)", "f(name"),
        ("x = ", "a_b", "b", "a_b"),
        ("x = ", "a + b", "b", "a + "),
        ("x = get", "UserName()", "Name()", "User"),  # the cursor stands in a word
    ],
)
def test_what_the_suffix_begins_with_is_not_cut_out_of_a_word(
    prefix: str, text: str, suffix: str, kept: str
) -> None:
    assert trimmed(text, prefix, suffix, PYTHON)[0] == kept


@pytest.mark.parametrize(
    ("prefix", "text", "suffix", "kept", "ended"),
    [
        ("def f(a):\n    ", "b = a\n    return b\n    c", "\n\n\n    return b\n", "b = a", True),
        ("def f(a):\n    ", "b = a\n    return b", "\n\n\n    return b\n", "b = a", False),
        ("def f(a):\n    ", "return b\n    c", "\n\n    return b\n", "", True),
        ("def f(a):\n", "    b = a\n    return b\n    c", "    return b\n", "    b = a\n", True),
        # deeper, longer, or a bracket alone: another line
        ("def f(a):\n    ", "if a:\n        return b\n    c()", "\n    return b\n", None, False),
        ("def f(a):\n    ", "a()\n    return b + c\n    d()", "\n    return b\n", None, False),
        ("f([\n", "  [1\n  ],\n  2", "\n  ],\n", None, False),
    ],
)
def test_the_line_that_comes_next_ends_it(
    prefix: str, text: str, suffix: str, kept: str | None, ended: bool
) -> None:
    assert trimmed(text, prefix, suffix, PYTHON) == (text if kept is None else kept, ended)


def test_text_after_the_cursor_ends_it_with_its_line() -> None:
    assert trimmed("a\nb = 2\n", "x = ", " + 1\n", PYTHON) == ("a", True)
    assert trimmed("f(\n  a,\n)\nb = 2\n", "x = ", " + 1\n", PYTHON) == ("f(\n  a,\n)", True)
    # a line of its own before the text, and its line break with it
    assert trimmed("x = 1\n\ny", "import os\n", "print(x)\n", PYTHON) == ("x = 1\n", True)


def test_it_ends_at_once() -> None:
    """The end is known with the character that brings it; after a blank line it is the next line's first."""
    for prefix, text, suffix in [
        ("def f():\n    ", "return 1\n\nx", ""),
        ("def f():\n    ", "return 1\n\n\n\n", ""),
        ("for x in y:", "\n    a()\nx", ""),
        ("f(", "a)", ")"),
        ("x = ", "a\n", " + 1"),
    ]:
        trim = Trim(Cursor(prefix, suffix, PYTHON))
        assert [trim.push(character)[1] for character in text] == [False] * (len(text) - 1) + [True]
        assert trim.push("more") == ("", True)
        assert trim.flush() == ""


def test_what_is_safe_is_shown_while_it_comes() -> None:
    trim = Trim(Cursor("x = ", "\nprint(x)\n", PYTHON))
    assert [trim.push(piece)[0] for piece in ("1 ", "+", " 2", "\n", "pri", "me")] == [
        "1", " +", " 2", "", "", "\nprime",
    ]  # fmt: skip


def test_the_language_is_told_by_name_or_by_its_lines() -> None:
    block = "x //= 2)\n\ny"  # a comment, or a division and a bracket too many
    assert trimmed(block, "f(", "", "a.py")[0] == "x //= 2)"
    assert trimmed("a # {\n\ny", "", "", "a.py") == ("a # {", True)
    assert trimmed("a # {\n\ny", "", "", "Makefile") == ("a # {", True)
    assert trimmed("a // {\n\ny", "f();\n", "", None) == ("a // {", True)
    assert trimmed("a # {\n\ny", "f()\n", "", None) == ("a # {", True)
    assert trimmed("it's\n\ny", "", "", "a.md") == ("it's", True)


def test_a_cursor_inside_a_comment_or_a_string_is_seen() -> None:
    assert trimmed("b)c\nd", 'print("a', '")\n', PYTHON)[0] == "b)c"
    assert trimmed("first\n\nsecond", '"""a\n', '\n"""\n', PYTHON) == ("first\n\nsecond", False)
    assert trimmed(" a) {\n * b\n\n */\nf();\n\ng", "/*", "", SCRIPT) == (" a) {\n * b\n\n */\nf();", True)


PIECES = strategies.sampled_from(
    ["\n", "\n\n", " ", "    ", "(", ")", "{", "}", "[", "]", "a", "return x", "else", "if x:", ";", ",",
     '"', "'", "#", "//", "/*", "*/", "`", "\\", "=", "é", "😀", "\r\n", "\t", '"""', "end", "ab"]
)  # fmt: skip
TEXTS = strategies.lists(PIECES, max_size=24).map("".join)


@given(
    TEXTS, TEXTS, TEXTS, strategies.sampled_from([None, "a.py", "a.js", "a.rs", "a.md"]), strategies.data()
)
def test_it_is_a_beginning_and_the_same_however_it_is_cut(
    prefix: str, text: str, suffix: str, filename: str | None, data: strategies.DataObject
) -> None:
    cursor = Cursor(prefix, suffix, filename)
    whole, ended = trimmed(text, prefix, suffix, filename)
    assert text.startswith(whole)
    cuts = sorted(data.draw(strategies.lists(strategies.integers(0, len(text)), max_size=6)))
    trim = Trim(cursor)
    shown = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        piece, done = trim.push(text[start:end])
        shown += piece
        assert whole.startswith(shown)  # nothing is taken back
    assert done == ended
    assert shown + trim.flush() == whole
    # What the suffix begins with is not said again, but for brackets that belong to the completion and for
    # ends of words.
    again = [
        whole[start:]
        for start in range(len(whole))
        if suffix.startswith(whole[start:])
        and (start == 0 or cursor.in_word or not (whole[start - 1] + whole[start]).isalnum())
    ]
    if again and not text[len(whole) :].startswith(suffix[0]):  # else it was said even twice
        assert set("".join(again)) <= set(")]};, \n\t\r")


@pytest.mark.parametrize(
    ("prefix", "suffix", "text", "kept", "filename"),
    [
        (
            "function f() {",
            "}\n",
            "\n  const a = 1;\n  return a;\n}\ng();\n",
            "\n  const a = 1;\n  return a;\n",
            SCRIPT,
        ),
        ("  d = {", "}\n", "\n    'a': 1,\n    'b': 2,\n  }\n", "\n    'a': 1,\n    'b': 2,\n  ", PYTHON),
        (
            "items.map((x) => {",
            "});\n",
            "\n  const y = x;\n  return y;\n});",
            "\n  const y = x;\n  return y;\n",
            SCRIPT,
        ),
        (
            "<div>",
            "</div>\n",
            "\n  <p>a</p>\n  <p>b</p>\n</div>\n<p>",
            "\n  <p>a</p>\n  <p>b</p>\n",
            "a.html",
        ),
        # on the cursor's own line it still ends with the line
        ("function f() {", "}\n", " return 1;\n g();\n", " return 1;", SCRIPT),
        ("f(", ")\n", "a, b\nc\n", "a, b", PYTHON),
    ],
)
def test_a_body_before_a_closer_that_the_editor_wrote_is_whole(
    prefix: str, suffix: str, text: str, kept: str, filename: str
) -> None:
    assert trimmed(text, prefix, suffix, filename)[0] == kept


@pytest.mark.parametrize(
    ("prefix", "text", "kept", "filename"),
    [
        ("if [ -f x ]; then", "\n    echo hi\nfi\necho end\n", "\n    echo hi\nfi", "a.sh"),
        ("for i in 1 2; do", "\n    echo $i\ndone\necho end\n", "\n    echo $i\ndone", None),
        ("while read x", "; do\n    echo $x\ndone\necho end\n", "; do\n    echo $x\ndone", "a.sh"),
        (
            "case $1 in",
            "\n    a) echo a ;;\n    b) echo b ;;\nesac\nx",
            "\n    a) echo a ;;\n    b) echo b ;;\nesac",
            "a.sh",
        ),
        ("if(WIN32)", "\n  add()\nendif()\nproject()\n", "\n  add()\nendif()", "a.cmake"),
        ("repeat", "\n  a()\nuntil x\nb()\n", "\n  a()\nuntil x", "a.lua"),
        ("\\begin{itemize}", "\n  \\item a\n\\end{itemize}\nText\n", "\n  \\item a\n\\end{itemize}", "a.tex"),
        ("<div>", "\n  <p>hi</p>\n</div>\n<div>\n", "\n  <p>hi</p>\n</div>", "a.html"),
        # names like any other
        ("for x in y:", "\n    a()\ndone = 1\n", "\n    a()", PYTHON),
        ("for x in y:", "\n    a()\n< 1\n", "\n    a()", PYTHON),
    ],
)
def test_what_closes_a_block_without_a_bracket_belongs_to_it(
    prefix: str, text: str, kept: str, filename: str | None
) -> None:
    assert trimmed(text, prefix, "\n", filename) == (kept, True)


@pytest.mark.parametrize(
    ("prefix", "text", "filename"),
    [
        ("<p>", "It works :) and so on", "a.html"),
        ("", "(a) one, b) two and 3) three.", "a.md"),
    ],
)
def test_a_bracket_in_prose_closes_nothing(prefix: str, text: str, filename: str) -> None:
    assert trimmed(text, prefix, "", filename) == (text, False)
