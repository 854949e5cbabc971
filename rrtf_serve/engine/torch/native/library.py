"""The kernels, compiled by this machine's own compiler when they are first needed, and kept.

One plain C++ file and no library but OpenMP, so a build takes seconds; the file that comes out lies in the
store's home under kernels/, named by a digest of the source, CXX and the processor, and needs no compiler any
more. One that others can have written is not loaded. torch must be imported before it is loaded: both then
share torch's OpenMP runtime and its threads.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - see above

from rrtf_serve.engine.torch.native import layout
from rrtf_serve.models.store import default_home

log = logging.getLogger(__name__)

UNITS = ("portable", "avx512-bf16", "amx-bf16")  # what multiplies; kernels.cpp's numbers
_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = ("-O3", "-std=c++17", "-march=native", "-fopenmp", "-fPIC", "-shared")
_BUILD_SECONDS = 300


class KernelError(Exception):
    """The kernels can't be built or loaded here; the message says why and what to do."""


@functools.cache
def load() -> ctypes.CDLL:
    """The library, built where it is not there yet. Raises KernelError."""
    path = default_home() / "kernels" / f"{_digest()}.so"
    try:
        if not (_is_own_folder(path.parent) and _is_own(path)):
            compiler = find_compiler()
            if compiler is None:
                raise KernelError("no C++ compiler found: install g++, or name one in CXX")
            _build(shlex.split(compiler), path)
        library = ctypes.CDLL(str(path))
        layout.declare(library)
        library.best()  # asks the system once for the use of AMX, before other threads begin
    except (OSError, AttributeError) as error:
        raise KernelError(
            f"{path}: can't be built or loaded ({error}); delete it to build it again"
        ) from error
    return library


def _is_own_folder(folder: Path) -> bool:
    """Whether it is there. Raises KernelError where others may put files into it."""
    if not folder.exists():
        return False
    if not _is_own(folder):
        raise KernelError(
            f"{folder}: belongs to another user, or others may write into it, and what lies there is run; "
            "make it yours alone (chown, chmod go-w), or delete it, or set RRTF_HOME to a folder of your own"
        )
    return True


def _is_own(path: Path) -> bool:
    """Whether it is there and only this user (and root) can have written it."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def find_compiler() -> str | None:
    """What CXX names, else g++ or clang++ where one is installed."""
    return os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")


def unit(library: ctypes.CDLL) -> str:
    """What multiplies matrices on this processor: one of UNITS."""
    return UNITS[library.best()]


def _digest() -> str:
    parts = (_SOURCE.read_text("utf-8"), " ".join(_FLAGS), os.environ.get("CXX", ""), _processor())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _build(compiler: list[str], path: Path) -> None:
    log.info("building the CPU kernels (once; some seconds) ...")
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Several servers may start at once: each builds its own and the last rename stands.
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        command = [*compiler, *_FLAGS, str(_SOURCE), "-o", str(built)]
        try:
            subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, check=True)
        except subprocess.CalledProcessError as error:
            raise KernelError(f"{' '.join(command)} failed:\n{error.stderr[-2000:]}") from error
        except (OSError, subprocess.SubprocessError) as error:
            raise KernelError(f"{' '.join(command)}: {error}") from error
        built.chmod(0o700)  # whatever the umask lets others do
        built.rename(path)
