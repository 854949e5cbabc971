"""A folder that is complete or absent: written beside its place, made durable, then renamed into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.records import is_text
from rrtf_serve.models.source import Source

_LOCK = ".lock"
_SPARE_BYTES = 16 << 20  # left free on the disk after the folder


def check_apart(source: Source, destination: Path) -> None:
    """Raises ModelError where `destination` is, holds or lies in what it would be made from, and on names
    that are not UTF-8, which neither a card nor the libraries can hold."""
    for named in (source.path, destination):
        if not is_text(str(named.absolute())):
            raise ModelError(f"{named}: its name is not UTF-8; rename it, or take another folder")
    target = destination.resolve()
    for place in (source.path, *((source.base.path,) if source.base else ())):
        folder = place.resolve()
        if target == folder or target in folder.parents or folder in target.parents:
            raise ModelError(f"{destination}: lies in or around the source {place}; take another folder")


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
                if replaced.exists() and not os.path.lexists(destination):
                    replaced.rename(destination)  # a run with --force was killed between its two renames
                _check_destination(destination, force=force)
                _clear(temporary)
                _check_space(parent, needed_bytes)
                yield temporary
                _sync(temporary)
                _check_destination(destination, force=force)  # hours may have passed
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
    marks = ("rrtf.json", "model.bin")  # a folder of ours, or of CTranslate2's own converter
    if any(destination.iterdir()) and not any((destination / mark).is_file() for mark in marks):
        raise ModelError(
            f"{destination}: holds no converted model (neither rrtf.json nor model.bin); --force replaces "
            "converted models only"
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
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != _LOCK:
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
