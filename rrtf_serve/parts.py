"""Parts that other packages bring: converters and pages, found by entry point and never imported by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from rrtf_serve.models.errors import ModelError


def find_part(group: str, name: str) -> Callable[..., Any]:
    for entry in entry_points(group=group, name=name):
        loaded: Callable[..., Any] = entry.load()
        return loaded
    raise ModelError(
        f"no {name!r} in entry-point group {group}: reinstall the package (pip install rrtf-serve)"
    )
