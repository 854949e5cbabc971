"""A warm interpreter that never runs untrusted code itself: it forks one fresh, confined child per run.

The host talks to it over a socket, one JSON object per packet:

    -> the setup (see Setup), once
    <- {"ready": true, "reusable": bool, "landlock": int} or {"failed": why}
    -> {"role": ..., limits...} with four descriptors: the child's channel, input, output and errors
    <- {"status": wait status, "memory": bytes, "cpu": seconds, "broke": "" or the limit that was broken,
        "held_up": seconds spent waiting for a processor, or null}
    -> {"kill": true} ends the running child at once; its event follows as usual

Where it is not `reusable` (nested namespaces are forbidden) the host throws it away after one run. It ends
when the host's end of the socket closes, and everything it started ends with it.
"""

from __future__ import annotations

import _sitebuiltins
import builtins
import fcntl
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from rrtf_serve.sandbox.inside import candidate, examiner, kernel, seccomp
from rrtf_serve.sandbox.inside.confinement import Order, Setup, limit_resources
from rrtf_serve.sandbox.inside.frames import Channel, Frame
from rrtf_serve.sandbox.inside.watch import PAGE, Watch, end_strays, pids, run_delay

TICK_MS = 20  # how often what no kernel limit covers is measured
LONG_S = 0.5  # of a shorter run nobody asks what held it up
CHANNEL = 3
PASSED, KEPT = 64, 128  # where descriptors for the child, and those that stay, are put meanwhile
DEVICES = dict.fromkeys(("/dev/zero", "/dev/random", "/dev/urandom", "/dev/full"), kernel.READ)


class Zygote:
    def __init__(self, setup: Setup, host: socket.socket) -> None:
        self._setup = setup
        self._host = host
        self._ruleset = -1
        self._namespace = -1  # our own pid namespace, to come back to before each fork
        self._bubblewrap = setup.level == "bubblewrap"
        shared = not self._bubblewrap and setup.uid is None
        signals = self._bubblewrap or kernel.landlock_version() >= kernel.SCOPES_SIGNALS
        self._filters = {
            processes: seccomp.build(processes=processes, shared_files=shared, signals=signals)
            for processes in ([] if setup.level == "rlimits" else [True, False])
        }
        self._address_bytes = 0
        self._kept: list[int] = []  # descriptors that sys.path goes through
        self._own_pids: frozenset[int] = frozenset()
        self.reusable = True

    def prepare(self) -> None:
        """Gather what children need, then become an ordinary user. OSError where the kernel refuses."""
        sys.path.extend(self._setup.packages)
        _sitebuiltins_like_site()
        for name in self._setup.preload:
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # an optional package, absent here
        if self._setup.level == "landlock":
            files = {"/dev/null": kernel.READ | kernel.WRITE, **DEVICES}
            self._ruleset = _out_of_the_way(
                kernel.landlock_ruleset(self._setup.readable, [self._setup.folder], files)
            )
        self._become_user()
        if self._bubblewrap:
            self._own_pids = frozenset(pids())
            self._nest()
        else:
            kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
        self._address_bytes = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * PAGE
        kernel.prctl(kernel.PR_SET_DUMPABLE, 0)  # others of the same user may not look into this process
        _fresh_streams()  # on whatever a child will have as its descriptors 0 to 2
        gc.collect()
        gc.freeze()

    def _become_user(self) -> None:
        uid = self._setup.uid
        if uid is not None:
            self._keep_paths()
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

    def _keep_paths(self) -> None:
        """Reach an interpreter in a folder that the new user may not enter (root's home) by descriptors."""
        for folder in [path for path in sys.path if Path(path).is_dir()]:
            if all(parent.stat().st_mode & 1 for parent in Path(folder).parents):
                continue
            fd = _out_of_the_way(os.open(folder, os.O_PATH))
            self._kept.append(fd)
            sys.path[sys.path.index(folder)] = f"/proc/self/fd/{fd}"
            for module in list(sys.modules.values()):
                places = getattr(module, "__path__", ())
                if isinstance(places, list):
                    places[:] = [p.replace(folder, f"/proc/self/fd/{fd}", 1) for p in places]

    def _nest(self) -> None:
        """Namespaces of our own, so that every child can have fresh ones; without them, one child is all."""
        kernel.prctl(kernel.PR_SET_DUMPABLE, 1)  # or /proc/self belongs to root after a change of user
        try:
            kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS)
            kernel.map_user(os.getuid(), os.getgid())
            kernel.unshare(kernel.CLONE_NEWPID)
        except OSError:
            self.reusable = False
            return
        child = os.fork()
        if child:
            self._host.close()
            os.waitpid(child, 0)
            os._exit(0)
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        self._own_pids = frozenset(pids())
        self._namespace = os.open("/proc/self/ns/pid_for_children", os.O_RDONLY | os.O_CLOEXEC)

    def serve(self) -> None:
        self._send({"ready": True, "reusable": self.reusable, "landlock": kernel.landlock_version()})
        while True:
            packet, descriptors, _, _ = socket.recv_fds(self._host, 1 << 16, 4)
            if not packet:
                return
            message = json.loads(packet)
            if "role" not in message:
                continue  # a kill that came too late
            order = Order(**message, address_bytes=self._address_bytes)
            try:
                child = self._fork(order, descriptors)
            except OSError as error:
                self._send({"failed": f"no child: {error}"})
                return
            finally:
                for fd in descriptors:
                    os.close(fd)
            if not self._attend(child, order):
                return

    def _fork(self, order: Order, descriptors: list[int]) -> int:
        if self._namespace >= 0:
            kernel.setns(self._namespace, kernel.CLONE_NEWPID)
            kernel.unshare(kernel.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            self._become(order, descriptors)
        return child

    def _become(self, order: Order, descriptors: list[int]) -> NoReturn:
        """In the child: confine, then run; never returns into the zygote's loop."""
        try:
            kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
            os.setpgid(0, 0)
            self._place(descriptors)
            self._enter_folder(order)
            limit_resources(order, count_processes=self._namespace >= 0 or self._setup.uid is not None)
            if self._bubblewrap:
                kernel.drop_capabilities()
            channel = Channel(CHANNEL)
            argv = candidate.write_files(channel) if order.role == "command" else []
            self._filter(order)
            channel.send(Frame.CONFINED)
            if order.role == "command":
                os.closerange(CHANNEL, CHANNEL + 1)
                os.execve(argv[0], argv, dict(os.environ))
            {"candidate": candidate.run, "examiner": examiner.run, "script": candidate.script}[order.role](
                channel
            )
            candidate.flush()
        except BaseException as error:  # the last stop before the process ends: say why
            os.write(2, f"{type(error).__name__}: {error}\n".encode(errors="replace"))
            os._exit(111)
        os._exit(0)

    def _place(self, descriptors: list[int]) -> None:
        """Descriptors 0 to 3 are input, output, errors and the channel; nothing else stays open."""
        channel, *standard = [os.dup(fd) for fd in descriptors]
        moved = [os.dup2(fd, PASSED + n) for n, fd in enumerate((*standard, channel))]
        for target, fd in enumerate(moved):
            os.dup2(fd, target)
        keep = {self._ruleset, *self._kept} - {-1}
        low = CHANNEL + 1
        for fd in sorted(keep):
            os.closerange(low, fd)
            low = fd + 1
        os.closerange(low, 4096)

    def _enter_folder(self, order: Order) -> None:
        if self._bubblewrap:
            options = f"size={order.file_bytes},nr_inodes={order.files + 1},mode=0700"
            flags = kernel.MS_NOSUID | kernel.MS_NODEV | (0 if order.role == "command" else kernel.MS_NOEXEC)
            if self.reusable:
                kernel.unshare(kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC)
                kernel.mount_tmpfs(self._setup.folder, flags, options)
                if order.role == "script":
                    _hide_proc_but_stdin()
                elif order.role != "command":
                    kernel.mount_tmpfs("/proc", kernel.MS_RDONLY, "size=4k,nr_inodes=1")
        os.chdir(self._setup.folder)

    def _filter(self, order: Order) -> None:
        if self._setup.level == "rlimits":
            return
        if self._ruleset >= 0:
            kernel.landlock_restrict(self._ruleset)
            os.close(self._ruleset)
        seccomp.install(self._filters[order.role == "command"], os.getpid())

    def _attend(self, child: int, order: Order) -> bool:
        """Until the child and all it started are gone. False: the host has gone."""
        watch = Watch(child, order, self._setup, nested=self._namespace >= 0, own=self._own_pids)
        pidfd = os.pidfd_open(child)
        poll = select.poll()
        poll.register(self._host, select.POLLIN)
        poll.register(pidfd, select.POLLIN)
        connected = True
        began = time.monotonic()
        broke = ""
        while True:
            ready = {fd for fd, _ in poll.poll(TICK_MS if watch.needed else None)}
            if pidfd in ready:
                break
            if self._host.fileno() in ready:
                packet = self._host.recv(1 << 16)
                if not packet:
                    connected = False
                    poll.unregister(self._host)
                self._kill(child)
            elif watch.needed and not broke:
                broke = watch.broken()
                if broke:
                    self._kill(child)
        held_up = run_delay(pidfd) if time.monotonic() - began > LONG_S else None
        os.close(pidfd)
        self._kill(child)
        _, status, usage = os.wait4(child, 0)
        if not self._bubblewrap:
            end_strays()
        elif not self.reusable:
            connected = False
        event = {
            "status": status,
            "memory": max(usage.ru_maxrss * 1024, watch.peak_bytes),
            "cpu": usage.ru_utime + usage.ru_stime,
            "broke": broke,
            "held_up": held_up,
        }
        watch.clean()
        self._send(event)
        return connected

    def _kill(self, child: int) -> None:
        """The whole namespace by its first process, or the whole process group, which no child can leave."""
        for send in (os.kill, os.killpg):
            try:
                send(child, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue

    def _send(self, event: dict[str, Any]) -> None:
        try:
            self._host.send(json.dumps(event).encode())
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)


def _out_of_the_way(fd: int) -> int:
    """The same above the numbers that `_place` uses."""
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, KEPT)
    os.close(fd)
    return high


def _hide_proc_but_stdin() -> None:
    """/dev/stdin leads to /proc/self/fd/0: a copy of the input lies there, and nothing else."""
    size = os.fstat(0).st_size
    kernel.mount_tmpfs("/proc", 0, f"size={size + (1 << 16)},nr_inodes=4")
    Path("/proc/self/fd").mkdir(parents=True)
    with open("/proc/self/fd/0", "wb") as copy:  # noqa: PTH123  # beside the descriptors
        while part := os.pread(0, 1 << 20, copy.tell()):
            copy.write(part)
    kernel.mount_tmpfs("/proc", kernel.MS_REMOUNT | kernel.MS_RDONLY, f"size={size + (1 << 16)},nr_inodes=4")


def _fresh_streams() -> None:
    streams = {
        "stdin": open(0, encoding="utf-8", errors="surrogateescape", closefd=False),  # noqa: SIM115
        "stdout": open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False),  # noqa: SIM115
        "stderr": open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False),  # noqa: SIM115
    }
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _sitebuiltins_like_site() -> None:
    """`exit` and `quit`: programmes expect them, and the site module that brings them was not loaded."""
    builtins.exit = _sitebuiltins.Quitter("exit", "Ctrl-D (i.e. EOF)")
    builtins.quit = _sitebuiltins.Quitter("quit", "Ctrl-D (i.e. EOF)")


def main(fd: int) -> None:
    sys.argv = sys.orig_argv = [candidate.PROGRAMME]
    host = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fd)
    packet = host.recv(1 << 16)
    if not packet:
        return
    zygote = Zygote(Setup(**json.loads(packet)), host)
    try:
        zygote.prepare()
    except OSError as error:
        host.send(json.dumps({"failed": str(error)}).encode())
        return
    zygote.serve()
