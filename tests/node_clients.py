"""Clients for Node.js, as `make clients` installs them, run against a server.

results = ask(server.address, "openai.js", "models", "chat", key="k", model="m")     # {"models": [...], ...}
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

SCRIPTS = Path(__file__).parent / "clients"
SECONDS = 300.0  # for all that one run of a client asks


@dataclass(frozen=True)
class Failure:
    """What a client throws."""

    name: str
    message: str
    status: int | None
    code: str | None


def missing(problem: str) -> NoReturn:
    """Skips the test; where RRTF_CLIENTS is set, as by `make clients`, the test fails."""
    if os.environ.get("RRTF_CLIENTS"):
        pytest.fail(problem, pytrace=False)
    pytest.skip(problem)


def node() -> str:
    return shutil.which("node") or missing("no Node.js on this machine (Debian: apt install nodejs npm)")


def packages() -> Path:
    """The folder with the clients' node_modules."""
    given = os.environ.get("RRTF_CLIENTS")
    if not given or not (Path(given) / "node_modules").is_dir():
        missing("RRTF_CLIENTS names no folder with the clients' packages; run `make clients`")
    return Path(given).absolute()


def python_package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        missing(f"no {name} in this Python; run `make clients`")


def environment(home: Path, **more: str) -> dict[str, str]:
    """Nothing of the user's: clients keep settings in the home folder, and take keys from variables."""
    return {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(home), **more}


def ask(address: str, script: str, *names: str, home: Path, key: str, model: str) -> dict[str, Any]:
    """What the named parts of a script in tests/clients gave: a value each, or a Failure."""
    variables = {
        "RRTF_CLIENTS": str(packages()),
        "RRTF_ADDRESS": address,
        "RRTF_KEY": key,
        "RRTF_MODEL": model,
    }
    ended = subprocess.run(
        [node(), str(SCRIPTS / script), *names],
        env=environment(home, **variables),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    results = json.loads(ended.stdout.splitlines()[-1])
    return {
        name: Failure(**result["error"]) if "error" in result else result["value"]
        for name, result in results.items()
    }
