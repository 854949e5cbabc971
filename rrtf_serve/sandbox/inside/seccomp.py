"""The system-call filter as a classic BPF programme, built without any library.

Sources: Linux Documentation/userspace-api/seccomp_filter.rst; struct seccomp_data in linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Iterable

from rrtf_serve.sandbox.inside import syscalls

# linux/bpf_common.h: load word, jump if equal / >= / any bit set, return; all against the constant k.
LOAD, JUMP_EQ, JUMP_GE, JUMP_SET, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCH = 0, 4  # offsets into struct seccomp_data; arguments follow at 16, eight bytes each
X32_BIT = 0x40000000
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2

CLONE_THREAD = 0x00010000
CLONE_NAMESPACES = 0x7E020080  # NEWNS, NEWTIME, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
TERMINAL_QUERIES = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # TCGETS, WINSZ, FIONREAD, FIONBIO, CLOEXEC
FCNTL_REFUSED = (8, 10, 15, 1024, 1026)  # F_SETOWN, F_SETSIG, F_SETOWN_EX (signals to others), leases, notify
PRCTL_ALLOWED = (
    3,
    15,
    16,
    0x53564D41,
)  # GET_DUMPABLE, SET_NAME, GET_NAME, SET_VMA (glibc's names for memory)

ARCHITECTURES = {
    "x86_64": (0xC000003E, syscalls.X86_64),
    "aarch64": (0xC00000B7, syscalls.AARCH64),
}

ANY_PID = 0x7FFF1357  # stands for the process's own number until it is known; no Linux system counts so far

Instruction = tuple[int, int, int, int]

_libc = ctypes.CDLL(None, use_errno=True)


class UnsupportedMachine(OSError):  # noqa: N818  # reads as what it is where it is caught
    """No table of system calls for this processor."""


def build(*, processes: bool, shared_files: bool, signals: bool) -> bytes:
    """The filter for one process, up to that process's number; see `install`.

    processes     whether new processes and other programmes may be started; threads always may
    shared_files  the run sees the host's own files: then changing modes and times does nothing and says it
                  worked, because landlock does not cover it (before its version 3, nor truncating by path)
    signals       with `processes`: other processes may be signalled, for something else confines signals
    """
    try:
        arch, numbers = ARCHITECTURES[platform.machine()]
    except KeyError:
        raise UnsupportedMachine(errno.ENOSYS, f"no system-call table for {platform.machine()}") from None
    code: list[Instruction] = [(LOAD, 0, 0, ARCH), (JUMP_EQ, 1, 0, arch), (RETURN, 0, 0, KILL)]
    code += [(LOAD, 0, 0, NUMBER)]
    if platform.machine() == "x86_64":
        code += [(JUMP_GE, 0, 1, X32_BIT), (RETURN, 0, 0, KILL)]
    pretended = set(syscalls.ATTRIBUTES) if shared_files else set()
    code += _plain((numbers[n] for n in syscalls.ALLOWED if n in numbers and n not in pretended), ALLOW)
    code += _plain((numbers[n] for n in pretended if n in numbers and n != "truncate"), ERRNO)
    for name, body in _conditional(processes=processes, signals=signals).items():
        if name in numbers:
            code += [(JUMP_EQ, 0, len(body), numbers[name]), *body]
    code += _plain((numbers[n] for n in syscalls.REFUSED if n in numbers), ERRNO | errno.EPERM)
    code += _plain((numbers[n] for n in syscalls.NOT_SUPPORTED if n in numbers), ERRNO | errno.EOPNOTSUPP)
    code += [(RETURN, 0, 0, ERRNO | errno.ENOSYS)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def install(program: bytes, pid: int) -> None:
    """Filter this thread and all it starts, for good. OSError where the kernel refuses.

    pid  the only process that may be signalled (where processes may be started, their own group, kill 0, too)
    """
    program = program.replace(struct.pack("I", ANY_PID), struct.pack("I", pid))
    buffer = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(buffer))
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0)):
        if _libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "the kernel refused the system-call filter")


def _conditional(*, processes: bool, signals: bool) -> dict[str, list[Instruction]]:
    """Bodies for calls that depend on their arguments; each ends in returns on every path."""
    refuse = (RETURN, 0, 0, ERRNO | errno.EPERM)
    allow = (RETURN, 0, 0, ALLOW)
    own = [_argument(0), (JUMP_EQ, 0, 1, ANY_PID), allow, refuse]
    threads_only = [
        _argument(0),
        (JUMP_SET, 1, 0, CLONE_NAMESPACES),
        (JUMP_SET, 1, 0, CLONE_THREAD),
        refuse,
        allow,
    ]
    any_process = [_argument(0), (JUMP_SET, 0, 1, CLONE_NAMESPACES), refuse, allow]
    start = allow if processes else refuse
    group = [_argument(0), (JUMP_EQ, 1, 0, 0), (JUMP_EQ, 0, 1, ANY_PID), allow, refuse]
    # AF_UNIX stream pairs only (asyncio's self-pipe), and no address to send to: they can reach nobody else.
    stream_pair = [
        _argument(0), (JUMP_EQ, 0, 4, 1), _argument(1), (JUMP_SET, 2, 0, 0x0E),
        (JUMP_SET, 0, 1, 1), allow, refuse,
    ]  # fmt: skip
    connected = [
        _argument(4), (JUMP_EQ, 0, 3, 0), _argument(4, high=True), (JUMP_EQ, 0, 1, 0), allow, refuse,
    ]  # fmt: skip
    signal = own if not processes else [allow] if signals else group
    return {
        "clone": any_process if processes else threads_only,
        # Its flags lie in memory, out of a filter's reach; C libraries fall back to clone.
        "clone3": [(RETURN, 0, 0, ERRNO | errno.ENOSYS)],
        "fork": [start], "vfork": [start], "execve": [start], "execveat": [refuse],
        "kill": signal, "tkill": [refuse], "tgkill": signal,
        "prlimit64": [_argument(0), (JUMP_EQ, 1, 0, 0), (JUMP_EQ, 0, 1, ANY_PID), allow, refuse],
        "prctl": [_argument(0), *_one_of(PRCTL_ALLOWED), (RETURN, 0, 0, ERRNO | errno.EINVAL)],
        "ioctl": [_argument(1), *_one_of(TERMINAL_QUERIES), (RETURN, 0, 0, ERRNO | errno.ENOTTY)],
        "fcntl": [_argument(1), *_one_of(FCNTL_REFUSED, ERRNO | errno.EPERM), allow],
        "socketpair": stream_pair, "sendto": connected,
    }  # fmt: skip


def _argument(index: int, *, high: bool = False) -> Instruction:
    return (LOAD, 0, 0, 16 + 8 * index + (4 if high else 0))


def _one_of(values: Iterable[int], action: int = ALLOW) -> list[Instruction]:
    return [step for value in values for step in ((JUMP_EQ, 0, 1, value), (RETURN, 0, 0, action))]


def _plain(numbers: Iterable[int], action: int) -> list[Instruction]:
    """Neighbouring numbers share one range test."""
    code: list[Instruction] = []
    ordered = sorted(set(numbers))
    start = 0
    for end in range(1, len(ordered) + 1):
        if end < len(ordered) and ordered[end] == ordered[end - 1] + 1:
            continue
        low, high = ordered[start], ordered[end - 1]
        start = end
        if low == high:
            code += [(JUMP_EQ, 0, 1, low), (RETURN, 0, 0, action)]
        else:
            code += [(JUMP_GE, 0, 2, low), (JUMP_GE, 1, 0, high + 1), (RETURN, 0, 0, action)]
    return code
