"""Measuring and emptying a folder that untrusted code has filled: any depth, any names, any rights.

Everything goes by descriptors, so that no path is ever too long and no link is followed, even while the run
goes on. Nothing recurses, and the descriptors held at a time are bounded.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

DEEPEST = 100  # levels measured, each with an open descriptor; deeper nesting breaks the limit on files


def breaks(folder: str, files: int, size: int) -> str:
    """The limit that the folder's contents break: "files", "disk" or ""."""
    count = used = 0
    levels: list[tuple[int, list[str]]] = []  # descriptor, folders in it yet to be entered
    entering: int | None = _enter(folder)
    try:
        while levels or entering is not None:
            if entering is not None:
                inner: list[str] = []
                levels.append((entering, inner))
                # Removed or moved meanwhile: then it holds nothing we could count.
                with suppress(OSError), os.scandir(entering) as entries:
                    for entry in entries:
                        count += 1
                        if count > files:
                            return "files"
                        with suppress(OSError):
                            used += entry.stat(follow_symlinks=False).st_blocks * 512
                            if entry.is_dir(follow_symlinks=False):
                                inner.append(entry.name)
                if inner and len(levels) >= DEEPEST:
                    return "files"
                entering = None
            fd, names = levels[-1]
            if names:
                entering = _enter(names.pop(), fd)
            else:
                os.close(fd)
                levels.pop()
    finally:
        for fd, _ in levels:
            os.close(fd)
    return "disk" if used > size else ""


def empty(folder: str) -> None:
    """Remove what is in the folder; what can't be removed stays.

    A folder's own folders are moved up to the top before it is removed, so that depth needs no stack. Only
    for when the run is over.
    """
    top = _enter(folder)
    if top is None:
        return
    try:
        pending = _clear(top)
        prefix = secrets.token_hex(8)  # names that the run can't have taken
        moved = 0
        while pending:
            name = pending.pop()
            fd = _enter(name, top)
            if fd is None:
                continue
            try:
                for inner in _clear(fd):
                    below = _enter(inner, fd)  # moving a folder needs rights on it as well
                    if below is None:
                        continue
                    os.close(below)
                    moved += 1
                    with suppress(OSError):
                        os.rename(inner, f"{prefix}-{moved}", src_dir_fd=fd, dst_dir_fd=top)
                        pending.append(f"{prefix}-{moved}")
            finally:
                os.close(fd)
            with suppress(OSError):
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _clear(fd: int) -> list[str]:
    """Remove everything but folders; returns their names."""
    folders = []
    with suppress(OSError):
        with os.scandir(fd) as entries:
            found = list(entries)
        for entry in found:
            with suppress(OSError):
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=fd)
    return folders


def _enter(name: str, parent: int | None = None) -> int | None:
    """The folder's descriptor, with the rights on it that the run took away; None where it can't be had."""
    try:
        place = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return None
    try:
        mode = stat.S_IMODE(os.fstat(place).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            # By the descriptor: by its name, a link put there meanwhile would be followed.
            Path(f"/proc/self/fd/{place}").chmod(mode | stat.S_IRWXU)
        return os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=place)
    except OSError:
        return None
    finally:
        os.close(place)
