"""The default model, end to end: what a newcomer asks of it first. Minutes of CPU, so marked slow."""

from __future__ import annotations

import ast

import pytest
from live import LiveServer
from openai import OpenAI

pytestmark = pytest.mark.slow

MISSING_BODIES = [
    (
        'def add(a, b):\n    """Return the sum of a and b."""\n    return',
        "\n\n\nassert add(2, 3) == 5\n",
        "a + b",
    ),
    (
        'def largest(items):\n    """Return the largest of a list of numbers."""\n    return',
        "\n\n\nprint(largest([3, 1, 2]))\n",
        "max(items)",
    ),
    ("class Stack:\n    def __init__(self):\n        self.", " = []\n\n    def push(self, item):\n", "items"),
]


@pytest.mark.parametrize(("prefix", "suffix", "expected"), MISSING_BODIES)
def test_suffix_fills_in_what_is_missing(
    live_qwen: LiveServer, prefix: str, suffix: str, expected: str
) -> None:
    with OpenAI(base_url=live_qwen.base_url, api_key="none") as client:
        answer = client.completions.create(
            model=live_qwen.model, prompt=prefix, suffix=suffix, max_tokens=24, temperature=0, stop=["\n"]
        )
    middle = answer.choices[0].text
    assert expected in middle
    if suffix.startswith("\n"):
        ast.parse(prefix + middle + suffix)


def test_a_chat_answer_holds_working_code(live_qwen: LiveServer) -> None:
    with OpenAI(base_url=live_qwen.base_url, api_key="none") as client:
        question = "Write a Python function reverse(text) that reverses a string. Answer with one code block."
        answer = client.chat.completions.create(
            model=live_qwen.model,
            messages=[{"role": "user", "content": question}],
            max_tokens=200,
            temperature=0,
        )
    text = answer.choices[0].message.content or ""
    assert "```" in text and "[::-1]" in text
    assert answer.choices[0].finish_reason == "stop"
