"""The command line that gives a cell namespaces of its own (github.com/containers/bubblewrap)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")  # links into /usr on merged systems
READ_ONLY = ("/usr", "/nix/store", "/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")
PACKAGES = "/packages"
PRIVATE = Path("/tmp")  # each run has its own in the place of the host's


def find() -> str | None:
    return shutil.which("bwrap")


def command(
    bwrap: str,
    *,
    mounts: list[Path],
    packages: tuple[Path, ...],
    code: Path,
    info_fd: int,
    folder: str,
    environment: dict[str, str],
) -> list[str]:
    """bwrap and its options, up to where the programme's own command line follows.

    mounts    folders to show read-only at their own place
    packages  folders to show read-only as /packages/0 and so on: their own place may be hidden by `folder`
    code      shown as /rrtf/inside
    info_fd   bwrap writes {"child-pid": n} there
    """
    words = [
        bwrap, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try",
        "--hostname", "sandbox", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv",
        "--info-fd", str(info_fd),
    ]  # fmt: skip
    if os.getuid() == 0:
        # The cell becomes an ordinary user by itself; a user namespace would leave it root to the kernel.
        words += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        words += ["--unshare-user", "--uid", "65534", "--gid", "65534"]
    for name, value in environment.items():
        words += ["--setenv", name, value]
    made: set[Path] = set()
    for name in SYSTEM:
        if Path(name).is_symlink():
            words += ["--symlink", str(Path(name).readlink()), name]
        elif Path(name).exists():
            words += ["--ro-bind", name, name]
    present = [Path(path) for path in READ_ONLY if Path(path).exists()]
    for path in [*present, *(m for m in mounts if not m.is_relative_to("/usr"))]:
        for parent in reversed(path.parents[:-1]):
            if parent not in made:
                made.add(parent)
                words += ["--dir", str(parent)]  # bwrap's own would be closed to an ordinary user
        words += ["--ro-bind", str(path), str(path)]
    words += ["--dir", "/rrtf", "--ro-bind", str(code), "/rrtf/inside"]
    for number, path in enumerate(packages):
        words += ["--dir", PACKAGES, "--ro-bind", str(path), f"{PACKAGES}/{number}"]
    # devtmpfs is not needed: null, zero, full, random, urandom and tty are what --dev makes.
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev", "--tmpfs", folder]
    words += ["--remount-ro", "/", "--chdir", "/"]
    return [*words, "--"]
