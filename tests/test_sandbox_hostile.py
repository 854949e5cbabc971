"""Every hostile programme, at every level that can be had: not passed, in bounded time, without a trace.

The bubblewrap half is skipped where bubblewrap can't be had; the landlock half needs Linux 5.13 alone.
"""

# ruff: noqa: E501  # a programme reads best on as few lines as it has statements

from __future__ import annotations

import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rrtf_serve.sandbox.jobs import FunctionJob
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Level, Limits, SandboxUnavailable
from rrtf_serve.sandbox.verdict import Status
from tests.hostile import PROGRAMMES
from tests.hostile.breakouts import X86_64_ONLY

LIMITS = Limits(
    wall_s=1.0, cpu_s=1.0, memory_bytes=192 << 20, file_bytes=8 << 20, files=200, value_bytes=8 << 20
)
BOUND_S = 15.0  # two tries of 1 s, and what a crowded machine adds
TESTS = "assert f(1) == 2\nassert f(3) == 4\nassert abs(f(5) - 6) < 1e-6\n"
HONEST = FunctionJob("def f(x):\n    return x + 1\n", "f", TESTS)


@dataclass
class Host:
    """What hostile programmes may be after, and how to see whether they got it."""

    sandbox: Sandbox
    canary: Path
    listener: socket.socket

    def programme(self, name: str) -> str:
        source = PROGRAMMES[name]
        for key, value in (
            ("canary", self.canary),
            ("port", self.listener.getsockname()[1]),
            ("pid", os.getpid()),
        ):
            source = source.replace("{" + key + "}", str(value))
        return source.replace("{{", "{").replace("}}", "}")

    def traces(self) -> dict[str, object]:
        folder = self.canary.parent
        return {
            "processes": sorted(_descendants()),
            "canary": (self.canary.read_text(), sorted(p.name for p in folder.iterdir())),
            "temporary": sorted(p.name for p in Path(tempfile.gettempdir()).glob("rrtf-mark*")),
            "marks": [
                p
                for p in ("/usr/lib/rrtf-was-here", "/etc/rrtf-was-here", "/dev/shm/rrtf-was-here")
                if Path(p).exists()
            ],
            "port": any(":BA01 " in Path(f"/proc/net/{n}").read_text() for n in ("tcp", "tcp6")),
            "sockets": "rrtf-was-here" in Path("/proc/net/unix").read_text(),
            "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        }


@contextmanager
def _host(level: Level) -> Iterator[Host]:
    others = _descendants()
    folder = Path(tempfile.mkdtemp(prefix="canary-"))
    folder.chmod(0o755)
    canary = folder / "secret"
    canary.write_text("canary")
    canary.chmod(0o666)
    try:
        sandbox = Sandbox(level, workers=1)
    except SandboxUnavailable as error:
        shutil.rmtree(folder)
        pytest.skip(str(error))
    with sandbox, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert sandbox.judge(HONEST, Limits(wall_s=20)).passed
        yield Host(sandbox, canary, listener)
    shutil.rmtree(folder)
    assert _descendants() <= others


@pytest.fixture(scope="module", params=[Level.BUBBLEWRAP, Level.LANDLOCK], ids=str)
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    with pytest.MonkeyPatch.context() as patch, _host(request.param) as made:
        patch.setenv("RRTF_CANARY", "canary")
        yield made


@pytest.fixture(scope="module")
def open_host() -> Iterator[Host]:
    with _host(Level.RLIMITS) as made:
        yield made


@pytest.mark.parametrize("name", PROGRAMMES)
def test_is_not_passed_and_leaves_nothing(host: Host, name: str) -> None:
    if name in X86_64_ONLY and platform.machine() != "x86_64":
        pytest.skip("makes system calls by their x86-64 numbers")
    before = host.traces()
    began = time.monotonic()
    verdict = host.sandbox.judge(FunctionJob(host.programme(name), "f", TESTS), LIMITS)
    assert time.monotonic() - began < BOUND_S
    assert (
        verdict.status in (Status.COMPILE_ERROR, Status.RUNTIME_ERROR) or name == "exit_after_one_answer"
    ), verdict
    assert not all(test.passed for test in verdict.tests) or not verdict.tests
    assert host.traces() == before
    assert host.sandbox.judge(HONEST, Limits(wall_s=20)).passed, "the next sample must not notice"


GETS_OUT = [
    "read_secret", "read_secret_by_link", "read_secret_by_dots", "write_secret", "connect_out", "listen",
    "daemon",
    "grandchild_holds_pipe", "shell", "executable_memory_file",
]  # fmt: skip


@pytest.mark.parametrize("name", GETS_OUT)
def test_the_same_programmes_do_get_out_where_nothing_holds_them(open_host: Host, name: str) -> None:
    """Or the tests above would show nothing. What they start is ended even so."""
    before = open_host.traces()["processes"]
    job = FunctionJob(open_host.programme(name), "f", TESTS)
    verdict = open_host.sandbox.judge(job, Limits(wall_s=20))
    assert verdict.passed
    assert open_host.traces()["processes"] == before


HOSTILE_TESTS = {
    "exit": "import sys\nsys.exit(0)\n",
    "os_exit": "import os\nos._exit(0)\n",
    "no_tests": "x = 1\n",
    "never_called": "assert 1 + 1 == 2 or f\n",
    "constant": "assert True\n",
    "endless": "while True:\n    pass\n",
    "endless_after_a_pass": "assert f(1) == 2\nwhile True:\n    pass\n",
    "syntax": "assert f(1) ==\n",
    "forged_without_nonce": (
        'import gc, struct\nbody = b\'[[["all", true, "", ""]], 5]\'\n'
        "for o in gc.get_objects():\n    if type(o).__name__ == 'Channel':\n"
        "        o._socket.sendall(struct.pack('!BI', 9, len(body)) + body)\nassert f(1) == 3\n"
    ),
    "memory": "a = []\nwhile True:\n    a.append(bytearray(1 << 20))\n",
    "reads_secret": "assert not open({canary!r}).read() and f(1)\n",
    "starts_process": "import os\nif os.fork() == 0:\n    import time\n    time.sleep(3600)\nassert f(1) == 3\n",
}


@pytest.mark.parametrize("name", HOSTILE_TESTS)
def test_tests_are_not_trusted_either(host: Host, name: str) -> None:
    before = host.traces()
    code = HOSTILE_TESTS[name].replace("{canary!r}", repr(str(host.canary)))
    verdict = host.sandbox.judge(FunctionJob(HONEST.candidate_code, "f", code), LIMITS)
    assert verdict.status is Status.RUNTIME_ERROR, verdict
    assert host.traces() == before
    assert host.sandbox.judge(HONEST, Limits(wall_s=20)).passed


def _descendants() -> set[int]:
    parents: dict[int, int] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                fields = (path / "stat").read_text(errors="replace").rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(path.name)] = int(fields[1])
    found = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return found - {os.getpid()}
        found |= more
