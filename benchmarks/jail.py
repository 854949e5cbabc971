"""Runs one generated programme in bubblewrap: no network, no home, read-only system, private /tmp.

A first jail for a first look at pass@1. What is covered: the machine is protected from the programme
(namespaces, no capabilities, memory, time and file-size limits, everything killed together). What is not:
candidate and tests share one process, so a candidate that sets out to cheat its test could; scores of models
trained against this judge must not be taken from here.
"""

from __future__ import annotations

import resource
import secrets
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

Outcome = Literal["passed", "failed", "timeout"]

MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20


def run_with_tests(program: str, tests: str, *, timeout_s: float) -> Outcome:
    """Run `program` then `tests` in one jailed interpreter; passed only if the end is reached in time.

    Raises RuntimeError where bubblewrap is missing or may not create namespaces here: never runs outside it.
    """
    nonce = secrets.token_hex(16)
    script = f"{program}\n{tests}\nprint('\\n{nonce}')\n"
    try:
        done = subprocess.run(
            [*_command(), "-I", "-"],
            input=script.encode("utf-8", "replace"),
            capture_output=True, timeout=timeout_s, preexec_fn=_limit, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.stderr.startswith(b"bwrap:"):
        raise RuntimeError(
            f"bubblewrap can't make a jail here: {done.stderr.decode(errors='replace').strip()}. "
            "Unprivileged user namespaces must be allowed (Ubuntu 24.04 and default containers forbid them)."
        )
    return "passed" if done.returncode == 0 and done.stdout.rstrip().endswith(nonce.encode()) else "failed"


def _command() -> list[str]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise RuntimeError("bubblewrap is needed to run generated code: apt install bubblewrap")
    # The base interpreter, not the virtual environment's: generated code gets the standard library alone.
    prefix = Path(sys.base_prefix).resolve()
    mounts = [path for path in ("/usr", "/lib", "/lib64", "/bin") if Path(path).exists()] + [str(prefix)]
    binds = [word for path in mounts for word in ("--ro-bind", path, path)]
    return [
        bwrap, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL",
        "--uid", "65534", "--gid", "65534", *binds, "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
        "--chdir", "/tmp", "--clearenv", "--setenv", "PATH", "/usr/bin:/bin",
        str(prefix / "bin" / "python3"),
    ]  # fmt: skip


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
