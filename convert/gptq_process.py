"""Runs a quantisation in a child process: progress comes back, chatter goes to a log, nothing outlives us."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rrtf_serve.models.errors import ModelError

_WORKER = Path(__file__).with_name("gptq_worker.py")
_TAIL = 12  # lines of the log that an error shows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What a worker gets. Paths are absolute; `checkpoint` is empty where work can't be taken up again."""

    backend: str
    model: str  # plain Hugging Face folder
    output: str  # folder to write, which exists
    windows: str  # JSON file: rows of token ids, all of one length
    scratch: str  # folder for the back-end's own files
    checkpoint: str
    bits: int
    group_size: int  # columns that share a scale; -1: all of a row
    desc_act: bool
    damp: float
    seed: int
    device: str


@dataclass(frozen=True)
class Result:
    """`tools`: name -> version. Memory is the worker's own, resident, at its peak."""

    tools: dict[str, str]
    device: str
    seconds: float
    peak_rss_bytes: int


def run(job: Job, python: Path, folder: Path, *, progress: bool) -> Result:
    """Do `job` under the interpreter `python`; `folder` takes its files. Where stderr is a terminal a bar
    counts layers there, elsewhere each finished one is logged.

    Raises ModelError with the worker's reason and the end of its log. Ctrl-C ends the worker at once.
    """
    described, log = folder / "job.json", folder / "worker.log"
    described.write_text(json.dumps(asdict(job)), "utf-8")
    reading, writing = os.pipe()
    # -P: the worker's own folder must not come before the back-end's modules.
    command = [str(python), "-P", str(_WORKER), str(described), str(writing)]
    with log.open("ab") as output, os.fdopen(reading, "rb") as events:
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(writing,),
                cwd=folder,
                start_new_session=True,  # Ctrl-C reaches us alone, and we end it
            )
        except OSError as error:
            raise ModelError(f"{python}: can't be started ({error.strerror})") from error
        finally:
            os.close(writing)
        with process:
            try:
                last = _follow(events, progress=progress)
            except BaseException:
                process.kill()
                raise
            status = process.wait()
    if "done" in last:
        return Result(**last["done"])
    reason = last.get("failed") or (
        f"killed by signal {-status}" + (", most likely for want of memory" if status == -9 else "")
        if status < 0
        else f"exit status {status}"
    )
    raise ModelError(f"{job.backend} failed: {reason}\n{_end_of(log)}")


def _follow(events: Iterator[bytes], *, progress: bool) -> dict[str, Any]:
    """Show progress until the worker closes its end; the last event."""
    event: dict[str, Any] = {}
    finished, watched = 0, sys.stderr.isatty()
    with tqdm(unit="layer", desc="quantising", disable=None if progress else True) as bar:
        for line in events:
            event = json.loads(line)
            if "layer" in event:
                bar.total = event["layers"]
                bar.update(event["layer"] + 1 - bar.n)
                if event["layer"] + 1 > finished:
                    finished = event["layer"] + 1
                    if progress and not watched:
                        logger.info("layer %d of %d", finished, event["layers"])
    return event


def _end_of(log: Path) -> str:
    lines = log.read_text("utf-8", "replace").splitlines()
    return "\n".join(f"  {line[:200]}" for line in lines[-_TAIL:])
