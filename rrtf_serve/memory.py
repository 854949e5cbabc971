"""How much memory a model that is to be loaded may take."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def available_memory() -> int | None:
    """Bytes that can be taken without swapping, of this machine and of the control groups (version 2) above
    this process; None where neither says so (https://docs.kernel.org/admin-guide/cgroup-v2.html)."""
    found = [each for each in (_of_machine(), *_of_groups()) if each is not None]
    return min(found, default=None)


def _of_machine() -> int | None:
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:  # not Linux
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _of_groups() -> list[int]:
    try:
        own = next(line for line in _OWN_GROUP.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder = _GROUPS / own.removeprefix("0::").lstrip("/")
    found = []
    while folder.is_relative_to(_GROUPS):
        left = _left(folder)
        if left is not None:
            found.append(left)
        folder = folder.parent
    return found


def _left(folder: Path) -> int | None:
    """Of one group: its limit less what it can't give up; the cache of files is given up first."""
    try:
        limit = (folder / "memory.max").read_text("ascii").strip()
        if limit == "max":
            return None
        used = int((folder / "memory.current").read_text("ascii"))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
    except (OSError, ValueError):  # the root group has no limit
        return None
    return max(0, int(limit) - used + int(counts.get("inactive_file", 0)))
