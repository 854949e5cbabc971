"""Room on disk: asked for before a download, explained when it runs out during one."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

from rrtf_serve.models.errors import ModelError

MARGIN = 64 * 1024 * 1024  # bytes left free for everybody else


def size_text(count: int) -> str:
    """Bytes as people read them, in decimal units: 491 MB, 1.1 GB."""
    if count < 1_000_000:
        return f"{count / 1e3:.0f} kB"
    return f"{count / 1e6:.0f} MB" if count < 1_000_000_000 else f"{count / 1e9:.1f} GB"


def require_room(folder: Path, needed: int, advice: str) -> None:
    """Raise ModelError when `folder`'s disk has not `needed` bytes and a margin free.

    `folder` may not exist yet; its nearest existing parent is asked. `advice` says how to use another disk.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + MARGIN:
        raise ModelError(
            f"not enough room in {folder}: {size_text(needed + MARGIN)} needed, {size_text(free)} free. "
            f"Free some space, or {advice}."
        )


def write_failure(error: OSError, path: Path, kept: str) -> ModelError:
    """The ModelError that explains why writing `path` failed; `kept` says what became of the part written."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file is larger than this process may write (see `ulimit -f`)",
        errno.EROFS: "the disk is read-only",
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
    }
    reason = reasons.get(error.errno or 0, error.strerror or str(error))
    return ModelError(f"writing {path} failed: {reason}. {kept}")
