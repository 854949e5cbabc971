"""A folder that is complete or absent: written beside its place, made durable, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rrtf_serve.models.errors import ModelError

_LOCK = ".lock"
_SPARE_BYTES = 16 << 20  # left free on the disk after the folder


@contextmanager
def new_folder(destination: Path, *, needed_bytes: int, force: bool) -> Iterator[Path]:
    """Give a temporary folder beside `destination` that takes its place when the block ends well.

    Whatever ends the block early, `destination` is as it was; the temporary folder of a killed process is
    removed by the next run. With `force` an existing model folder or an empty folder is replaced. Raises
    ModelError when the destination exists, the disk has less than `needed_bytes` free, or another process is
    writing the same folder.
    """
    destination = destination.absolute()
    parent = destination.parent
    temporary = parent / f".{destination.name}.incomplete"
    replaced = parent / f".{destination.name}.replaced"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        # The lock lies in the temporary folder and moves with it, so that nothing is left beside the result.
        with FileLock(temporary / _LOCK, timeout=0):
            try:
                _check_destination(destination, force=force)
                _clear(temporary)
                _check_space(parent, needed_bytes)
                yield temporary
                _sync(temporary)
                if destination.exists():
                    _remove(replaced)
                    destination.rename(replaced)
                temporary.rename(destination)
            except BaseException:
                _remove(temporary)
                raise
            (destination / _LOCK).unlink()
            _sync_folder(parent)
            _remove(replaced)
    except Timeout:
        raise ModelError(
            f"{destination}: another process is writing this folder; wait for it, or end it"
        ) from None
    except OSError as error:
        raise ModelError(f"{destination}: can't be written ({error.strerror or error})") from error


def _check_destination(destination: Path, *, force: bool) -> None:
    if not os.path.lexists(destination):
        return
    if not force:
        raise ModelError(f"{destination}: exists already; add --force to replace it, or take another folder")
    if destination.is_symlink() or not destination.is_dir():
        raise ModelError(f"{destination}: not a folder; --force replaces model folders only")
    if any(destination.iterdir()) and not (destination / "model.bin").is_file():
        raise ModelError(
            f"{destination}: holds no converted model (no model.bin); --force replaces model folders only"
        )


def _check_space(parent: Path, needed_bytes: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed_bytes + _SPARE_BYTES:
        raise ModelError(
            f"{parent}: {free / 1e9:.2f} GB free, the converted model needs "
            f"{(needed_bytes + _SPARE_BYTES) / 1e9:.2f} GB; free some space or take another folder"
        )


def _clear(temporary: Path) -> None:
    for path in temporary.iterdir():
        if path.name != _LOCK:
            path.unlink()


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
