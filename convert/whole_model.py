"""A Hugging Face folder of a foreign family -> a servable folder, through CTranslate2's own converter.

That converter holds the whole model in memory. It runs in a process of its own, so that its memory goes back
and torch stays out of this one.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np

from convert.card import TOOLS, describe_folder
from convert.checkpoint import card_licence, hf_facts
from convert.foreign import context_length
from convert.hf_config import refuse_quantised
from convert.memory import available_memory
from convert.output import new_folder
from convert.safetensors_source import safetensors_files
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import write_card
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Source

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers")
_IMPORTED_BYTES = 400_000_000  # what the packages take before there is a model
_OTHER_BYTES = 64 << 20  # all files but model.bin, at the most
_LOG = "converter.log"


def convert_whole(source: Source, destination: Path, quantization: str, *, force: bool) -> Path:
    """Convert `source`, a Hugging Face folder, into `destination`; complete or absent. Returns the folder.

    Raises ModelError where packages are missing, the model is damaged, or the converter fails.
    """
    record = Record.read(source.path / "config.json")
    refuse_quantised(record)
    _require_packages(record)
    facts = hf_facts(source.path)
    elements, stored = _weights(source.path)
    written = _written_bytes(elements, quantization)
    # Measured on GPT-2 of 0.2 billion weights: 2.0 GB for 0.8 GB of float32, to int8 and to float32 alike.
    _announce(source, stored + max(stored, written) + _IMPORTED_BYTES)
    with new_folder(destination, needed_bytes=written + _OTHER_BYTES, force=force) as folder:
        _run(source, folder, quantization)
        shutil.copyfile(source.path / "tokenizer.json", folder / "tokenizer.json")
        card = describe_folder(
            source,
            facts,
            record.text("model_type"),
            quantization,
            folder,
            context_length=context_length(record),
            licence=source.licence or card_licence(source.path),
            tools=(*TOOLS, *_PACKAGES),
        )
        write_card(card, folder)
    return destination


def _require_packages(record: Record) -> None:
    missing = []
    for name in _PACKAGES:
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        raise ModelError(
            f"{record.path}: model_type {record.text('model_type')!r} goes through CTranslate2's own "
            f"converter, which needs {' and '.join(missing)}: pip install 'rrtf-serve[convert]' (without a "
            "GPU, install the CPU build of torch first)"
        )


def _weights(folder: Path) -> tuple[int, int]:
    """Number of weights and their bytes as stored. Raises ModelError naming a shard that is cut short."""
    elements = stored = 0
    for file in safetensors_files(folder):
        elements += sum(int(np.prod(entry.shape, dtype=object)) for entry in file.entries.values())
        stored += file.file.size
        file.file.close()
    return elements, stored


def _written_bytes(elements: int, quantization: str) -> int:
    """Upper bound of model.bin."""
    if quantization.startswith("int8"):
        return int(elements * 1.1)  # scales, and norms that stay floats
    return elements * (4 if quantization == "float32" else 2)


def _announce(source: Source, needed: int) -> None:
    available = available_memory()
    here = f", {available / 1e9:.1f} GB are available" if available is not None else ""
    log.warning(
        "%s: not streamed but held whole by CTranslate2's own converter; needs about %.1f GB of memory%s",
        source.name, needed / 1e9, here,
    )  # fmt: skip


def _run(source: Source, folder: Path, quantization: str) -> None:
    """Have a child process write CTranslate2's files into `folder`."""
    said = folder / _LOG
    command = [
        sys.executable, "-P", "-m", "convert.foreign_worker", str(source.path), str(folder), quantization,
    ]  # fmt: skip
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with (
        said.open("wb") as output,
        # The child reads its stdin until the end, which is that of this process too, however it comes. Ctrl-C
        # reaches this process alone.
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            status = process.wait()
        except BaseException:
            process.kill()
            raise
    lines = [line for line in said.read_text("utf-8", "replace").splitlines() if line.strip()]
    said.unlink()
    if status == 0:
        return
    reason = lines[-1][:500] if lines else f"exit status {status}"
    if status < 0:
        reason = f"killed by signal {-status}" + (", most likely for want of memory" if status == -9 else "")
    raise ModelError(f"{source.path}: CTranslate2's own converter failed: {reason}")
