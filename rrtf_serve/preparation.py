"""From a model's name to a folder that can be served: fetched, and converted once, each behind a lock."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from rrtf_serve.config import ServeConfig
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.store import Store
from rrtf_serve.parts import find_part

log = logging.getLogger(__name__)


def prepare(config: ServeConfig) -> Path:
    """The folder to serve: fetched and converted where that is still to be done.

    Raises ModelError.
    """
    return prepare_source(config).path


def prepare_source(config: ServeConfig) -> Source:
    """Like `prepare`, with what is known of the model: a CTranslate2 folder, or for the torch engine a
    Hugging Face or GPTQ one. Raises ModelError."""
    store = Store()
    source = store.fetch(config.model, revision=config.revision)
    if engine_of(config, source.kind) == "torch":
        if source.kind in (Kind.HF, Kind.GPTQ):
            return source
        # A GGUF file, or an adapter with its base.
        dtype = config.dtype if config.dtype in ("float32", "float16") else "bfloat16"
        return _converted(store, source, Kind.HF, f"hf-{dtype}", {"dtype": dtype})
    if source.kind is Kind.CT2:
        return source
    options = {"quantization": config.quantization}
    return _converted(store, source, Kind.CT2, config.quantization, options)


def _converted(store: Store, source: Source, kind: Kind, label: str, options: dict[str, str]) -> Source:
    """The conversion that goes by `label` in the store, made where it is not there yet."""
    folder = store.converted(source, label)
    if not folder.is_dir():
        with store.lock(folder.name):
            if not folder.is_dir():  # another process may have made it while this one waited
                converter = "ct2" if kind is Kind.CT2 else "hf"
                _convert_apart(_Job(source, folder, converter, options))
    return replace(source, path=folder, kind=kind, base=None)


def engine_of(config: ServeConfig, kind: Kind) -> str:
    """ "ct2" or "torch". Raises ModelError where the asked-for one can't run a model of this kind."""
    if config.engine == "auto":
        return "torch" if kind is Kind.GPTQ else "ct2"
    if config.engine == "ct2" and kind is Kind.GPTQ:
        raise ModelError(
            f"{config.model}: CTranslate2 can't run GPTQ checkpoints; take --engine torch, or the model "
            "it was made from"
        )
    if config.engine == "torch" and kind is Kind.CT2:
        raise ModelError(
            f"{config.model}: is a {kind} folder, which the torch engine can't run; name the model it was "
            "made from, or leave out --engine torch"
        )
    return config.engine


def _convert_apart(job: _Job) -> None:
    """Convert in a process of its own, so that the server never carries the conversion's memory."""
    name, what = job.source.name, "CTranslate2" if job.converter == "ct2" else "a Hugging Face folder"
    log.info("converting %s to %s (%s), once", name, what, *job.options.values())
    # spawn: a fork would inherit threads of whatever was imported so far.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # The worker holds the reading end: this process's end, however that comes, is to it the end of the file.
    far_lifeline, lifeline = context.Pipe(duplex=False)
    worker = context.Process(target=_convert, args=(job, sender, far_lifeline))
    worker.start()
    sender.close()
    far_lifeline.close()
    try:
        try:
            message = receiver.recv()
        except EOFError:
            message = "it was killed, most likely for want of memory"
        # It ends by itself: letting go of the lifeline first would interrupt it at its end.
        worker.join()
    finally:
        lifeline.close()
        worker.join()
        receiver.close()
    if message:
        raise ModelError(f"converting {name} failed: {message}")


@dataclass(frozen=True)
class _Job:
    source: Source
    folder: Path
    converter: str  # its entry point
    options: dict[str, str]


def _convert(job: _Job, sender: Connection, lifeline: Connection) -> None:
    """The worker's whole life. Its answer: the error's text, or "" where all went well."""
    # Ctrl-C reaches the whole process group; the parent decides and lets go of the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=_stop_with_parent, args=(lifeline,), daemon=True).start()
    # ctranslate2.specs imports torch where it is installed: seconds and 500 MB that nothing here uses.
    sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # None makes `import torch` fail
    try:
        find_part("rrtf_serve.converters", job.converter)(job.source, job.folder, **job.options)
    except (ModelError, OSError, ValueError) as error:
        sender.send(str(error))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # a fault of ours: the user needs its name, the log its place
        log.exception("the converter failed")
        sender.send(f"{type(error).__name__}: {error}")
    else:
        sender.send("")


def _stop_with_parent(lifeline: Connection) -> None:
    with suppress(EOFError):
        lifeline.recv()
    os.kill(os.getpid(), signal.SIGTERM)  # KeyboardInterrupt in the main thread, which then cleans up
