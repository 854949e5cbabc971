"""A source model -> a GPTQ checkpoint in AutoGPTQ's format, which transformers, gptqmodel and auto-gptq load.

    quantise(source, Path("out/qwen-gptq4"), Options(bits=4, group_size=128))

The work is done by a library (`Options.backend`) in a child process; what it calibrates on, what it leaves on
the disk and what the folder says of itself is decided here. Method: GPTQ, arXiv 2210.17323.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from convert import hf
from convert.architectures import specify
from convert.blocks import block_pool, largest_value, map_blocks
from convert.calibration import Windows, cut, load_corpus
from convert.card import make_card
from convert.checkpoint import Checkpoint, open_checkpoint
from convert.ct2 import padded_vocabulary
from convert.gptq_backends import BACKENDS, Backend
from convert.gptq_layout import settle
from convert.gptq_process import Job, Result, run
from convert.hf_view import whole_weight
from convert.output import check_apart, new_folder
from convert.sources import ModelConfig, TensorSource
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import write_card
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.tokens import Tokenizer

BITS = (8, 4, 3)
GROUP_SIZES = (-1, 16, 32, 64, 128, 256, 512, 1024)  # what every loader has kernels for
DEFAULT_SEQLEN = 2048
MAX_SEED = (1 << 32) - 1  # numpy's
_WORD = 32  # inputs come in whole words of packed values

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """How to quantise. Raises ValueError naming the flag on a value that makes no sense.

    `group_size`: inputs that share a scale, -1 for all of a row. `desc_act`: columns in the order of their
    activations. `seqlen` in tokens; None is 2048, or the model's context where that is less. `damp`: share of
    the mean of the Hessian's diagonal that is added to it (arXiv 2210.17323, section 3.3). `output_copy`: a
    tied output matrix is stored once more, for auto-gptq.
    """

    bits: int = 4
    group_size: int = 128
    desc_act: bool = True
    calibration: str = "code"
    samples: int = 128
    seqlen: int | None = None
    seed: int = 0
    damp: float = 0.05
    backend: str = "gptqmodel"
    device: str = "auto"
    output_copy: bool = True

    def __post_init__(self) -> None:
        for flag, value, known in (
            ("--bits", self.bits, BITS),
            ("--group-size", self.group_size, GROUP_SIZES),
            ("--backend", self.backend, tuple(BACKENDS)),
        ):
            if value not in known:
                raise ValueError(f"{flag} {value}: should be one of {', '.join(map(str, known))}")
        if not 0 < self.damp < 1:
            raise ValueError(f"--damp {self.damp}: should lie between 0 and 1")
        if self.seqlen is not None and self.seqlen < 2:
            raise ValueError(f"--seqlen {self.seqlen}: should be at least 2")
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"--seed {self.seed}: should be from 0 to {MAX_SEED:,}")
        if self.samples < 1:
            raise ValueError(f"--samples {self.samples}: should be at least 1")

    @property
    def name(self) -> str:
        """As cards call it: "gptq-4bit-g128"; "gptq-8bit-rows" has one scale per row."""
        return f"gptq-{self.bits}bit-" + ("rows" if self.group_size == -1 else f"g{self.group_size}")


def quantise(
    source: Source,
    destination: Path,
    options: Options,
    *,
    data_dir: Path | None = None,
    auto_gptq_python: Path | None = None,
    progress: bool = True,
    force: bool = False,
) -> Path:
    """Quantise `source` into the folder `destination`, which appears only once it is complete.

    `data_dir` holds the data of training suites; `auto_gptq_python` is the interpreter that has auto-gptq
    (default: the environment of `make auto-gptq`). Raises ModelError for what the user can mend, ValueError
    on flags that do not fit this model or its calibration.
    """
    check_apart(source, destination)
    backend = BACKENDS[options.backend]
    corpus = load_corpus(options.calibration, data_dir)
    checkpoint = open_checkpoint(source)
    try:
        _check_whole(checkpoint, source)
        config = checkpoint.tensors.config
        _check_model(source, config, options, backend)
        python = backend.interpreter(auto_gptq_python)
        length = min(DEFAULT_SEQLEN, config.context_length) if options.seqlen is None else options.seqlen
        needed = _needed_bytes(checkpoint, source)
        with (
            new_folder(destination, needed_bytes=needed, force=force) as folder,
            _workspace(destination) as work,
        ):
            _check_finite(checkpoint.tensors)
            checkpoint.write_tokenizer(work)
            facts = checkpoint.tokenizer
            windows = cut(
                corpus,
                Tokenizer.load(work),
                samples=options.samples,
                length=length,
                seed=options.seed,
                first=facts.bos_token if facts.add_bos else "",
                end=facts.eos_token,
            )
            model = source.path
            if source.kind is not Kind.HF:
                model = hf.convert(source, work / "plain", progress=progress, force=True)
            job = _job(
                options,
                model=model,
                folder=folder,
                work=work,
                windows=windows,
                resumes=config.architecture in backend.resumes,
            )
            result = run(job, python, work, progress=progress)
            record = _quantization_record(options, windows, result)
            settle(folder, model, record, copy=options.output_copy)
            card = make_card(source, checkpoint, options.name, folder, context_length=config.context_length)
            recipe = _recipe(options, windows, result)
            write_card(replace(card, tools=card.tools | result.tools, recipe=recipe), folder)
    finally:
        checkpoint.tensors.close()
    return destination


def _check_model(source: Source, config: ModelConfig, options: Options, backend: Backend) -> None:
    backend.check(source.path, config.architecture)
    heads, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    joined = heads + 2 * keys if config.architecture == "starcoder" else keys
    inputs = {config.hidden, heads, config.ffn}
    if odd := sorted(width for width in inputs | {joined} if width % _WORD):
        raise ModelError(
            f"{source.path}: has matrices of {odd[0]} rows or columns; the format packs both by {_WORD}, so "
            "this model can't be quantised"
        )
    if odd := sorted(width for width in inputs if width % max(options.group_size, 1)):
        fitting = [size for size in GROUP_SIZES if size > 0 and not any(width % size for width in inputs)]
        raise ValueError(
            f"--group-size {options.group_size}: does not divide the {odd[0]} inputs of some matrices of "
            f"this model, which loaders refuse; take {', '.join(map(str, fitting))} or -1"
        )
    if options.seqlen is not None and options.seqlen > config.context_length:
        raise ValueError(
            f"--seqlen {options.seqlen}: the model's context is {config.context_length} tokens long"
        )


def _check_whole(checkpoint: Checkpoint, source: Source) -> None:
    """Raise ModelError on a missing tensor, which a library would make up, or a token without a row."""
    rows = specify(checkpoint.tensors).vocabulary_size
    padded_vocabulary(checkpoint.tokenizer.tokens, rows, source.path)


def _check_finite(tensors: TensorSource) -> None:
    """Raise ModelError naming a tensor with values that are not numbers, which libraries quantise too."""
    with block_pool() as pool:
        for name in tensors.names:
            weight = whole_weight(tensors, name)
            for _ in map_blocks(pool, tensors, weight, largest_value, purpose="GPTQ"):
                pass


def _needed_bytes(checkpoint: Checkpoint, source: Source) -> int:
    """Of the result, the library's scratch files, finished layers, and a plain folder where one is made."""
    tensors = checkpoint.tensors
    sixteen_bits = sum(2 * math.prod(tensors.shape(name)) for name in tensors.names)
    return sixteen_bits * (3 if source.kind is Kind.HF else 4)


@contextmanager
def _workspace(destination: Path) -> Iterator[Path]:
    """A folder beside `destination` for everything that is not the result.

    It stays when the process is killed, or fails with finished layers kept; else it goes.
    """
    destination = destination.absolute()
    work = destination.parent / f".{destination.name}.gptq"
    work.mkdir(exist_ok=True)
    try:
        yield work
    except KeyboardInterrupt:
        shutil.rmtree(work)
        raise
    except BaseException:
        if any(work.glob("checkpoint-*/CURRENT")):
            logger.warning("%s keeps the finished layers; the same command goes on from there", work)
        else:
            shutil.rmtree(work)
        raise
    shutil.rmtree(work)


def _job(
    options: Options,
    *,
    model: Path,
    folder: Path,
    work: Path,
    windows: Windows,
    resumes: bool,
) -> Job:
    rows = work / "windows.json"
    rows.write_text(json.dumps(windows.ids), "utf-8")
    scratch = work / "scratch"
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir()
    # Finished layers serve only a run with the same settings, which the library would refuse otherwise.
    settings = json.dumps([asdict(options), windows.record], sort_keys=True)
    key = hashlib.sha256(settings.encode("utf-8")).hexdigest()[:12]
    for other in work.glob("checkpoint-*"):
        if other.name != f"checkpoint-{key}":
            shutil.rmtree(other)
    return Job(
        backend=options.backend,
        model=str(model.resolve()),
        output=str(folder.resolve()),
        windows=str(rows.resolve()),
        scratch=str(scratch.resolve()),
        checkpoint=str((work / f"checkpoint-{key}").resolve()) if resumes else "",
        bits=options.bits,
        group_size=options.group_size,
        desc_act=options.desc_act,
        damp=options.damp,
        seed=options.seed,
        device=options.device,
    )


def _quantization_record(options: Options, windows: Windows, result: Result) -> dict[str, Any]:
    """What loaders read, in AutoGPTQ's words; `meta` is for people."""
    tools = [name for name in ("optimum", "gptqmodel", "auto-gptq") if name in result.tools]
    return {
        "bits": options.bits,
        "group_size": options.group_size,
        "desc_act": options.desc_act,
        "sym": True,
        "damp_percent": options.damp,
        "true_sequential": True,
        "lm_head": False,
        "quant_method": "gptq",
        "checkpoint_format": "gptq",
        "pack_dtype": "int32",
        "meta": {
            "quantizer": [f"{name}:{result.tools[name]}" for name in tools],
            "calibration": windows.record,
        },
    }


def _recipe(options: Options, windows: Windows, result: Result) -> dict[str, Any]:
    return {
        "backend": options.backend,
        "bits": options.bits,
        "group_size": options.group_size,
        "desc_act": options.desc_act,
        "sym": True,
        "damp": options.damp,
        "device": result.device,
        "seconds": result.seconds,
        "peak_rss_bytes": result.peak_rss_bytes,
        "calibration": windows.record,
    }
