"""A confined zygote, seen from the host: start it, order runs, kill them, hear how they ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rrtf_serve.sandbox import bubblewrap, cgroup, private
from rrtf_serve.sandbox.inside.confinement import Setup
from rrtf_serve.sandbox.limits import Level, Limits

INSIDE = Path(__file__).parent / "inside"
START_S = 30.0
END_S = 10.0  # a killed run that has not ended by then is the sandbox's failure
NOBODY = 65534
# Landlock and rlimits, as root: each cell is a user of its own; unused by Linux distributions.
FIRST_UID, UIDS = 61_000, 1000
BASE_MEMORY = 64 << 20  # what the zygote itself may need besides a run

# The package's own __init__ files are left out: they import what confined processes have no business with.
BOOTSTRAP = """
import sys, types
for name, path in (("rrtf_serve", "/nonexistent"), ("rrtf_serve.sandbox", sys.argv[1])):
    module = types.ModuleType(name)
    module.__path__ = [path]
    sys.modules[name] = module
from rrtf_serve.sandbox.inside.zygote import main
main(int(sys.argv[2]))
"""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "OPENSSL_CONF": "/dev/null",  # node won't start when it may not read the system's
    # Numeric libraries start a thread per core otherwise, and each would count.
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


class CellError(RuntimeError):
    """The sandbox failed, not what ran in it."""


@dataclass(frozen=True)
class Exit:
    """How a run ended. `broke` names the limit the sandbox killed for, or is empty."""

    status: int  # as waitpid gives it
    memory: int  # bytes, the largest process of the tree
    cpu: float  # seconds, the tree's
    broke: str
    held_up: float | None = None  # seconds spent waiting for a processor; None: not known

    @property
    def signal(self) -> int:
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    @property
    def code(self) -> int:
        return os.waitstatus_to_exitcode(self.status)


@dataclass(frozen=True)
class CellOptions:
    level: Level
    packages: tuple[Path, ...]
    preload: tuple[str, ...]
    programs: tuple[Path, ...] = ()  # other languages' interpreters outside /usr, and what they need


class Cell:
    """Not thread-safe: one worker owns it. Raises CellError from every method when the zygote is gone."""

    def __init__(self, options: CellOptions, number: int) -> None:
        self._options = options
        self._number = number
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._group: cgroup.Group | None = None
        self._folder: private.Folder | None = None
        self._errors: int = -1
        self.reusable = True
        self.landlock = 0

    def fileno(self) -> int:
        """Readable when the run has ended."""
        return self._host().fileno()

    def started(self) -> Cell:
        """Itself, once its zygote runs."""
        self.start()
        return self

    def start(self) -> None:
        """Start the zygote unless it runs; returns once it is ready."""
        if self._socket is not None:
            return
        host, guest = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket = host
        try:
            self._spawn(guest)
            guest.close()
            host.send(json.dumps(asdict(self._setup())).encode())
            ready = self._receive(START_S)
            self.reusable = bool(ready["reusable"])
            self.landlock = int(ready["landlock"])
        except (OSError, KeyError, ValueError) as error:
            guest.close()
            why = self._said()
            self.close()
            raise CellError(f"the {self._options.level} sandbox did not start: {why or error}") from error

    def run(self, role: str, limits: Limits, descriptors: list[int]) -> None:
        """Start a run. The caller closes its own copies of the descriptors.

        descriptors  the child's channel, input, output and errors
        """
        if self._group is not None:
            self._group.limit(limits.memory_bytes + limits.file_bytes + BASE_MEMORY, limits.processes + 4)
        order = {
            "role": role, "cpu_s": limits.cpu_s, "memory_bytes": limits.memory_bytes,
            "processes": limits.processes, "files": limits.files, "file_bytes": limits.file_bytes,
        }  # fmt: skip
        try:
            socket.send_fds(self._host(), [json.dumps(order).encode()], descriptors)
        except OSError as error:
            raise CellError(f"the sandbox has gone: {error}") from error

    def kill(self) -> None:
        with contextlib.suppress(OSError):  # a zygote that is gone has no run left
            self._host().send(b'{"kill": true}')

    def wait(self) -> Exit:
        """The end of the run that was ordered or killed."""
        event = self._receive(END_S)
        if "status" not in event:
            raise CellError(f"the sandbox failed: {event.get('failed', event)}")
        ended = Exit(event["status"], event["memory"], event["cpu"], event["broke"], event["held_up"])
        if self._group is not None and self._group.ran_out():
            ended = replace(ended, broke="memory")
        if not self.reusable:
            self.close()
        return ended

    def hang_up(self) -> None:
        """End what runs, from any thread; whoever waits for it gets a CellError."""
        host = self._socket
        if host is not None:
            with contextlib.suppress(OSError):  # closed meanwhile, or nobody at the other end
                host.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the zygote and everything in it; idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None:
            try:
                self._process.wait(END_S if self._options.level is not Level.BUBBLEWRAP else 0.5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1
        if self._group is not None:
            self._group.remove()
            self._group = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = None

    def _host(self) -> socket.socket:
        if self._socket is None:
            raise CellError("the sandbox is closed")
        return self._socket

    def _spawn(self, guest: socket.socket) -> None:
        self._errors = os.memfd_create("rrtf-errors")
        fd = guest.fileno()
        bubblewrapped = self._options.level is Level.BUBBLEWRAP
        code = "/rrtf" if bubblewrapped else str(INSIDE.parent)
        python = [str(_interpreter()), "-I", "-S", "-B", "-c", BOOTSTRAP, code, str(fd)]
        environment = dict(ENVIRONMENT)
        places = [str(path.parent) for path in self._options.programs if path.is_file()]
        environment["PATH"] = ":".join([*dict.fromkeys(places), environment["PATH"]])
        info_read = info_write = -1
        if bubblewrapped:
            bwrap = bubblewrap.find()
            if bwrap is None:
                raise FileNotFoundError("bubblewrap is not installed")
            info_read, info_write = os.pipe()
            environment["HOME"] = environment["TMPDIR"] = str(bubblewrap.PRIVATE)
            python = [
                *bubblewrap.command(
                    bwrap, mounts=self._mounts(), packages=self._options.packages, code=INSIDE,
                    info_fd=info_write, folder=str(bubblewrap.PRIVATE), environment=environment,
                ),
                *python,
            ]  # fmt: skip
        else:
            environment["HOME"] = environment["TMPDIR"] = str(self._make_folder())
        try:
            self._process = subprocess.Popen(
                python, stdin=subprocess.DEVNULL, stdout=self._errors, stderr=self._errors, env=environment,
                pass_fds=[fd, info_write] if bubblewrapped else [fd], close_fds=True, cwd="/",
                start_new_session=True,
            )  # fmt: skip
        finally:
            if info_write >= 0:
                os.close(info_write)
        pid = self._process.pid
        if bubblewrapped:
            pid = self._child_pid(info_read)
        self._group = cgroup.make(self._number)
        if self._group is not None and not self._group.add(pid):
            self._group.remove()
            self._group = None

    def _child_pid(self, info: int) -> int:
        with os.fdopen(info, "rb") as file:
            text = b""
            until = time.monotonic() + START_S
            while b"}" not in text:
                if not select.select([info], [], [], max(0.0, until - time.monotonic()))[0]:
                    raise TimeoutError("bubblewrap said nothing")
                part = os.read(info, 4096)
                if not part:
                    raise ConnectionError("bubblewrap ended at once")
                text += part
            _ = file
        return int(json.loads(text)["child-pid"])

    def _setup(self) -> Setup:
        bubblewrapped = self._options.level is Level.BUBBLEWRAP
        uid = None
        if os.getuid() == 0:
            uid = NOBODY if bubblewrapped else FIRST_UID + self._number % UIDS
        readable = [*bubblewrap.SYSTEM, *bubblewrap.READ_ONLY, *map(str, self._mounts())]
        readable += [str(path) for path in self._options.packages]
        return Setup(
            level=self._options.level.value,
            folder=str(bubblewrap.PRIVATE)
            if bubblewrapped
            else str(self._folder.path if self._folder else ""),
            uid=uid,
            readable=[path for path in readable if Path(path).exists()],
            packages=[
                f"{bubblewrap.PACKAGES}/{number}" if bubblewrapped else str(path)
                for number, path in enumerate(self._options.packages)
            ],
            preload=list(self._options.preload),
        )

    def _mounts(self) -> list[Path]:
        return [Path(sys.base_prefix).resolve(), *self._options.programs]

    def _make_folder(self) -> Path:
        owner = FIRST_UID + self._number % UIDS if os.getuid() == 0 else None
        self._folder = private.make(owner)
        return self._folder.path

    def _receive(self, seconds: float) -> dict[str, Any]:
        host = self._host()
        host.settimeout(seconds)
        try:
            packet = host.recv(1 << 16)
        except OSError as error:
            self.close()
            raise CellError(f"the sandbox does not answer: {error}") from error
        if not packet:
            why = self._said()
            self.close()
            raise CellError(f"the sandbox ended: {why or 'no reason given'}")
        event: dict[str, Any] = json.loads(packet)
        if "failed" in event:
            self.close()
            raise CellError(str(event["failed"]))
        return event

    def _said(self) -> str:
        """What the zygote or bubblewrap wrote before it died; no untrusted code can write there."""
        if self._errors < 0:
            return ""
        return os.pread(self._errors, 4000, 0).decode(errors="replace").strip()


def _interpreter() -> Path:
    """The base interpreter, not a virtual environment's: candidates get the standard library."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for path in (Path(sys.base_prefix) / "bin" / name, Path(sys.base_prefix) / "bin" / "python3"):
        if path.exists():
            return path.resolve()
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()
