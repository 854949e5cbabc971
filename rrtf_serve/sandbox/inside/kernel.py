"""The few Linux calls that Python 3.11 lacks, through the C library: namespaces, mounts, landlock."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x08000000, 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
CAPABILITY_VERSION_3 = 0x20080522

# Linux include/uapi/linux/landlock.h; the numbers are the same on every architecture.
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
EXECUTE, WRITE, READ, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
FS_RIGHTS_BY_ABI = {
    1: 13,
    2: 14,
    3: 15,
    4: 15,
    5: 16,
}  # how many rights of the file system each version knows
SCOPES_SIGNALS = 6  # the first version that keeps signals inside
READ_ONLY = READ | READ_DIR | EXECUTE
# Remove and make files and folders, symbolic links, move between folders, truncate; no sockets, no devices.
WRITABLE = READ_ONLY | WRITE | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 14
ON_FILES = EXECUTE | WRITE | READ | 1 << 14 | 1 << 15

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, value: int) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0), f"prctl {option}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    _check(_libc.setns(fd, kind), "setns")


def mount_tmpfs(target: str, flags: int, options: str) -> None:
    _check(
        _libc.mount(b"tmpfs", target.encode(), b"tmpfs", ctypes.c_ulong(flags), options.encode()),
        f"mount {target}",
    )


def drop_capabilities() -> None:
    header = struct.pack("Ii", CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, bytes(24)), "capset")


def map_user(uid: int, gid: int) -> None:
    """Keep the numbers of user and group in the user namespace just made."""
    Path("/proc/self/setgroups").write_text("deny", "ascii")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1", "ascii")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1", "ascii")


def landlock_version() -> int:
    """The kernel's landlock ABI; 0: none (Linux below 5.13, or switched off)."""
    return max(0, int(_libc.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def landlock_ruleset(readable: list[str], writable: list[str], files: dict[str, int]) -> int:
    """A ruleset as a file descriptor. OSError where landlock is not to be had.

    readable, writable  folders; what is missing is left out
    files               single files and their rights

    Everything else on the file system, TCP, abstract sockets and signals to the outside are refused, as far
    as this kernel's landlock can.
    """
    version = _check(landlock_version() or -1, "landlock")
    handled = (1 << FS_RIGHTS_BY_ABI.get(version, 16)) - 1
    attributes = struct.pack("QQQ", handled, 3 if version >= 4 else 0, 3 if version >= SCOPES_SIGNALS else 0)
    size = 24 if version >= SCOPES_SIGNALS else 16 if version >= 4 else 8
    ruleset = _check(_libc.syscall(LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0), "landlock ruleset")
    rules = [(path, READ_ONLY) for path in readable] + [(path, WRITABLE) for path in writable]
    for path, rights in [*rules, *files.items()]:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            allowed = rights & handled & (-1 if Path(path).is_dir() else ON_FILES)
            rule = struct.pack("=Qi", allowed, fd)
            _check(_libc.syscall(LANDLOCK_ADD, ruleset, 1, rule, 0), f"landlock rule for {path}")
        finally:
            os.close(fd)
    return ruleset


def landlock_restrict(ruleset: int) -> None:
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    _check(_libc.syscall(LANDLOCK_RESTRICT, ruleset, 0), "landlock restrict")
