"""llama.vim in Vim 9, its keys typed at a terminal."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from client_servers import KEY
from live import LiveServer
from node_clients import SCRIPTS, environment, missing

pytestmark = pytest.mark.clients

SECONDS = 60.0


def plugin() -> str:
    """It is on no package index: its folder is a clone, which nobody has to have."""
    return os.environ.get("RRTF_LLAMA_VIM") or pytest.skip("RRTF_LLAMA_VIM names no clone of llama.vim")


@contextmanager
def vim(file: Path, address: str, shown: Path) -> Iterator[Callable[[str], None]]:
    """Gives what types."""
    program = shutil.which("vim") or missing("no Vim on this machine (Debian: apt install vim)")
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 200))
    env = environment(
        file.parent,
        TERM="xterm",
        LANG="C.UTF-8",
        RRTF_LLAMA_VIM=plugin(),
        RRTF_ADDRESS=address,
        RRTF_KEY=KEY,
        RRTF_SHOWN=str(shown),
    )
    command = [program, "--noplugin", "-u", str(SCRIPTS / "llama_vim.vim"), str(file)]
    with subprocess.Popen(command, env=env, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        # What it draws must not fill the terminal.
        drain = threading.Thread(target=_drain, args=(terminal,), daemon=True)
        drain.start()

        def type_(keys: str) -> None:
            for key in keys:
                os.write(terminal, key.encode())
                time.sleep(0.05)

        try:
            yield type_
            process.wait(SECONDS)
        finally:
            process.kill()
            process.wait()
            drain.join(10)
            os.close(terminal)


def _drain(terminal: int) -> None:
    with suppress(OSError):  # the other side is closed
        while os.read(terminal, 65536):
            pass


def wait_for(shown: Path, pattern: str) -> None:
    """Until the cursor's line is drawn so."""
    line = ""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        line = shown.read_text() if shown.exists() else ""
        if re.match(pattern, line):
            return
        time.sleep(0.1)
    raise AssertionError(f"not {pattern!r}, but {line!r}")


def test_a_suggestion_is_shown_and_taken(live_keyed: LiveServer, tmp_path: Path) -> None:
    file, shown = tmp_path / "sums.py", tmp_path / "shown.txt"
    file.write_text("def add(a, b):\n\n\nprint(add(1, 2))\n")
    with vim(file, live_keyed.address, shown) as type_:
        wait_for(shown, r"def add\(a, b\):")
        type_("A\r    return ")
        wait_for(shown, r"    return a \+ b +\| c: 0, ")  # the figures beside it
        type_("\t")
        type_("\x1b:wq\r")
    assert file.read_text() == "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n"
