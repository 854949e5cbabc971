"""Which level works here: each is tried by a programme that sets out to break it."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rrtf_serve.sandbox import bubblewrap
from rrtf_serve.sandbox.cell import Cell, CellError, CellOptions
from rrtf_serve.sandbox.jobs import StdioCase, StdioJob
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.runs import judge_stdio

VARIABLE = "RRTF_SANDBOX"
ON_OFFER = (Level.BUBBLEWRAP, Level.LANDLOCK)  # without being asked for by name
LIMITS = Limits(wall_s=20, cpu_s=10)
CELL_NUMBER = 999  # no worker's

# Prints which of its attempts succeeded. {0}: a file anybody may read, {1}: a port, {2}: our process.
PROBE = """
import ctypes, json, os, socket
def succeeds(attempt):
    try:
        return attempt() is not False
    except BaseException:
        return False
def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
libc = ctypes.CDLL(None, use_errno=True)
print(json.dumps([name for name, attempt in {{
    "read a file of the host": lambda: open({0!r}).read(),
    "write a file of the host": lambda: open({0!r}, "a").close(),
    "make a file beside it": lambda: open({0!r} + ".new", "w").close(),
    "reach a port of the host": lambda: socket.create_connection(("127.0.0.1", {1}), 2),
    "open a socket": lambda: socket.socket(),
    "signal a process of the host": lambda: os.kill({2}, 0),
    "be the superuser": lambda: os.geteuid() == 0 and open("/proc/self/loginuid", "w"),
    "start a process": child,
    "start another programme": lambda: os.execv("/bin/sh", ["/bin/sh", "-c", "exit 0"]),
    "trace a process": lambda: libc.ptrace(0, 0, 0, 0) == 0,
    "make namespaces": lambda: libc.unshare(0x10000000) == 0,
    "mount": lambda: libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0,
}}.items() if succeeds(attempt)]))
"""
STATES_NOTHING = "[]\n"


@dataclass(frozen=True)
class Report:
    """What the self-test found. `refused` says, for each stronger level, why it can't be had here."""

    level: Level
    landlock_version: int  # the kernel's ABI; 0: none
    nested: bool  # bubblewrap: runs share warm cells; False: a new bubblewrap per run, slower, as safe
    refused: dict[str, str]

    def __str__(self) -> str:
        lines = [f"sandbox level: {self.level.value} (landlock ABI {self.landlock_version})"]
        if self.level is Level.BUBBLEWRAP and not self.nested:
            lines.append("nested namespaces are forbidden here: each run starts a bubblewrap of its own")
        return "\n".join(lines + [f"not {name}: {why}" for name, why in self.refused.items()])


def choose(level: Level | None) -> tuple[Level, Report]:
    """The level asked for, or the strongest that holds.

    Raises SandboxUnavailable, or ValueError where RRTF_SANDBOX names no level.
    """
    if level is None and os.environ.get(VARIABLE):
        try:
            level = Level(os.environ[VARIABLE])
        except ValueError:
            names = ", ".join(Level)
            raise ValueError(f"{VARIABLE}={os.environ[VARIABLE]!r} is no level; levels are {names}") from None
    refused: dict[str, str] = {}
    for candidate in ON_OFFER if level is None else (level,):
        report = _try(candidate)
        if isinstance(report, Report):
            return candidate, Report(candidate, report.landlock_version, report.nested, refused)
        refused[candidate.value] = report
    reasons = "; ".join(f"{name}: {why}" for name, why in refused.items())
    weaker = "" if level is Level.RLIMITS else (
        f" To run generated code with hardly any protection all the same, ask for it: {VARIABLE}=rlimits."
    )  # fmt: skip
    raise SandboxUnavailable(f"no sandbox that may be used works here. {reasons}.{weaker}")


@cache
def _try(level: Level) -> Report | str:
    """A report, or why this level can't be had and what would help."""
    if level is Level.BUBBLEWRAP and bubblewrap.find() is None:
        return "bubblewrap is not installed (Debian, Ubuntu: apt install bubblewrap)"
    cell = Cell(CellOptions(level, (), ()), CELL_NUMBER)
    try:
        cell.start()
        nested, version = cell.reusable, cell.landlock
        if level is Level.RLIMITS:
            return Report(level, version, nested, {})
        escaped = _probe(cell, level)
        return Report(level, version, nested, {}) if not escaped else f"a test programme could {escaped}"
    except (CellError, OSError) as error:
        return f"{error}{_advice(level)}"
    finally:
        cell.close()


def _probe(cell: Cell, level: Level) -> str:
    """What the probe managed to do, in words; "" is what we want. CellError where it did not even run."""
    with tempfile.TemporaryDirectory(prefix="rrtf-selftest-") as folder, socket.socket() as listener:
        Path(folder).chmod(0o755)
        secret = Path(folder) / "secret"
        secret.write_text("canary", "ascii")
        secret.chmod(0o666)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        program = PROBE.format(str(secret), listener.getsockname()[1], os.getpid())
        verdict, _ = judge_stdio(StdioJob(program, (StdioCase("", STATES_NOTHING),)), LIMITS, level, cell)
    if verdict.passed:
        return ""
    try:
        return ", ".join(json.loads(verdict.output))
    except ValueError:
        raise CellError(f"the test programme did not run: {verdict.message}") from None


def _advice(level: Level) -> str:
    if level is Level.LANDLOCK:
        return (
            " (needs Linux 5.13 or newer with landlock among its security modules, see "
            "/sys/kernel/security/lsm, and a container runtime that does not forbid its system calls)"
        )
    if level is Level.RLIMITS:
        return ""
    advice = []
    if _setting("kernel/apparmor_restrict_unprivileged_userns") == "1":
        advice.append(
            "Ubuntu restricts user namespaces: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, "
            "or give /usr/bin/bwrap an AppArmor profile with 'userns,'"
        )
    if _setting("kernel/unprivileged_userns_clone") == "0":
        advice.append("user namespaces are off: sudo sysctl kernel.unprivileged_userns_clone=1")
    if _setting("user/max_user_namespaces") == "0":
        advice.append("user namespaces are off: sudo sysctl user.max_user_namespaces=10000")
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        advice.append(
            "in a container: docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined "
            "--security-opt systempaths=unconfined"
        )
    return f" ({'; '.join(advice)})" if advice else ""


def _setting(name: str) -> str:
    try:
        return (Path("/proc/sys") / name).read_text("ascii").strip()
    except OSError:
        return ""
