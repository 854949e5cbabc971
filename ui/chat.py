"""The Chat pane: a conversation with the model, streamed, stoppable, editable."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr
from gradio.events import Dependency
from openai.types.chat import ChatCompletionMessageParam

from ui import status
from ui.gate import KEY_HEADER
from ui.markdown import fenced
from ui.presets import controls
from ui.server import AnswerError, Options, Progress, Server

# Every update renders the conversation anew: faster than this costs decoding its cores and shows no more.
UPDATE_SECONDS = 0.08

EXAMPLES = {
    "Merge two sorted lists in Python": "Write a Python function that merges two sorted lists into one.",
    "Explain a race condition": "Explain what a race condition is, with a short example in Python.",
    "Query the best customers in SQL": "Write a SQL query for the ten customers who spent most this year.",
    "Shorten a loop": (
        "Make this a list comprehension:\n\n"
        "out = []\nfor n in numbers:\n    if n % 2:\n        out.append(n * n)"
    ),
}

Updates = AsyncGenerator[tuple[Any, ...]]  # values for the conversation, the box and the status line
Settings = tuple[str, int, float, float]  # system prompt, max tokens, temperature, top-p
Turn = dict[str, Any]  # a Chatbot message: role, content, and what Gradio adds


def text_of(turn: Turn) -> str:
    """A turn's text, whether Gradio holds it as a string or as a list of parts."""
    content = turn["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def turn(role: str, text: str) -> Turn:
    # As a part, not a string: Gradio dedents and strips strings, and indentation is code.
    return {"role": role, "content": [{"type": "text", "text": text}]}


def messages(system: str, history: list[Turn]) -> list[ChatCompletionMessageParam]:
    """The conversation as the API takes it; answers that never began are left out."""
    spoken: list[ChatCompletionMessageParam] = []
    if system.strip():
        spoken.append({"role": "system", "content": system.strip()})
    for each in history:
        text = text_of(each)
        if each["role"] == "user":
            spoken.append({"role": "user", "content": text})
        elif text:
            spoken.append({"role": "assistant", "content": text})
    return spoken


def build(server: Server) -> None:
    """Place the pane in the current Blocks."""

    async def answer(
        request: gr.Request, history: list[Turn], typed: str | None, settings: Settings
    ) -> Updates:
        """Answer the last turn of `history`, the user's; `typed` is left in the box, None: what stands there.

        On a failure before the first word the question goes back into the box, so that it can be sent again.
        """
        system, max_tokens, temperature, top_p = settings
        options = Options(int(max_tokens), temperature, top_p)
        progress = Progress()
        yield history, busy_box(typed), status.line("Waiting for the model…")
        shown = 0.0
        try:
            async with aclosing(
                server.chat(messages(system, history), options, key=request.headers.get(KEY_HEADER))
            ) as stream:
                async for progress in stream:
                    if progress.text and time.monotonic() - shown >= UPDATE_SECONDS:
                        # Cleared once only: an update on its way must not wipe out "Stopped."
                        quiet = gr.skip() if shown else ""
                        yield [*history, turn("assistant", progress.text)], gr.skip(), quiet
                        shown = time.monotonic()
        except AnswerError as problem:
            said = status.line(str(problem), "problem")
            if progress.text:
                yield [*history, turn("assistant", progress.text)], idle_box(), said
            else:
                yield history[:-1], idle_box(text_of(history[-1])), said
            return
        said = status.ending(progress, options.max_tokens)
        yield [*history, turn("assistant", progress.text)], idle_box(), said

    async def send(request: gr.Request, text: str, history: list[Turn], *settings: *Settings) -> Updates:
        if not text.strip():
            yield gr.skip(), gr.skip(), status.line("Write a question first.")
            return
        async with aclosing(answer(request, [*history, turn("user", fenced(text))], "", settings)) as updates:
            async for update in updates:
                yield update

    async def edit(
        event: gr.EditData, request: gr.Request, history: list[Turn], *settings: *Settings
    ) -> Updates:
        asked = [*history[: _index(event)], turn("user", fenced(event.value))]
        async with aclosing(answer(request, asked, None, settings)) as updates:
            async for update in updates:
                yield update

    async def retry(
        event: gr.RetryData, request: gr.Request, history: list[Turn], *settings: *Settings
    ) -> Updates:
        async with aclosing(answer(request, history[: _index(event) + 1], None, settings)) as updates:
            async for update in updates:
                yield update

    def undo(event: gr.UndoData, history: list[Turn]) -> tuple[Any, ...]:
        at = _index(event)
        return history[:at], text_of(history[at]), ""

    talk = gr.Chatbot(
        elem_id="talk",
        show_label=False,
        container=False,
        height="calc(100dvh - 286px)",
        min_height=320,
        editable="user",
        buttons=["copy", "copy_all"],
        feedback_options=None,
        latex_delimiters=[],  # a dollar sign is shell or PHP here, not mathematics
        allow_tags=True,  # shows vector<T> as text; real HTML is still sanitised
        layout="bubble",
        placeholder="### What shall we write?\nAsk for code, or paste some and ask about it.",
        examples=[{"text": text, "display_text": label} for label, text in EXAMPLES.items()],
    )
    said = gr.HTML(elem_id="chat-status")
    box = gr.Textbox(
        elem_id="chat-box",
        show_label=False,
        label="Message",
        placeholder="Ask anything. Enter sends, Shift+Enter starts a new line.",
        lines=1,
        max_lines=12,
        autofocus=True,
        submit_btn="Send",
        stop_btn=False,
    )
    with gr.Accordion("Settings", open=False, elem_id="chat-settings"):
        system = gr.Textbox(
            "You are a helpful programming assistant.",
            label="System prompt",
            info="Sent before the conversation; leave it empty to send none",
            lines=2,
            max_lines=6,
        )
        sampling = controls(preset="Balanced", max_tokens=1024, most_tokens=4096)

    settings = [system, *sampling.inputs()]
    shared: dict[str, Any] = {
        "outputs": [talk, box, said],
        "show_progress": "hidden",
        "concurrency_limit": None,  # how many run at once is the server's decision
        "api_visibility": "private",
    }
    small: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    runs: list[Dependency] = [
        box.submit(send, [box, talk, *settings], **shared),
        talk.edit(edit, [talk, *settings], **shared),
        talk.retry(retry, [talk, *settings], **shared),
        talk.example_select(_example, None, box, **small).then(send, [box, talk, *settings], **shared),
    ]
    for each in runs:
        each.failure(None, None, [box, said], js=status.lost(idle_box()), **small)
    box.stop(lambda: (idle_box(), status.line(status.STOPPED)), None, [box, said], cancels=[*runs], **small)
    talk.clear(lambda: (idle_box(""), ""), None, [box, said], cancels=[*runs], **small)
    talk.undo(undo, talk, [talk, box, said], **small)


def busy_box(text: str | None) -> Any:
    """The box with its stop button; `text` None leaves what stands there, in case the user is typing."""
    return _box(text, gr.update(submit_btn=False, stop_btn="Stop"))


def idle_box(text: str | None = None) -> Any:
    """The box with its send button; `text` as for `busy_box`."""
    return _box(text, gr.update(submit_btn="Send", stop_btn=False))


def _box(text: str | None, buttons: dict[str, Any]) -> dict[str, Any]:
    return buttons if text is None else buttons | {"value": text}


def _example(event: gr.SelectData) -> str:
    return str(event.value["text"])


def _index(event: gr.EditData | gr.RetryData | gr.UndoData) -> int:
    return event.index if isinstance(event.index, int) else event.index[0]
