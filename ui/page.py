"""The page itself: three panes in one Gradio app, mounted into the server's own process.

Works without any network beyond the server: no fonts, scripts or images from elsewhere, no telemetry.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from starlette.routing import Mount

from ui import about, chat, complete
from ui.gate import Gate
from ui.server import Server

HERE = Path(__file__).parent
TITLE = "RRTF code assistant"
SCRIPTS = ("connection.js", "shortcuts.js")


def mount(
    app: FastAPI,
    *,
    path: str = "/ui",
    base_url: str,
    exchange: Callable[[str], str | None] | None,
    admits: Callable[[str], bool] | None = None,
) -> FastAPI:
    """Serve the page under `path` of `app`, before `app` starts.

    The page calls the API at `base_url` (ends in /v1). With `exchange` a visitor first signs in: for their
    key it gives the one with which the page calls the API for them, None where theirs is none. Without it the
    page is open and calls the API without a key. `admits` says whether the API still takes such a key: the
    session ends once it doesn't. Without it keys stay for as long as the server runs.
    Call `app.state.close_page()` from the event loop when the server is told to stop.

    Raises ValueError on a path that is not of the form /name.
    """
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError(f"path must look like /ui, not {path!r}")
    server = Server(base_url)
    blocks = build(server, path=path, keyed=exchange is not None)
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
        head="".join(f"<script>{(HERE / name).read_text('utf-8')}</script>" for name in SCRIPTS),
    )
    _let_go(app, path, server)
    app.add_middleware(Gate, path=path, exchange=exchange, admits=admits, realm=base_url)
    return app


def _let_go(app: FastAPI, path: str, server: Server) -> None:
    """Offer `app.state.close_page()`: it ends open pages' endless streams, which would hold up a shutdown."""
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, App) and route.path == path:
            app.state.close_page = route.app.stop_event.set
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(running: FastAPI) -> AsyncIterator[Any]:
        async with aclosing(server), inner(running) as state:
            yield state

    app.router.lifespan_context = lifespan


def build(server: Server, *, path: str, keyed: bool) -> gr.Blocks:
    """The panes, not yet mounted; `keyed` when visitors sign in with an API key."""
    sign_out = f"{path}/sign-out" if keyed else None
    # Gradio sums up all past events with pandas after each event, for a monitoring page that is closed here.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(2**62))
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1")
    with gr.Blocks(analytics_enabled=False, title=TITLE, fill_width=True) as opened:
        blocks: gr.Blocks = opened
        head = gr.HTML(about.head_html(TITLE, None, sign_out))
        with gr.Tabs():
            with gr.Tab("Chat", id="chat", elem_id="chat-pane"):
                chat.build(server)
            with gr.Tab("Complete", id="complete", elem_id="complete-pane"):
                editor = complete.build(server)
            with gr.Tab("Model", id="model", elem_id="model-pane", render_children=True):
                model = about.build(server)
        blocks.load(
            opening(server, sign_out),
            None,
            [head, *model, *editor],
            show_progress="hidden",
            concurrency_limit=None,
            api_visibility="private",
        )
    blocks.queue(api_open=False, default_concurrency_limit=None)
    return blocks


def opening(server: Server, sign_out: str | None) -> Callable[[gr.Request], Awaitable[tuple[Any, ...]]]:
    """What runs when someone opens the page: gives the head, the Model pane, and what Complete shows."""
    show = about.opened(server, TITLE, sign_out)

    async def fill(request: gr.Request) -> tuple[Any, ...]:
        shown = await show(request)
        return *shown, *complete.opened(server.infill)

    return fill


def theme() -> gr.themes.Base:
    """Fonts are the reader's own, so none is fetched."""
    soft = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    # Soft's own teal is too pale for white letters, and so are its greys.
    return soft.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        color_accent="*primary_600",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
        block_title_padding="0",
        checkbox_label_background_fill_selected="*primary_700",
        checkbox_label_background_fill_selected_dark="*primary_700",
        checkbox_label_text_color_selected="white",
        slider_color="*primary_600",
    )
