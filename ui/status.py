"""The line under a pane that says what happened: progress, an ending, or a problem."""

from __future__ import annotations

import html
from typing import Literal

from ui.server import Progress

Tone = Literal["plain", "problem"]

STOPPED = "Stopped."


def line(text: str, tone: Tone = "plain") -> str:
    """HTML of the line; `text` is escaped. Screen readers announce it, a problem at once."""
    role = "alert" if tone == "problem" else "status"
    return f'<p class="status {tone}" role="{role}">{html.escape(text)}</p>' if text else ""


def ending(progress: Progress, limit: int) -> str:
    """What a finished answer cost, and why it ended if it was cut."""
    cut = f"Cut at {limit} tokens: raise the limit in Settings. " if progress.finish == "length" else ""
    if progress.tokens is None or not progress.text:
        return line(cut or "The model had nothing to add.")
    first = progress.first_after or 0.0
    spent = progress.elapsed - first
    rate = f" · {(progress.tokens - 1) / spent:.0f} tokens/s" if progress.tokens > 1 and spent > 0 else ""
    plural = "" if progress.tokens == 1 else "s"
    times = f"in {progress.elapsed:.1f} s · first after {first:.2f} s{rate}"
    return line(f"{cut}{progress.tokens} token{plural} {times}")
