"""The Model pane: the served model's card, and how other programs reach the server."""

from __future__ import annotations

import html
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import gradio as gr

from rrtf_serve.models.parity import parity_facts
from ui import status
from ui.gate import ICON, KEY_HEADER
from ui.server import AnswerError, Server


def address(base_url: str, host: str | None, scheme: str) -> str:
    """The API's address as this reader reaches it: behind a proxy or on another host than `base_url` says."""
    return urlunsplit((scheme, host, urlsplit(base_url).path, "", "")) if host else base_url


def size(count: int) -> str:
    """Bytes in the decimal unit that people buy disks in."""
    return f"{count / 1e9:.2f} GB" if count >= 1_000_000_000 else f"{count / 1e6:.0f} MB"


def rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and value of everything known about the model of a /v1/models record."""
    card = card_of(record)
    source = card.get("source") or {}
    context = record.get("max_model_len") or card.get("context_length")
    found = [
        ("Family", card.get("family")),
        ("Architecture", card.get("architecture")),
        ("Weights", card.get("quantization")),
        ("Size", size(card["size_bytes"]) if card.get("size_bytes") else None),
        ("Context", f"{context:,} tokens" if context else None),
        ("Licence", card.get("licence") or "not stated: check the model's own page before you use it"),
        ("Source", source.get("origin") or source.get("file")),
        ("Source SHA-256", source.get("sha256")),
        ("Converted with", _listed(card.get("tools") or {})),
    ]
    parity = card.get("parity")
    facts = parity_facts(parity) if isinstance(parity, Mapping) else []
    found += [(label[:1].upper() + label[1:], text) for label, text in facts]
    return [(label, str(value)) for label, value in found if value]


def _listed(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items())


def card_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    card = record.get("card")
    return card if isinstance(card, Mapping) else {}


def card_html(record: Mapping[str, Any], api: str) -> str:
    """The card as a definition list; every value is escaped, a card comes from a file."""
    items = "".join(
        f"<dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd>"
        for label, value in [("Name", str(record["id"])), *rows(record), ("API address", api)]
    )
    return f'<dl class="card">{items}</dl>'


def head_html(title: str, record: Mapping[str, Any] | None, sign_out: str | None) -> str:
    """The page's head: its title, the model in one short line, and the way out where visitors sign in."""
    chip, leave = "", ""
    if record is not None:
        context = record.get("max_model_len")
        parts = [
            record["id"],
            card_of(record).get("quantization"),
            f"{context:,} tokens" if context else None,
        ]
        text = " · ".join(str(part) for part in parts if part)
        chip = f'<span class="chip">{html.escape(text)}</span>'
    if sign_out is not None:
        leave = f'<a href="{html.escape(sign_out)}">Sign out</a>'
    return (
        f'<div class="head"><div class="brand">{ICON}<h1>{html.escape(title)}</h1></div>{chip}{leave}</div>'
    )


def snippets(model: str, api: str, *, keyed: bool, infill: bool) -> dict[str, str]:
    """Ways to use the server from elsewhere, by name; `keyed` when it asks for an API key, `infill` when the
    model can fill in the middle."""
    rest = {**({"suffix": "\n\nprint(fib(10))"} if infill else {}), "max_tokens": 64, "temperature": 0}
    key = "YOUR_API_KEY" if keyed else "none"
    header = f" \\\n  -H 'Authorization: Bearer {key}'" if keyed else ""
    body = json.dumps({"model": model, "prompt": "def fib(n):\n    "} | rest)
    quoted_body = body.replace("'", "'\\''")
    entry = f"provider: openai\n    model: {json.dumps(model)}\n    apiBase: {api}\n    apiKey: {key}"
    return {
        "curl": (
            f"curl {api}/completions{header} \\\n"
            f"  -H 'Content-Type: application/json' \\\n  -d '{quoted_body}'\n"
        ),
        "python": (
            "from openai import OpenAI\n\n"
            f"client = OpenAI(base_url={json.dumps(api)}, api_key={json.dumps(key)})\n"
            "answer = client.chat.completions.create(\n"
            f"    model={json.dumps(model)},\n"
            '    messages=[{"role": "user", "content": "Write a haiku about semicolons."}],\n'
            ")\n"
            "print(answer.choices[0].message.content)\n"
        ),
        "continue": (
            "name: RRTF\nversion: 1.0.0\nschema: v1\nmodels:\n"
            f"  - name: RRTF chat\n    {entry}\n    roles: [chat, edit]\n"
            f"  - name: RRTF autocomplete\n    {entry}\n    roles: [autocomplete]\n"
        ),
    }


def build(server: Server) -> list[gr.Component]:
    """Place the pane in the current Blocks; gives what `opened` fills after the head."""
    with gr.Row(elem_classes="about"):
        with gr.Column(scale=1, min_width=300):
            gr.Markdown("### This model")
            card = gr.HTML(status.line(f"Asking {server.base_url} for its model…"), elem_id="card")
        with gr.Column(scale=1, min_width=300):
            gr.Markdown("### Use it from your editor")
            with gr.Tabs():
                with gr.Tab("curl", id="curl"):
                    curl = gr.Code(language="shell", **_SNIPPET)
                with gr.Tab("OpenAI SDK", id="python"):
                    python = gr.Code(language="python", **_SNIPPET)
                with gr.Tab("Continue", id="continue"):
                    editor = gr.Code(language="yaml", **_SNIPPET)
    return [card, curl, python, editor]


def opened(
    server: Server, title: str, sign_out: str | None
) -> Callable[[gr.Request], Awaitable[tuple[Any, ...]]]:
    """What runs when someone opens the page: gives the head, then what `build` returned."""

    async def show(request: gr.Request) -> tuple[Any, ...]:
        api = address(server.base_url, request.headers.get("host"), request.url.scheme)
        try:
            record = await server.card(key=request.headers.get(KEY_HEADER))
        except AnswerError as problem:
            return head_html(title, None, sign_out), status.line(str(problem), "problem"), "", "", ""
        ways = snippets(str(record["id"]), api, keyed=sign_out is not None, infill=server.infill)
        return head_html(title, record, sign_out), card_html(record, api), *ways.values()

    return show


_SNIPPET: dict[str, Any] = {
    "interactive": False,
    "show_label": False,
    "buttons": ["copy"],
    "show_line_numbers": False,
    "wrap_lines": True,
    "elem_classes": "snippet",
}
