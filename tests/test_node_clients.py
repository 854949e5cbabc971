"""What a client needs and this machine lacks: a failure under `make clients`, else a reason to skip."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from node_clients import node, packages, python_package

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("needed", [node, packages, lambda: python_package("no_such_package")])
@pytest.mark.parametrize(
    ("given", "outcome"), [("nowhere", pytest.fail.Exception), (None, pytest.skip.Exception)]
)
def test_what_is_missing(
    needed: Callable[[], object],
    given: str | None,
    outcome: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("RRTF_CLIENTS", raising=False)
    if given is not None:
        monkeypatch.setenv("RRTF_CLIENTS", str(tmp_path / given))
    # Both are caught: a skip that nobody catches would skip this test.
    with pytest.raises((pytest.fail.Exception, pytest.skip.Exception)) as raised:
        needed()
    assert raised.type is outcome


@pytest.mark.parametrize(("given", "code"), [("nowhere", 1), ("", 0)])
def test_no_model_and_no_hub(given: str, code: int, tmp_path: Path) -> None:
    env = {
        **os.environ,
        "RRTF_CLIENTS": given,
        "RRTF_HOME": str(tmp_path),
        "HF_HOME": str(tmp_path),
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "PIP_INDEX_URL": "http://127.0.0.1:9",
    }
    test = "tests/test_clients_openai.py::test_python_raises_its_own_errors"
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-m", "clients", "-p", "no:cacheprovider", test],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == code, ended.stdout
