"""What a user typed, as Markdown that shows it as typed.

The conversation is rendered as Markdown, where pasted code loses its indentation and `#include <vector>` its
header. What is sent to the model is what is shown.
"""

from __future__ import annotations

import re

# What Markdown would take for its own: a tag, indentation, a heading, emphasis.
SPOILED = re.compile(r"<[A-Za-z/!]|^[ \t]{2,}\S|^#|__|\*\S|&\w+;", re.MULTILINE)
CODE_SPAN = re.compile(r"`[^`\n]+`")


def fenced(text: str) -> str:
    """`text` with a code fence around its paragraphs from the first to the last that Markdown would spoil.

    Text that already has fences is left alone: its writer knows Markdown.
    """
    text = text.strip("\n")
    if "```" in text:
        return text
    paragraphs = text.split("\n\n")
    code = [number for number, each in enumerate(paragraphs) if SPOILED.search(CODE_SPAN.sub("", each))]
    if not code:
        return text
    first, last = code[0], code[-1] + 1
    block = "```\n" + "\n\n".join(paragraphs[first:last]) + "\n```"
    return "\n\n".join([*paragraphs[:first], block, *paragraphs[last:]])
