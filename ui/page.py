"""The page itself: three panes in one Gradio app, mounted into the server's own process.

Works without any network beyond the server: no fonts, scripts or images from elsewhere, no telemetry.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gradio as gr
from fastapi import FastAPI

from ui import about, chat, complete
from ui.gate import ICON, Gate
from ui.server import Server

HERE = Path(__file__).parent
TITLE = "RRTF code assistant"


def mount(
    app: FastAPI,
    *,
    path: str = "/ui",
    base_url: str,
    api_key: str | None,
    check_key: Callable[[str], bool] | None,
) -> FastAPI:
    """Serve the page under `path` of `app`, before `app` starts.

    The page calls the API at `base_url` (ends in /v1) with `api_key`, None where the API asks for none. With
    `check_key` a visitor first signs in with a key that it accepts; without it the page is open.

    Raises ValueError on a path that is not of the form /name.
    """
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"path must look like /ui, not {path!r}")
    blocks = build(Server(base_url, api_key), path=path, keyed=check_key is not None)
    gr.mount_gradio_app(
        app,
        blocks,
        path,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme(),
        css_paths=[HERE / "style.css"],
        head=f"<script>{(HERE / 'shortcuts.js').read_text('utf-8')}</script>",
    )
    app.add_middleware(Gate, path=path, check_key=check_key, realm=base_url)
    return app


def build(server: Server, *, path: str, keyed: bool) -> gr.Blocks:
    """The panes, not yet mounted; `keyed` when visitors sign in with an API key."""
    sign_out = f'<a class="sign-out" href="{path}/sign-out">Sign out</a>' if keyed else ""
    with gr.Blocks(analytics_enabled=False, title=TITLE, fill_width=True) as opened:
        blocks: gr.Blocks = opened
        with gr.Row(elem_id="head"):
            gr.HTML(f'<div class="brand">{ICON}<h1>{TITLE}</h1></div>', elem_id="brand")
            chip = gr.HTML(elem_id="chip")
            gr.HTML(sign_out, elem_id="session", visible=keyed)
        with gr.Tabs():
            with gr.Tab("Chat", id="chat", elem_id="chat-pane"):
                chat.build(server)
            with gr.Tab("Complete", id="complete", elem_id="complete-pane"):
                complete.build(server)
            with gr.Tab("Model", id="model", elem_id="model-pane", render_children=True):
                about.build(server, blocks, chip, keyed=keyed)
    blocks.queue(api_open=False, default_concurrency_limit=None)
    return blocks


def theme() -> gr.themes.Base:
    """Fonts are the reader's own, so none is fetched."""
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
