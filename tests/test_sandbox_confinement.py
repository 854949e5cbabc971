"""The parts of confinement that can be looked at without a run."""

from __future__ import annotations

import os
import platform
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from rrtf_serve.sandbox import bubblewrap, cgroup
from rrtf_serve.sandbox.inside import seccomp, syscalls


@pytest.mark.parametrize("machine", seccomp.ARCHITECTURES)
@pytest.mark.parametrize("processes", [True, False])
def test_filters_allow_what_is_listed_and_refuse_the_rest(
    machine: str, processes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = seccomp.build(processes=processes, shared_files=False, signals=False)
    assert len(program) // 8 < 4096  # BPF_MAXINSNS
    arch, numbers = seccomp.ARCHITECTURES[machine]
    run = lambda name, *arguments: _run(program, arch, numbers[name], arguments)  # noqa: E731  # a local short form
    for name in syscalls.ALLOWED:
        if name in numbers:
            assert run(name) == seccomp.ALLOW, name
    for name in syscalls.REFUSED:
        if name in numbers:
            assert run(name) == seccomp.ERRNO | 1, name
    started = seccomp.ALLOW if processes else seccomp.ERRNO | 1
    assert run("execve") == started
    assert run("clone", 17) == started
    assert run("clone", seccomp.CLONE_THREAD | 0x100) == seccomp.ALLOW
    for namespace in (0x20000, 0x80, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert run("clone", namespace | 17) == seccomp.ERRNO | 1
        assert run("clone", namespace | seccomp.CLONE_THREAD) == seccomp.ERRNO | 1
    assert run("kill", seccomp.ANY_PID) == seccomp.ALLOW
    assert run("kill", 1) == run("kill", 0xFFFFFFFF) == seccomp.ERRNO | 1
    assert run("socketpair", 1, 1 | 0x80000) == seccomp.ALLOW
    assert run("socketpair", 1, 2) == run("socketpair", 1, 5) == run("socketpair", 2, 1) == seccomp.ERRNO | 1
    assert run("sendto", 3, 0, 0, 0, 0) == seccomp.ALLOW
    assert run("sendto", 3, 0, 0, 0, 1) == run("sendto", 3, 0, 0, 0, 1 << 32) == seccomp.ERRNO | 1
    assert run("ioctl", 0, 0x5401) == seccomp.ALLOW
    assert run("ioctl", 0, 0x5412) == seccomp.ERRNO | 25  # TIOCSTI types into a terminal
    assert run("fcntl", 0, 3) == seccomp.ALLOW
    assert run("fcntl", 0, 8) == seccomp.ERRNO | 1
    assert _run(program, arch, 9999, ()) == seccomp.ERRNO | 38
    assert _run(program, arch ^ 1, 0, ()) == seccomp.KILL
    if machine == "x86_64":
        assert _run(program, arch, 0x40000000, ()) == seccomp.KILL


def test_files_of_the_host_keep_their_attributes() -> None:
    arch, numbers = seccomp.ARCHITECTURES[platform.machine()]
    program = seccomp.build(processes=False, shared_files=True, signals=False)
    for name in ("fchmod", "fchmodat", "utimensat"):
        assert _run(program, arch, numbers[name], ()) == seccomp.ERRNO  # "done", and nothing was
    assert _run(program, arch, numbers["truncate"], ()) == seccomp.ERRNO | 38


def test_unknown_machines_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    with pytest.raises(OSError, match="pdp11"):
        seccomp.build(processes=False, shared_files=False, signals=False)


def _run(program: bytes, arch: int, number: int, arguments: tuple[int, ...]) -> int:
    """What a filter answers: classic BPF (linux/filter.h), as far as our filters use it."""
    data = struct.pack("IIQ6Q", number, arch, 0, *(*arguments, *[0] * 6)[:6])
    at, accumulator = 0, 0
    while True:
        code, yes, no, constant = struct.unpack_from("HBBI", program, at * 8)
        at += 1
        if code == seccomp.LOAD:
            accumulator = struct.unpack_from("I", data, constant)[0]
        elif code == seccomp.RETURN:
            return int(constant)
        else:
            holds = {
                seccomp.JUMP_EQ: accumulator == constant,
                seccomp.JUMP_GE: accumulator >= constant,
                seccomp.JUMP_SET: bool(accumulator & constant),
            }[code]
            at += yes if holds else no


def test_bubblewraps_command_shows_no_home(tmp_path: Path) -> None:
    words = bubblewrap.command(
        "bwrap",
        mounts=[],
        packages=(tmp_path,),
        code=tmp_path,
        info_fd=9,
        folder="/tmp",
        environment={"A": "b"},
    )
    shown = {words[n + 1] for n, word in enumerate(words) if word == "--ro-bind"}
    assert str(Path.home()) not in shown and "/" not in shown and "/etc" not in shown
    assert not {"--bind", "--dev-bind", "--share-net"} & set(words)
    assert {"--unshare-net", "--unshare-pid", "--unshare-ipc", "--new-session", "--clearenv"} <= set(words)
    assert words[-1] == "--"


def test_groups_of_dead_judges_are_swept() -> None:
    group = cgroup.make(4242)
    if group is None:
        pytest.skip("no control groups may be made here")
    try:
        group.limit(64 << 20, 10)
        assert not group.ran_out()
        cgroup.sweep()  # ours is alive
        assert all(folder.is_dir() for folder in group._folders.values())
    finally:
        group.remove()
    assert not any(folder.exists() for folder in group._folders.values())


AS_ANOTHER = """
import sys
from rrtf_serve.sandbox.jobs import FunctionJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from tests.hostile import PROGRAMMES
limits = Limits(wall_s=2, cpu_s=2, memory_bytes=192 << 20, file_bytes=8 << 20, files=200)
try:
    sandbox = Sandbox(Level(sys.argv[1]), workers=1)
except SandboxUnavailable as error:
    sys.exit(f"unavailable: {error}")
with sandbox:
    for name in sys.argv[2:] * 2:
        verdict = sandbox.judge(FunctionJob(PROGRAMMES[name], "f", "assert f(1) == 2"), limits)
        print(name, verdict.status.name, verdict.message)
"""
OF_FOLDERS = ["shared_memory", "writes_outside_its_folder", "disk_swallowed", "many_files", "thread_bomb"]


@pytest.mark.parametrize("level", ["bubblewrap", "landlock"])
def test_an_ordinary_users_runs_are_held_as_well(level: str) -> None:
    """The corpus runs as whoever runs the tests; where that is root, much is closed by who owns it alone."""
    python = _python_for_all()
    if os.getuid() != 0 or python is None:
        pytest.skip("not root, or no interpreter that an ordinary user may read")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [python, "-c", AS_ANOTHER, level, *OF_FOLDERS], cwd="/", capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(root), "PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        user=12345, group=12345, extra_groups=[],
    )  # fmt: skip
    if "unavailable" in done.stderr or "No module named" in done.stderr:
        pytest.skip(done.stderr)
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(OF_FOLDERS), done.stderr
    assert all(" RUNTIME_ERROR " in line for line in lines), lines


def _python_for_all() -> str | None:
    for name in ("/usr/bin/python3", "/usr/local/bin/python3", sys.executable):
        look = [name, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(look, user=12345, capture_output=True, check=False).returncode == 0:
                return name
        except (OSError, subprocess.SubprocessError):
            continue
    return None
