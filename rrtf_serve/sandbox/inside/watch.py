"""What no kernel limit covers, measured from outside: a tree's memory and processes, a folder's size."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rrtf_serve.sandbox.inside import folder
from rrtf_serve.sandbox.inside.confinement import Order, Setup

PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
STRAYS_S = 5.0  # how long to go on killing what a run left behind


class Watch:
    def __init__(self, child: int, order: Order, setup: Setup, *, nested: bool, own: frozenset[int]) -> None:
        self._child = child
        self._order = order
        self._folder = None if nested else setup.folder
        self._own = own  # of a process namespace that holds nothing but us and the run
        self._tree = order.role == "command"
        self._counted = not nested and setup.uid is None  # else the kernel counts them for us
        self.needed = self._tree or self._folder is not None
        self.peak_bytes = 0

    def broken(self) -> str:
        """The limit that is broken, or ""."""
        if self._tree:
            memory = processes = 0
            cpu = 0.0
            for pid in pids():
                usage = None if pid in self._own else _usage(pid, None if self._own else self._child)
                if usage is not None:
                    processes += 1
                    memory += usage[0]
                    cpu += usage[1]
            self.peak_bytes = max(self.peak_bytes, memory)
            if memory > self._order.memory_bytes:
                return "memory"
            if processes > self._order.processes:
                return "processes"
            if cpu > self._order.cpu_s:
                return "cpu"
        elif self._counted and self._threads() > self._order.processes:
            return "processes"
        if self._folder is not None:
            return folder.breaks(self._folder, self._order.files, self._order.file_bytes)
        return ""

    def _threads(self) -> int:
        fields = _stat(self._child)
        return int(fields[17]) if fields else 0

    def clean(self) -> None:
        """Empty a folder that outlives the run; whatever can't be removed is left for the host to find."""
        if self._folder is not None:
            folder.empty(self._folder)


def run_delay(pidfd: int) -> float | None:
    """Seconds that a process not yet reaped has been ready to run while others ran; None if not known.

    Its first thread alone counts. Source: Linux Documentation/scheduler/sched-stats.rst.
    """
    try:
        lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text("ascii").splitlines()
        pid = next(line.split()[1] for line in lines if line.startswith("Pid:"))  # as this /proc numbers it
        return int(Path(f"/proc/{pid}/schedstat").read_text("ascii").split()[1]) / 1e9
    except (OSError, StopIteration, IndexError):
        return None


def end_strays() -> None:
    """Kill and reap every process that came down to us, as the reaper of all that the run started."""
    until = time.monotonic() + STRAYS_S
    while time.monotonic() < until:
        for pid in pids():
            if _parent(pid) == os.getpid():
                os.kill(pid, signal.SIGKILL)
        try:
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            return
        time.sleep(0.001)


def pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _stat(pid: int) -> list[str]:
    """/proc/<pid>/stat from the state on (proc(5): field 3 is index 0); [] once the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
    except OSError:
        return []


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else -1


def _usage(pid: int, group: int | None) -> tuple[int, float] | None:
    """Resident bytes and processor seconds, of a member of the group where one is given."""
    fields = _stat(pid)
    if not fields or (group is not None and int(fields[2]) != group):
        return None
    return int(fields[21]) * PAGE, (int(fields[11]) + int(fields[12])) / TICKS
