"""A file that is complete or absent: written beside its place, made durable, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rrtf_serve.models.disk import require_room
from rrtf_serve.models.errors import ModelError


@contextmanager
def new_file(destination: Path, *, needed_bytes: int, force: bool) -> Iterator[Path]:
    """Give a temporary path that takes `destination`'s place when the block ends well.

    Whatever ends the block early, `destination` is as it was; what a killed process leaves is removed by the
    next run. Raises ModelError when the destination exists and not `force`, is a folder, the disk has less
    than `needed_bytes` free, or another process is writing the same file.
    """
    destination = destination.absolute()
    workshop = destination.parent / f".{destination.name}.incomplete"
    try:
        workshop.mkdir(parents=True, exist_ok=True)
        with FileLock(workshop / ".lock", timeout=0):
            try:
                _check(destination, force=force)
                require_room(destination.parent, needed_bytes, "take another folder")
                file = workshop / destination.name
                yield file
                with file.open("rb+") as written:
                    os.fsync(written.fileno())
                _check(destination, force=force)
                file.replace(destination)
            finally:
                shutil.rmtree(workshop)
    except Timeout:
        raise ModelError(
            f"{destination}: another process is writing this file; wait for it, or end it"
        ) from None
    except OSError as error:
        raise ModelError(f"{destination}: can't be written ({error.strerror or error})") from error


def _check(destination: Path, *, force: bool) -> None:
    if destination.is_dir():
        raise ModelError(f"{destination}: is a folder; name the file to write, such as model.gguf")
    if os.path.lexists(destination) and not force:
        raise ModelError(f"{destination}: exists already; add --force to replace it, or take another name")
