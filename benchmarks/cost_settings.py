"""What a folder of measurements was made with: kept beside them, and held against what is asked now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.sample import write_json


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write them, or raise ValueError with the differences from those that are there."""
    plain = json.loads(json.dumps(settings))
    kept = read_json(path)
    if kept is None:
        write_json(path, plain)
        return
    changed = [name for name in {**kept, **plain} if kept.get(name) != plain.get(name)]
    if changed:
        shown = "; ".join(f"{name}: {kept.get(name)!r} there, {plain.get(name)!r} here" for name in changed)
        raise ValueError(
            f"{path.parent}: holds measurements with other settings ({shown}); give another --output, or the "
            "settings that they were made with"
        )


def read_json(path: Path) -> dict[str, Any] | None:
    """A file of a measurement; None where it is not there. Raises ValueError on a damaged one."""
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); move it away, and it is made anew") from error
    return found
