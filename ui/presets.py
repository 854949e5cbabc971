"""Named sampling settings, shared by the panes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr


@dataclass(frozen=True)
class Preset:
    temperature: float
    top_p: float


PRESETS = {
    "Precise": Preset(temperature=0.0, top_p=1.0),  # greedy: the same answer every time
    "Balanced": Preset(temperature=0.3, top_p=0.95),
    "Creative": Preset(temperature=0.8, top_p=0.95),
}


@dataclass(frozen=True)
class Controls:
    """The sampling controls of one pane, in the order in which its events take them."""

    max_tokens: gr.Slider
    temperature: gr.Slider
    top_p: gr.Slider

    def inputs(self) -> list[gr.Slider]:
        return [self.max_tokens, self.temperature, self.top_p]


def controls(*, preset: str, max_tokens: int, most_tokens: int) -> Controls:
    """Place preset, temperature, top-p and token limit; a slider moved by hand leaves the preset."""
    chosen = PRESETS[preset]
    choice = gr.Radio(list(PRESETS), value=preset, label="Preset", elem_classes="presets")
    with gr.Row():
        temperature = gr.Slider(
            0.0,
            1.5,
            chosen.temperature,
            step=0.05,
            label="Temperature",
            info="0: always the likeliest",
        )
        top_p = gr.Slider(0.05, 1.0, chosen.top_p, step=0.05, label="Top-p", info="1: all tokens")
        limit = gr.Slider(16, most_tokens, max_tokens, step=16, label="Max tokens", info="An answer's length")

    def apply(name: str | None) -> tuple[float, float]:
        picked = PRESETS[name or preset]
        return picked.temperature, picked.top_p

    def matching(temperature: float, top_p: float) -> str | None:
        wanted = Preset(temperature, top_p)
        return next((name for name, each in PRESETS.items() if each == wanted), None)

    quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    choice.input(apply, choice, [temperature, top_p], **quiet)
    for slider in (temperature, top_p):
        slider.release(matching, [temperature, top_p], choice, **quiet)
    return Controls(limit, temperature, top_p)
