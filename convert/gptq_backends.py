"""Libraries that can quantise: which models each takes, and which interpreter has it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rrtf_serve.models.errors import ModelError

AUTO_GPTQ_PYTHON = Path(".venv-auto-gptq/bin/python")  # what `make auto-gptq` makes
_PROBE = "import torch, auto_gptq; print(torch.cuda.is_available())"
_PROBE_SECONDS = 300
_INSTALL = "`make gptq` adds it; by hand: torch first, then pip install 'rrtf-serve[gptq]' (docs/gptq.md)"


@dataclass(frozen=True)
class Backend:
    """`architectures`: what it quantises. `refusals`: architecture -> why not, where there is more to say.

    `resumes`: architectures of which it keeps finished layers. `interpreter(python)` gives the Python to run,
    `python` being the user's choice for auto-gptq; it raises ModelError where the library or its device is
    not there.
    """

    name: str
    architectures: tuple[str, ...]
    refusals: dict[str, str]
    resumes: tuple[str, ...]
    interpreter: Callable[[Path | None], Path]

    def check(self, path: Path, architecture: str) -> None:
        """Raise ModelError where the back-end does not take `architecture`: why, and what does."""
        if architecture in self.architectures:
            return
        others = [name for name, other in BACKENDS.items() if architecture in other.architectures]
        reason = self.refusals.get(architecture, f"it takes {', '.join(self.architectures)}")
        advice = f"; take --backend {others[0]}" if others else ""
        raise ModelError(f"{path}: --backend {self.name} can't quantise {architecture}: {reason}{advice}")


def _here(*modules: str) -> Callable[[Path | None], Path]:
    def interpreter(_: Path | None) -> Path:
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if missing:
            raise ModelError(f"{', '.join(missing)} is not installed; {_INSTALL}")
        return Path(sys.executable)

    return interpreter


def _auto_gptq(python: Path | None) -> Path:
    path = (python or AUTO_GPTQ_PYTHON).absolute()
    if not path.is_file():
        raise ModelError(
            f"{path}: no such interpreter; auto-gptq 0.7.1 needs older libraries and so an environment of "
            "its own: `make auto-gptq` makes it, --auto-gptq-python names another"
        )
    try:
        probe = subprocess.run(
            [str(path), "-c", _PROBE], capture_output=True, text=True, timeout=_PROBE_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"{path}: can't be run ({error})") from error
    if probe.returncode:
        reason = (probe.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ModelError(f"{path}: has no working auto-gptq ({reason}); `make auto-gptq` makes one that has")
    if probe.stdout.strip() != "True":
        raise ModelError(
            "--backend auto-gptq: auto-gptq 0.7.1 quantises on a CUDA device only, and none is seen here; "
            "--backend gptqmodel writes the same format on a CPU, and auto-gptq loads it"
        )
    return path


BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "gptqmodel",
            ("llama", "qwen2", "starcoder", "starcoder2"),
            {},
            ("llama",),
            _here("gptqmodel"),
        ),
        Backend(
            "optimum",
            ("llama", "qwen2"),
            {
                "starcoder": "optimum's GPTQQuantizer fails on its layers "
                "('TorchAtenLinear' object has no attribute 'weight')"
            },
            (),
            _here("optimum.gptq", "gptqmodel"),
        ),
        Backend(
            "auto-gptq",
            ("llama", "qwen2", "starcoder"),
            {"starcoder2": "auto-gptq 0.7.1 is older than this architecture"},
            (),
            _auto_gptq,
        ),
    )
}
