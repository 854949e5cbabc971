"""Private folders of cells that have no mounts of their own; what judges that were killed left is removed.

Each is locked (flock) for as long as its judge lives, so that another can tell whether it is still in use,
also where the two see different process numbers.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rrtf_serve.sandbox.inside import folder

PREFIX = "rrtf-cell-"


@dataclass
class Folder:
    path: Path
    lock: int  # descriptor of the folder

    def remove(self) -> None:
        folder.empty(str(self.path))
        with contextlib.suppress(OSError):  # something in it could not be removed
            self.path.rmdir()
        os.close(self.lock)


def make(owner: int | None) -> Folder:
    """A new folder that `owner` (None: ourselves) alone may enter. OSError where none can be made."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = _locked(path)
        if lock is not None and path.exists():  # not swept away before it was locked
            break
    if owner is not None:
        os.fchown(lock, owner, -1)
    return Folder(path, lock)


def sweep(owners: range) -> None:
    """Remove folders that are ours, or of `owners`, and that no living judge has locked."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            owner = path.lstat().st_uid
        except OSError:
            continue
        if owner == os.getuid() or owner in owners:
            lock = _locked(path)
            if lock is not None:
                Folder(path, lock).remove()


def _locked(path: Path) -> int | None:
    """A descriptor with the lock, or None where another has it or the folder is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return fd
