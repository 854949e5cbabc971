"""The Complete pane: an editor whose marked place the model fills."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from ui import status
from ui.chat import UPDATE_SECONDS
from ui.gate import KEY_HEADER
from ui.presets import controls
from ui.server import AnswerError, Options, Progress, Server

MARKER = "<FILL_HERE>"

LANGUAGES: dict[str, Any] = {
    "Python": "python",
    "C": "c",
    "C++": "cpp",
    "JavaScript": "javascript",
    "TypeScript": "typescript",
    "HTML": "html",
    "CSS": "css",
    "SQL": "sql",
    "Shell": "shell",
    "R": "r",
    "JSON": "json",
    "YAML": "yaml",
    "Dockerfile": "dockerfile",
    "Markdown": "markdown",
    "Other": None,  # Java, Go, Rust and the like: no colours in the editor, all the same to the model
}


@dataclass(frozen=True)
class Example:
    label: str
    language: str
    code: str


# Each ends well on the default model with this pane's first settings; tests/test_ui_live.py holds them to it.
EXAMPLES = (
    Example(
        "Fill a function body",
        "Python",
        f'def is_prime(n: int) -> bool:\n    """Tell whether n is a prime number."""\n'
        f"    if n < 2:\n        return False\n    {MARKER}\n\n\n"
        "print([n for n in range(30) if is_prime(n)])\n",
    ),
    Example(
        "Fill one expression",
        "JavaScript",
        "// The average of the numbers; 0 for an empty list.\nfunction average(numbers) {\n"
        f"  if (numbers.length === 0) return 0;\n  const sum = {MARKER};\n"
        "  return sum / numbers.length;\n}\n\nconsole.log(average([1, 2, 3])); // 2\n",
    ),
    Example(
        "Continue at the end",
        "Python",
        "# FizzBuzz from 1 to 15\nfor number in range(1, 16):\n    if number % 15 == 0:\n"
        '        print("FizzBuzz")\n    elif',
    ),
)


FILLING = f"Put `{MARKER}` where code is missing. Without it the model goes on at the end."
CONTINUING = "The model goes on at the end of the code. It can't fill in the middle."


class Verbatim(str):
    """Code as it is: the editor strips what it is given, but a last line break decides what comes next."""

    __slots__ = ()

    def strip(self, _chars: str | None = None, /) -> str:
        return self


class UnclearError(ValueError):
    """The editor's text does not say where to fill; the text is for the user."""


def split(code: str) -> tuple[str, str | None]:
    """What stands before the marker and what after it; no marker means the end: (code, None).

    Raises UnclearError when there is nothing to go by or more than one marker.
    """
    if not code.replace(MARKER, "").strip():
        raise UnclearError("There is no code yet. Write some, or take an example.")
    count = code.count(MARKER)
    if count > 1:
        raise UnclearError(
            f"{MARKER} stands in {count} places. Leave one of them; fill the others afterwards."
        )
    prefix, found, suffix = code.partition(MARKER)
    return prefix, suffix if found else None


def joined(prefix: str, middle: str, suffix: str | None) -> str:
    """The code with `middle` in its place; its last line breaks give way to those already there."""
    rest = suffix or ""
    return prefix + (middle.rstrip("\n") if rest.startswith("\n") else middle) + rest


def build(server: Server) -> list[gr.Component]:
    """Place the pane in the current Blocks; gives what `opened` updates."""

    async def fill(
        request: gr.Request, code: str | None, max_tokens: int, temperature: float, top_p: float
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Stream into the marked place; a failure leaves the editor as it was."""
        before = Verbatim(code or "")
        try:
            prefix, suffix = split(before)
            if suffix is not None and not server.infill:
                raise UnclearError(
                    f"This model can't fill in the middle: remove {MARKER} to continue at the end."
                )
        except UnclearError as problem:
            yield gr.skip(), gr.skip(), *idle(), status.line(str(problem), "problem")
            return

        def shown_with(middle: str) -> Verbatim:
            # With nothing to add the marker stays, for another try.
            return Verbatim(joined(prefix, middle, suffix)) if middle else before

        options = Options(int(max_tokens), temperature, top_p)
        progress = Progress()
        yield gr.skip(), before, *busy(), status.line("Waiting for the model…")
        shown = 0.0
        try:
            async with aclosing(
                server.complete(prefix, suffix, options, key=request.headers.get(KEY_HEADER))
            ) as stream:
                async for progress in stream:
                    if progress.text and time.monotonic() - shown >= UPDATE_SECONDS:
                        # Cleared once only: an update on its way must not wipe out "Stopped."
                        quiet = gr.skip() if shown else ""
                        yield shown_with(progress.text), *[gr.skip()] * (1 + len(buttons)), quiet
                        shown = time.monotonic()
        except AnswerError as problem:
            yield (
                shown_with(progress.text),
                gr.skip(),
                *idle(bool(progress.text)),
                status.line(str(problem), "problem"),
            )
            return
        yield (
            shown_with(progress.text),
            gr.skip(),
            *idle(bool(progress.text)),
            status.ending(progress, options.max_tokens),
        )

    def busy() -> tuple[Any, ...]:
        # What replaces the code waits for Stop: an update on its way would write over it.
        return (
            gr.Button(visible=False),
            gr.Button(visible=True),
            *[gr.Button(interactive=False) for _ in (undo, *others)],
        )

    def idle(undoable: bool | None = None) -> tuple[Any, ...]:
        return (
            gr.Button(visible=True),
            gr.Button(visible=False),
            gr.skip() if undoable is None else gr.Button(interactive=undoable),
            *[gr.Button(interactive=True) for _ in others],
        )

    lead = gr.Markdown(FILLING, elem_classes="lead")
    with gr.Row(elem_classes="toolbar"):
        language = gr.Dropdown(
            list(LANGUAGES),
            value="Python",
            show_label=False,
            label="Language",
            container=False,
            scale=0,
            min_width=150,
        )
        samples = [gr.Button(each.label, size="sm", scale=0, min_width=150) for each in EXAMPLES]
    editor = gr.Code(
        Verbatim(EXAMPLES[0].code),
        language="python",
        elem_id="editor",
        label="Code",
        show_label=False,
        lines=16,
        max_lines=28,
        interactive=True,
        buttons=["copy", "download"],
    )
    said = gr.HTML(elem_id="complete-status")
    with gr.Row(elem_classes="actions"):
        run = gr.Button(
            "Fill (Ctrl+Enter)", variant="primary", elem_id="fill", size="md", scale=0, min_width=180
        )
        stop = gr.Button(
            "Stop", variant="stop", elem_id="fill-stop", visible=False, size="md", scale=0, min_width=180
        )
        undo = gr.Button(
            "Undo fill", elem_id="fill-undo", interactive=False, size="md", scale=0, min_width=120
        )
        clear = gr.Button("Clear", elem_id="fill-clear", size="md", scale=0, min_width=100)
    with gr.Accordion("Settings", open=False, elem_id="complete-settings"):
        sampling = controls(preset="Precise", max_tokens=128, most_tokens=2048)

    others = [clear, *samples]
    buttons = [run, stop, undo, *others]
    saved = gr.State("")  # the editor before the last fill
    small: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    filling = run.click(
        fill,
        [editor, *sampling.inputs()],
        [editor, saved, *buttons, said],
        show_progress="hidden",
        concurrency_limit=None,  # how many run at once is the server's decision
        api_visibility="private",
    )
    filling.failure(
        None,
        None,
        [*buttons, said],
        js=status.lost(
            gr.update(visible=True),
            gr.update(visible=False),
            *[gr.update(interactive=True)] * (1 + len(others)),
        ),
        **small,
    )
    stop.click(
        lambda: (*idle(True), status.line(status.STOPPED)),
        None,
        [*buttons, said],
        cancels=[filling],
        **small,
    )
    undo.click(
        lambda code: (Verbatim(code), gr.Button(interactive=False), ""), saved, [editor, undo, said], **small
    )
    clear.click(lambda: ("", gr.Button(interactive=False), ""), None, [editor, undo, said], **small)
    language.input(lambda name: gr.Code(language=LANGUAGES[name]), language, editor, **small)
    for sample, button in zip(EXAMPLES, samples, strict=True):
        button.click(partial(taken, sample), None, [editor, language, undo, said], **small)
    return [lead, editor, language, *samples]


def loaded(example: Example) -> tuple[gr.Code, str]:
    """New values of the editor and the language box."""
    return gr.Code(Verbatim(example.code), language=LANGUAGES[example.language]), example.language


def taken(example: Example) -> tuple[Any, ...]:
    """`loaded`, nothing to undo, and no status."""
    return *loaded(example), gr.Button(interactive=False), ""


def opened(infill: bool) -> tuple[Any, ...]:
    """Updates of what `build` gave, for a model that can fill in the middle or can only go on at the end."""
    fit = [infill or MARKER not in each.code for each in EXAMPLES]
    # The editor already holds the first example.
    first = (gr.skip(), gr.skip()) if fit[0] else loaded(EXAMPLES[fit.index(True)])
    lead = FILLING if infill else CONTINUING
    return lead, *first, *[gr.Button(visible=each) for each in fit]
