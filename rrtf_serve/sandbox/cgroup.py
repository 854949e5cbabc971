"""Memory and process limits of a whole process tree, where this user may make control groups (v1 or v2).

Sources: Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{memory,pids}.rst. Nothing depends on
groups being available: without them the sandbox measures trees itself (inside/watch.py).
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

PREFIX = "rrtf-"
ROOT = Path("/sys/fs/cgroup")
REMOVE_S = 2.0


class Group:
    """One group per cell, made once; limits are set again for each run."""

    def __init__(self, folders: dict[str, Path]) -> None:
        self._folders = folders  # "memory" and "pids", the same folder twice under v2
        self._v2 = folders["memory"] == folders["pids"]
        self._limits: tuple[int, int] | None = None
        self._kills = 0

    def add(self, pid: int) -> bool:
        """False where we may make groups but not move processes into them."""
        try:
            for folder in set(self._folders.values()):
                (folder / "cgroup.procs").write_text(str(pid), "ascii")
        except OSError:
            return False
        return True

    def limit(self, memory_bytes: int, processes: int) -> None:
        if self._limits != (memory_bytes, processes):
            name = "memory.max" if self._v2 else "memory.limit_in_bytes"
            (self._folders["memory"] / name).write_text(str(memory_bytes), "ascii")
            (self._folders["pids"] / "pids.max").write_text(str(processes), "ascii")
            if self._v2:
                with contextlib.suppress(OSError):  # no swap accounting in this kernel
                    (self._folders["memory"] / "memory.swap.max").write_text("0", "ascii")
            self._limits = (memory_bytes, processes)

    def ran_out(self) -> bool:
        """Whether the kernel has killed for memory since the last time this was asked."""
        name = "memory.events" if self._v2 else "memory.oom_control"
        lines = dict(
            line.split() for line in (self._folders["memory"] / name).read_text("ascii").splitlines()
        )
        kills = int(lines.get("oom_kill", 0))
        before, self._kills = self._kills, kills
        return kills > before

    def remove(self) -> None:
        until = time.monotonic() + REMOVE_S
        for folder in set(self._folders.values()):
            while True:
                try:
                    folder.rmdir()
                    break
                except FileNotFoundError:
                    break
                except OSError:  # its last process is still on its way out
                    if time.monotonic() > until:
                        break
                    time.sleep(0.01)


def make(number: int) -> Group | None:
    """A new group below our own, or None where that is not allowed or lacks a controller."""
    name = f"{PREFIX}{os.getpid()}-{number}"
    parents = _own_groups()
    made: list[Path] = []
    try:
        folders = {}
        for controller in ("memory", "pids"):
            folder = parents[controller] / name
            if folder not in made:
                folder.mkdir()
                made.append(folder)
            folders[controller] = folder
        needed = (folders["pids"] / "pids.max", folders["memory"] / "cgroup.procs")
        limit = [folders["memory"] / n for n in ("memory.max", "memory.limit_in_bytes")]
        if not all(os.access(p, os.W_OK) for p in needed) or not any(os.access(p, os.W_OK) for p in limit):
            raise PermissionError
    except (OSError, KeyError):
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        return None
    return Group(folders)


def sweep() -> None:
    """Remove groups of judges that were killed before they could."""
    for parent in set(_own_groups().values()):
        for folder in parent.glob(f"{PREFIX}*"):
            pid = folder.name.removeprefix(PREFIX).split("-")[0]
            if pid.isdigit() and not Path(f"/proc/{pid}").exists():
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _own_groups() -> dict[str, Path]:
    """Where each controller's groups of this process are (proc(5), cgroups(7))."""
    found: dict[str, Path] = {}
    try:
        lines = Path("/proc/self/cgroup").read_text("ascii").splitlines()
    except OSError:
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            unified = ROOT / path.lstrip("/")
            for name in ("memory", "pids"):
                found.setdefault(name, unified)
        else:
            for name in controllers.split(","):
                if (ROOT / name).is_dir():
                    found[name] = ROOT / name / path.lstrip("/")
    return found
