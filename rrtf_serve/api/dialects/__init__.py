"""Other servers' ways to ask for the same: each module adds one family of routes to the app.

Each reads its own field names, makes a Plan of them through api/infill, api/completions or api/chat, and
gives the answer in its own shape; none talks to an engine. May import `rrtf_serve.api`; imported by api/app.
"""

from __future__ import annotations

from collections.abc import Callable

from fastapi import FastAPI

from rrtf_serve.api.dialects import codex, huggingface, llamacpp, mistral, ollama, tabby, tgi
from rrtf_serve.api.models import Models
from rrtf_serve.api.settings import ApiSettings

Dialect = Callable[[FastAPI, Models, ApiSettings], None]

DIALECTS: tuple[Dialect, ...] = (
    codex.add, huggingface.add, llamacpp.add, mistral.add, ollama.add, tabby.add, tgi.add,
)  # fmt: skip


def add_dialects(app: FastAPI, models: Models, settings: ApiSettings) -> None:
    """Add every dialect's routes to the app, and its shape of errors to api/errors."""
    for add in DIALECTS:
        add(app, models, settings)
