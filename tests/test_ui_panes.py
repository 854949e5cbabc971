"""The panes' pure parts: where to fill, what is sent, what is shown. At work: test_ui_browser.py."""

from __future__ import annotations

import ast
import json
import re
import shlex
from typing import Any

import pytest
import yaml
from fake_openai import MODEL
from hypothesis import given
from hypothesis import strategies as st

from ui.about import address, card_html, head_html, rows, size, snippets
from ui.chat import messages, text_of, turn
from ui.complete import EXAMPLES, LANGUAGES, MARKER, UnclearError, Verbatim, joined, split
from ui.markdown import fenced
from ui.presets import PRESETS
from ui.server import Progress
from ui.status import ending, line

# Complete


@given(st.text().filter(lambda text: text.strip()), st.text())
def test_the_marker_parts_the_code_and_nothing_is_lost(before: str, after: str) -> None:
    if MARKER in before + after or (before + MARKER + after).count(MARKER) > 1:
        return
    assert split(before + MARKER + after) == (before, after)
    assert split(before) == (before, None)


def test_a_marker_at_either_end_is_a_place_too() -> None:
    assert split(f"{MARKER}\nx = 1") == ("", "\nx = 1")
    assert split(f"x = {MARKER}") == ("x = ", "")


@pytest.mark.parametrize("code", ["", " \n", MARKER, f"\n{MARKER} ", f"a{MARKER}b{MARKER}", MARKER * 3 + "a"])
def test_an_unclear_place_is_refused(code: str) -> None:
    with pytest.raises(UnclearError, match=r"There is no code yet|stands in \d places"):
        split(code)


def test_code_for_the_editor_keeps_its_edges() -> None:
    assert Verbatim("\n  x\n").strip() == "\n  x\n"
    assert json.loads(json.dumps(Verbatim(" x "))) == " x "


def test_line_breaks_at_a_fill_s_end_are_not_doubled() -> None:
    assert joined("def f():\n    ", "return 1\n", "\n\n\nf()") == "def f():\n    return 1\n\n\nf()"
    assert joined("a = [\n", "    1,\n", "]") == "a = [\n    1,\n]"
    assert joined("x = 1", "\ny = 2\n", None) == "x = 1\ny = 2\n"


def test_examples_are_fit_to_be_filled() -> None:
    for example in EXAMPLES:
        split(example.code)
        assert example.language in LANGUAGES
    assert ast.parse(EXAMPLES[0].code.replace(MARKER, "pass"))
    assert MARKER not in EXAMPLES[2].code


# Chat


def test_the_conversation_is_sent_without_what_gradio_adds() -> None:
    history: list[dict[str, Any]] = [
        {**turn("user", "  if x:\n"), "metadata": {"title": None}, "options": []},
        {"role": "assistant", "content": "one", "metadata": None},
        turn("user", "again"),
        turn("assistant", ""),
        turn("user", "and again"),
    ]
    assert messages(" Be brief. ", history) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "  if x:\n"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "again"},
        {"role": "user", "content": "and again"},
    ]
    assert messages("  ", history)[0]["role"] == "user"


@given(st.text())
def test_a_turn_keeps_its_text(text: str) -> None:
    assert text_of(turn("user", text)) == text


PYTHON = "def f(x):\n    return __name__"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("What is a monad?", "What is a monad?"),
        ("two\n\nparagraphs", "two\n\nparagraphs"),
        ("a < b and c > d", "a < b and c > d"),
        ("what does `<b>` do?", "what does `<b>` do?"),
        (PYTHON, f"```\n{PYTHON}\n```"),
        (f"Why?\n\n{PYTHON}\n\nThanks", f"Why?\n\n```\n{PYTHON}\n```\n\nThanks"),
        ("#include <map>", "```\n#include <map>\n```"),
        ("<p>\n\nplain\n\n</p>", "```\n<p>\n\nplain\n\n</p>\n```"),
        ("```py\n  x\n```", "```py\n  x\n```"),
        ("\n\nhello\n", "hello"),
    ],
)
def test_code_that_markdown_would_spoil_is_fenced(text: str, shown: str) -> None:
    assert fenced(text) == shown
    assert fenced(shown) == shown, "an edited question must not be fenced again"


@given(st.text().filter(lambda text: "`" not in text))
def test_fencing_adds_fences_and_nothing_else(text: str) -> None:
    assert fenced(text).replace("```\n", "").replace("\n```", "") == text.strip("\n")


# Model


def test_the_card_is_shown_whole_and_escaped() -> None:
    shown = dict(rows(MODEL))
    assert shown["Size"] == "508 MB"
    assert shown["Context"] == "4,096 tokens"
    assert shown["Licence"] == "Apache-2.0"
    assert shown["Source"] == "hub:tests/<tiny>@main"
    page = card_html({**MODEL, "id": "<script>"}, "http://a/v1")
    assert "<script>" not in page
    assert "&lt;tiny&gt;" in page
    head = head_html("T", {**MODEL, "id": "<script>"}, "/ui/sign-out")
    assert "<script>" not in head
    assert "Sign out" in head
    assert "Sign out" not in head_html("T", None, None)


def test_parity_is_shown_figure_by_figure() -> None:
    parity = {
        "top1_agreement": {"value": 0.9448, "low": 0.9385, "high": 0.9507, "n": 4096},
        "mean_kl": {"value": 0.01467, "low": 0.01366, "high": 0.01578, "n": 4096},
        "reference": {"name": "<qwen>", "quantization": "float32"},
        "warnings": ["<b>another source</b>"],
    }
    record = {**MODEL, "card": {**MODEL["card"], "parity": parity}}
    shown = dict(rows(record))
    assert shown["Top-1 agreement"] == "94.48 % (93.85 % to 95.07 %)"
    assert shown["Mean KL"] == "0.0147 nats per token (0.0137 to 0.0158)"
    page = card_html(record, "http://a/v1")
    assert "&lt;qwen&gt; in float32" in page and "<b>" not in page
    assert "Mean KL" not in dict(rows({**MODEL, "card": {**MODEL["card"], "parity": "text"}}))


@pytest.mark.parametrize("card", [None, {}, {"licence": "", "source": {}, "parity": None, "tools": {}}])
def test_a_bare_model_s_unknown_licence_is_said_to_be_unknown(card: dict[str, Any] | None) -> None:
    shown = dict(rows({"id": "bare", "card": card}))
    assert list(shown) == ["Licence"]
    assert "not stated" in shown["Licence"]


@pytest.mark.parametrize(("count", "shown"), [(508_123_456, "508 MB"), (1_117_000_000, "1.12 GB")])
def test_sizes(count: int, shown: str) -> None:
    assert size(count) == shown


def test_the_address_is_the_one_the_reader_used() -> None:
    base = "http://127.0.0.1:8000/v1"
    assert address(base, "code.example.org", "https") == "https://code.example.org/v1"
    assert address(base, None, "http") == base


@pytest.mark.parametrize("model", ["tiny", 'it\'s "quoted"\\n'])
@pytest.mark.parametrize(("keyed", "infill"), [(True, False), (False, True)])
def test_the_snippets_can_be_pasted(model: str, keyed: bool, infill: bool) -> None:
    ways = snippets(model, "http://a:1/v1", keyed=keyed, infill=infill)
    words = shlex.split(ways["curl"].replace("\\\n", " "))
    assert words[:2] == ["curl", "http://a:1/v1/completions"]
    body = json.loads(words[words.index("-d") + 1])
    assert (body["model"], body["temperature"]) == (model, 0)
    assert ("suffix" in body) == infill
    assert ("Authorization: Bearer YOUR_API_KEY" in words) == keyed
    assert repr(model) in ast.unparse(ast.parse(ways["python"]))
    config = yaml.safe_load(ways["continue"])
    assert [entry["roles"] for entry in config["models"]] == [["chat", "edit"], ["autocomplete"]]
    for entry in config["models"]:
        assert (entry["model"], entry["apiBase"]) == (model, "http://a:1/v1")
        assert entry["apiKey"] == ("YOUR_API_KEY" if keyed else "none")


# Status


def test_an_ending_tells_cost_and_cause() -> None:
    done = Progress("text", "stop", 21, 0.5, 2.5)
    assert "21 tokens in 2.5 s · first after 0.50 s · 10 tokens/s" in ending(done, 64)
    cut = Progress("text", "length", 64, 0.5, 2.5)
    assert "Cut at 64 tokens: raise the limit in Settings. 64 tokens" in ending(cut, 64)
    assert "1 token in 0.5 s · first after 0.50 s<" in ending(Progress("x", "stop", 1, 0.5, 0.5), 64)
    assert "nothing to add" in ending(Progress("", "stop", 0, None, 0.1), 64)


def test_a_status_line_is_escaped_and_announced() -> None:
    assert line("a <b>") == '<p class="status plain" role="status">a &lt;b&gt;</p>'
    assert 'role="alert"' in line("x", "problem")
    assert line("") == ""


def test_precise_is_greedy_and_presets_differ() -> None:
    assert PRESETS["Precise"].temperature == 0.0
    assert len({(each.temperature, each.top_p) for each in PRESETS.values()}) == len(PRESETS)
    assert all(re.fullmatch(r"[A-Z][a-z]+", name) for name in PRESETS)
