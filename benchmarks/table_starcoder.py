"""`rrtf-bench table --starcoder-shape`: the paper's table 4 at the shape of its model, with random weights.

StarCoder's trained weights are gated; memory and speed do not depend on the values, scores do and are not
measured. The fp16 checkpoint is large_conversion's. The GPTQ ones are random packed words, written directly:
nothing is calibrated. Each checkpoint is removed once its rows are measured; all of them take 47 GB of disk
at a time. The ways run one after another, not in turns: together they would not fit onto one device.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from benchmarks.large_conversion import STARCODER, RandomSource, Shape, require_disk, write_checkpoint
from benchmarks.machine import machine_record
from benchmarks.table_children import Child, ChildFailedError
from benchmarks.table_page import markdown
from benchmarks.table_report import ON_DEVICE, row_figures
from benchmarks.table_rounds import CodePrompts, Measured, Rounds, Work, figure, write_json, write_text
from convert.ct2 import convert
from rrtf_serve.models.inventory import size_of
from rrtf_serve.models.source import Kind, Source

GROUP = 128
_SPREAD = 0.02  # standard deviation of the weights, as the checkpoint's
# Memory in GB and ms per token of PanGu-Coder2's table 4 (arXiv 2307.14936, section 4.4).
_PAPER = {
    "float16": {"memory_gb": 32.36, "ms_per_token": 75},
    "ct2": {"memory_gb": 16.29, "ms_per_token": 33},
    "gptq8": {"memory_gb": 16.92, "ms_per_token": 51},
    "gptq4": {"memory_gb": 9.82, "ms_per_token": 42},
}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StarcoderConfig:
    """`device`: None is cuda where there is one. `layers`: None is the true depth. Raises ValueError naming
    the flag."""

    output: Path
    work: Work
    repeats: int = 5
    threads: int = 0
    device: str | None = None
    layers: int | None = None
    shape: Shape = STARCODER

    def __post_init__(self) -> None:
        if self.layers is not None and not 1 <= self.layers <= self.shape.layers:
            raise ValueError(f"--layers {self.layers}: must be from 1 to {self.shape.layers}")
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f"--device {self.device}: must be cpu or cuda")
        if self.repeats < 1:
            raise ValueError(f"--repeats must be at least 1, not {self.repeats}")

    def place(self) -> str:
        """The device to run on. Raises ValueError where the true depth has none."""
        found = _has_cuda()
        if self.device == "cuda" and not found:
            raise ValueError("--device cuda: torch finds no CUDA device on this machine (or is a CPU build)")
        chosen = self.device or ("cuda" if found else "cpu")
        if chosen == "cpu" and self.layers is None:
            raise ValueError(
                "--starcoder-shape: needs a CUDA device, and torch finds none here or --device says cpu; "
                "--layers 1 runs a stand-in of that depth on the CPU"
            )
        return chosen

    def true_shape(self) -> Shape:
        return replace(self.shape, layers=self.layers or self.shape.layers)


@dataclass(frozen=True)
class Part:
    """One row: which checkpoint it needs, and how it is run."""

    name: str
    checkpoint: str  # key of _PAPER
    engine: str
    type: str


PARTS = (
    Part("transformers float16", "float16", "transformers", "float16"),
    Part("torch engine float16", "float16", "torch", "float16"),
    Part("CTranslate2 int8", "ct2", "ct2", ""),
    Part("torch engine GPTQ 8 bits", "gptq8", "torch", ""),
    Part("torch engine GPTQ 4 bits", "gptq4", "torch", ""),
)


def measure_starcoder(config: StarcoderConfig) -> dict[str, Any]:
    """Write each checkpoint, measure its rows, remove it; table.json and table.md after each row.

    A stopped run goes on with the next row. Raises ValueError naming a flag, ModelError where the disk is
    short.
    """
    device, shape = config.place(), config.true_shape()
    config.output.mkdir(parents=True, exist_ok=True)
    key = {
        "work": asdict(config.work), "threads": config.threads, "device": device, "shape": asdict(shape),
        "machine": machine_record(),
    }  # fmt: skip
    rounds = Rounds(config.output, key)
    require_disk(shape, config.output)
    sizes: dict[str, int] = {}

    def write() -> dict[str, Any]:
        report = _report(config, device, shape, rounds, sizes)
        write_json(config.output / "table.json", report)
        write_text(config.output / "table.md", markdown(report))
        return report

    with _checkpoints(shape, config.output, device) as place, tqdm(total=len(PARTS), unit="row") as bar:
        for part in PARTS:
            bar.set_description(part.name)
            measured = rounds.of(part.name)
            if len(measured.rounds) < config.repeats and not measured.failed:
                folder = place(part.checkpoint)
                sizes[part.name] = size_of(folder)
                _measure(part, folder, config, device, measured)
                rounds.save()
            bar.update()
            write()
    return write()


@contextmanager
def _checkpoints(shape: Shape, output: Path, device: str) -> Iterator[Callable[[str], Path]]:
    """Gives a function that writes the checkpoint of a name and removes those that are done with."""
    scratch = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=output))

    def place(name: str) -> Path:
        wanted = scratch / name
        if wanted.is_dir():
            return wanted
        plain = scratch / "float16"
        if name in ("float16", "ct2") and not plain.is_dir():
            write_checkpoint(shape, plain)
        if name == "ct2":
            # What the rest is computed in: of a CPU's kernels none takes float16.
            kind = "int8_float16" if device == "cuda" else "int8"
            convert(Source(plain, Kind.HF, "starcoder-shape"), wanted, quantization=kind, progress=False)
        elif name.startswith("gptq"):
            write_packed(shape, wanted, bits=int(name[-1]))
        for other in scratch.iterdir():
            if other != wanted:
                shutil.rmtree(other)
        return wanted

    try:
        yield place
    finally:
        shutil.rmtree(scratch)


def _measure(part: Part, folder: Path, config: StarcoderConfig, device: str, measured: Measured) -> None:
    work = config.work
    settings = {
        "engine": part.engine, "type": part.type, "path": str(folder), "device": device,
        "threads": config.threads, "rows": work.most_rows, "context": work.context,
    }  # fmt: skip
    prompts = CodePrompts.load(folder)
    measured.rounds.clear()  # of a run that was stopped: one process makes them all
    try:
        child = Child(settings)
    except ChildFailedError as error:
        measured.failed = str(error)
        return
    try:
        measured.described, measured.versions = child.described, child.versions
        for turn in range(-1, config.repeats):
            figures = {task: figure(child, prompts, work, task, turn) for task in work.tasks}
            if turn >= 0:
                measured.rounds.append(figures)
        measured.alone = child.load.record()
    except ChildFailedError as error:
        measured.failed = str(error)
    finally:
        child.close()


def _report(
    config: StarcoderConfig, device: str, shape: Shape, rounds: Rounds, sizes: dict[str, int]
) -> dict[str, Any]:
    rows = []
    for part in PARTS:
        measured = rounds.of(part.name)
        row: dict[str, Any] = {
            "name": part.name, "engine": part.engine, "digest": "", "size_bytes": sizes.get(part.name, 0),
            "described": measured.described, "versions": measured.versions, **row_figures(measured),
        }  # fmt: skip
        if shape == STARCODER:
            row["paper"] = _PAPER[part.checkpoint]
        rows.append(row)
    notes = [
        f"StarCoder's shape, {shape.layers} of {STARCODER.layers} layers, {shape.parameters():,} parameters, "
        "with **random weights**: memory and speed only. The GPTQ rows are random packed words in groups of "
        f"{GROUP}, never calibrated."
    ]
    if shape != STARCODER:
        notes.append("A stand-in of another size: nothing here is to be held against the paper.")
    if device == "cuda":
        notes.append(ON_DEVICE)
    return {
        "title": "Ways to run StarCoder-15.5B's shape",
        "model": "random weights",
        "shape": asdict(shape),
        "command": " ".join(["rrtf-bench", *sys.argv[1:]]),
        "settings": {
            **asdict(config.work), "repeats": config.repeats, "threads": config.threads, "device": device,
            "order": "one way after the other, each in one process",
        },
        "baseline": PARTS[0].name,
        "suite": None,
        "notes": notes,
        "rows": rows,
        "targets": [],
        "machine": machine_record(),
    }  # fmt: skip


def write_packed(shape: Shape, folder: Path, *, bits: int, group_size: int = GROUP) -> Path:
    """A GPTQ checkpoint of random words, in the layout that convert/gptq_source reads; one shard a layer.

    `bits`: 4 or 8. The scales give the weights the spread of a fresh model's. Everything but the linear
    layers is fp16. Needs the library safetensors. Raises ValueError on sizes that do not divide.
    """
    from safetensors.numpy import save_file  # noqa: PLC0415 - in the extra `torch`, as what reads it

    source, random = RandomSource(shape), np.random.default_rng(bits)
    write_checkpoint(replace(shape, layers=0), folder)  # configuration and tokenizer, and no linear layer
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    count, total = shape.layers + 1, 0
    for number, names in enumerate(_by_layer(shape), 1):
        tensors: dict[str, Array] = {}
        for name in names:
            rows = source.shape(name)
            if ".h." in name and len(rows) == 2:
                tensors |= _packed(name.removesuffix(".weight"), rows, bits, group_size, random)
            else:
                tensors[name] = source.rows(name, 0, rows[0]).astype(np.float16)
        file = f"model-{number:05}-of-{count:05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    quantization = {
        "quant_method": "gptq", "bits": bits, "group_size": group_size, "desc_act": False, "sym": True,
        "lm_head": False, "checkpoint_format": "gptq",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config |= {"n_layer": shape.layers, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "quantize_config.json").write_text(json.dumps(quantization), "utf-8")
    return folder


def _by_layer(shape: Shape) -> list[list[str]]:
    """Tensor names: what belongs to no layer first, then layer by layer."""
    found: list[list[str]] = [[] for _ in range(shape.layers + 1)]
    for name in shape.tensors():
        number = next((int(part) for part in name.split(".") if part.isdigit()), -1)
        found[number + 1].append(name)
    return found


def _packed(
    stem: str, rows: tuple[int, ...], bits: int, group_size: int, random: np.random.Generator
) -> dict[str, Array]:
    """qweight, qzeros, scales and g_idx of a matrix (outputs, inputs); see convert/gptq_source."""
    outputs, inputs = rows
    per_word = 32 // bits
    if inputs % group_size or inputs % per_word or outputs % per_word:
        raise ValueError(
            f"{stem}: {outputs} x {inputs} is no whole number of groups of {group_size} and words"
        )
    groups = inputs // group_size
    # Stored less one: the middle of the range, which makes the weights symmetric around zero.
    zero = 2 ** (bits - 1) - 1
    word = sum(zero << shift for shift in range(0, 32, bits))
    words = np.frombuffer(random.bytes(4 * (inputs // per_word) * outputs), "<i4")
    scale = _SPREAD * np.sqrt(12) / 2**bits  # a uniform value's standard deviation is its range / sqrt(12)
    return {
        f"{stem}.qweight": words.reshape(inputs // per_word, outputs),
        f"{stem}.qzeros": np.full((groups, outputs // per_word), word, np.uint32).view(np.int32),
        f"{stem}.scales": np.full((groups, outputs), scale, np.float16),
        f"{stem}.g_idx": (np.arange(inputs) // group_size).astype(np.int32),
    }


def _has_cuda() -> bool:
    if find_spec("torch") is None:
        return False
    import torch  # noqa: PLC0415 - not in the base install

    return bool(torch.cuda.is_available())
