"""How much memory this process may still take, asked before a model is loaded rather than found out after."""

from __future__ import annotations

from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
# (limit, in use) of the control group that a container puts its processes in: version 2, then version 1
_GROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
)


def available_memory() -> int | None:
    """Bytes that can be had without swapping, or None where the system doesn't tell (no Linux).

    What the machine has free and what the container's limit leaves, whichever is less. A container's count
    includes the page cache, which would be given up, so the true figure may be higher.
    """
    machine = _machine()
    if machine is None:
        return None
    return min([machine, *(room for limit, used in _GROUPS if (room := _room(limit, used)) is not None)])


def _machine() -> int | None:
    try:
        lines = _MEMINFO.read_text("ascii").splitlines()
    except OSError:
        return None
    found = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return None if found is None else 1024 * int(found)


def _room(limit: Path, used: Path) -> int | None:
    try:
        most, now = limit.read_text("ascii").strip(), int(used.read_text("ascii"))
    except (OSError, ValueError):
        return None
    return int(most) - now if most.isdigit() else None
