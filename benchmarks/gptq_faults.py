"""What can make an 8-bit GPTQ model many points worse than its source? Each suspect is built in and measured.

    python -m benchmarks.gptq_faults --model SRC --gptq FOLDER --output DIR
    python -m benchmarks.gptq_faults --model SRC --gptq FOLDER --write "GPTQ, g_idx ignored" --output DIR

The second form writes one suspect as a CTranslate2 folder, for `rrtf-bench passk` and `compare`.

PanGu-Coder2's table (arXiv 2307.14936, table 4) has its GPTQ int8 eleven points of HumanEval below fp16, far
more than 8-bit rounding should cost. Three kinds of suspects, all at 8 bits unless their name says otherwise:
- the checkpoint FOLDER with a fault in how it is read: zero points off by one (the two formats that are both
  called "gptq"), g_idx ignored, groups cut wrongly
- SRC rounded to nearest, without any calibration: what bad calibration could cost at the most, and what
  coarser scales, a quantised output matrix or fewer bits cost
- SRC through CTranslate2's int8, where activations are rounded as well, and with them left alone

Every model is run by CTranslate2 with the weights that the fault leaves, and compared with SRC in float32
(convert/verify.py). Not covered: faults of a GPU kernel, and of a prompt or an end token.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine_record
from benchmarks.variants import base_of
from convert.architectures import specify
from convert.checkpoint import open_checkpoint
from convert.ct2 import convert
from convert.families import FAMILIES
from convert.gptq_source import GptqSource
from convert.sources import FloatArray, ModelConfig, StoredType, TensorSource
from convert.verify import Options, Reference
from convert.writer import write_model
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.gptq import Layer
from rrtf_serve.models.source import Kind, Source, safe_name
from rrtf_serve.models.store import Store

logger = logging.getLogger(__name__)


class FaultyGptq(GptqSource):
    """A GPTQ folder whose stored parts are changed before they are dequantised."""

    def __init__(self, path: Path, fault: Callable[[Layer, int], Layer]) -> None:
        super().__init__(path)
        self._fault = fault

    def layer(self, name: str) -> Layer:
        return self._fault(super().layer(name), self.settings.group_size)


def shifted_zeros(layer: Layer, by: int) -> Layer:
    """Zero points read `by` steps too high: what one format's checkpoint gives in the other's loader."""
    return replace(layer, zeros=layer.zeros + np.int32(by))


def ignored_order(layer: Layer, group_size: int) -> Layer:
    """Groups taken from consecutive inputs, whatever g_idx says."""
    inputs = len(layer.groups)
    size = inputs if group_size == -1 else group_size
    return replace(layer, groups=np.arange(inputs, dtype=np.int32) // np.int32(size))


def one_group(layer: Layer) -> Layer:
    """The first group's scale and zero point for all: a loader that takes group_size for -1."""
    return replace(layer, groups=np.zeros_like(layer.groups))


@dataclass(frozen=True)
class Rounding:
    """Symmetric rounding to nearest, as GPTQ's own quantiser has it: 2**bits levels, zero in the middle.

    `group`: inputs that share a scale; 0: a whole row; -1: the whole matrix. `output`: the output matrix too.
    """

    bits: int = 8
    group: int = 128
    output: bool = False

    def applied(self, rows: FloatArray, largest: float | None) -> FloatArray:
        """`rows` (rows, columns) after rounding; `largest`: of the whole matrix, where that counts."""
        columns = rows.shape[1]
        size = self.group if self.group > 0 and columns % self.group == 0 else columns
        grouped = rows.reshape(len(rows), -1, size)
        most = np.abs(grouped).max(axis=2, keepdims=True) if largest is None else np.float32(largest)
        levels = 2**self.bits
        scale = np.maximum(2 * most / np.float32(levels - 1), np.finfo(np.float32).tiny)
        steps = np.clip(np.rint(grouped / scale), -levels // 2, levels // 2 - 1)
        rounded: FloatArray = (steps * scale).astype(np.float32).reshape(rows.shape)
        return rounded


class Rounded:
    """A TensorSource with the matrices of its layers rounded to nearest."""

    def __init__(self, base: TensorSource, rounding: Rounding) -> None:
        self.base, self.rounding = base, rounding
        names = FAMILIES[base.config.architecture].names[base.config.naming]
        kept = {"embedding", "positions"} | (set() if rounding.output else {"output"})
        self._kept = {f"{names[role]}.weight" for role in kept if role in names}
        self._largest: dict[str, float] = {}

    @property
    def path(self) -> Path:
        return self.base.path

    @property
    def config(self) -> ModelConfig:
        # A tied output matrix is the embedding; rounding one of them parts them.
        return replace(self.base.config, tied=False) if self.rounding.output else self.base.config

    @property
    def names(self) -> Collection[str]:
        return self.base.names

    def shape(self, name: str) -> tuple[int, ...]:
        return self.base.shape(name)

    def stored_type(self, name: str) -> StoredType:
        return self.base.stored_type(name)

    def precision(self, name: str) -> float:
        return self.base.precision(name)

    def rows(self, name: str, start: int, stop: int) -> FloatArray:
        rows = self.base.rows(name, start, stop)
        if rows.ndim < 2 or name in self._kept:
            return rows
        return self.rounding.applied(rows, self._matrix_largest(name) if self.rounding.group == -1 else None)

    def _matrix_largest(self, name: str) -> float:
        if name not in self._largest:
            self._largest[name] = float(np.abs(self.base.rows(name, 0, self.shape(name)[0])).max())
        return self._largest[name]

    def close(self) -> None:
        self.base.close()


@dataclass(frozen=True)
class Suspect:
    """`open` gives the weights; `quantization` and `compute_type` are CTranslate2's."""

    name: str
    open: Callable[[Source, Path], TensorSource]
    quantization: str = "float32"
    compute_type: str = "default"


def _source(source: Source, _: Path) -> TensorSource:
    return open_checkpoint(source).tensors


def _rounded(rounding: Rounding) -> Callable[[Source, Path], TensorSource]:
    return lambda source, _: Rounded(open_checkpoint(source).tensors, rounding)


def _faulty(fault: Callable[[Layer, int], Layer]) -> Callable[[Source, Path], TensorSource]:
    return lambda _, folder: FaultyGptq(folder, fault)


SUSPECTS = (
    Suspect("GPTQ checkpoint, read rightly", lambda _, folder: GptqSource(folder)),
    Suspect("GPTQ, zero points one too low", _faulty(lambda layer, _: shifted_zeros(layer, -1))),
    Suspect("GPTQ, zero points one too high", _faulty(lambda layer, _: shifted_zeros(layer, 1))),
    Suspect("GPTQ, g_idx ignored", _faulty(ignored_order)),
    Suspect("GPTQ, first group's scale for all", _faulty(lambda layer, _: one_group(layer))),
    Suspect("rounded to nearest, group 128", _rounded(Rounding())),
    Suspect("rounded to nearest, one scale per row", _rounded(Rounding(group=0))),
    Suspect("rounded to nearest, one scale per matrix", _rounded(Rounding(group=-1))),
    Suspect("rounded to nearest, 6 bits", _rounded(Rounding(bits=6))),
    Suspect("rounded to nearest, 5 bits", _rounded(Rounding(bits=5))),
    Suspect("rounded to nearest, 4 bits", _rounded(Rounding(bits=4))),
    Suspect("int8 weights per row, activations left alone", _source, "int8", "float32"),
    Suspect("int8 weights per row, int8 activations", _source, "int8"),
)


def measure_faults(model: str, gptq: Path, output: Path, options: Options) -> dict[str, Any]:
    """Parity of every suspect that has none in `output`/faults.json yet. Raises ModelError, ValueError."""
    source = Store().fetch(model)
    gptq_source = Store().fetch(str(gptq))
    if gptq_source.kind is not Kind.GPTQ:
        raise ModelError(f"{gptq}: is no GPTQ folder but a {gptq_source.kind} model")
    output.mkdir(parents=True, exist_ok=True)
    path = output / "faults.json"
    settings = {
        "model": source.name,
        "base": base_of(source),
        "source_sha256": source.digest,
        "gptq": gptq.name,
        "tokens": options.tokens,
        "seed": options.seed,
    }
    report = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if {key: report.get(key) for key in settings} != settings:
        report = {**settings, "machine": machine_record(), "suspects": {}}
    todo = [suspect for suspect in SUSPECTS if suspect.name not in report["suspects"]]
    if todo:
        with Reference.open(source, options, progress=True) as reference:
            for suspect in todo:
                logger.warning("%s", suspect.name)
                with _converted(source, gptq, suspect, output) as folder:
                    found = reference.compare(
                        Source(folder, Kind.CT2, suspect.name), compute_type=suspect.compute_type
                    )
                report["suspects"][suspect.name] = found.parity.record()
                path.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    (output / "faults.md").write_text(markdown(report), "utf-8")
    return dict(report)


@contextmanager
def _converted(source: Source, gptq: Path, suspect: Suspect, output: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".made-", dir=output) as parent:
        yield write_suspect(source, gptq, suspect, Path(parent) / "model")


def write_suspect(source: Source, gptq: Path, suspect: Suspect, folder: Path) -> Path:
    """The suspect as a CTranslate2 folder: `source`'s own conversion with other weights."""
    convert(source, folder, quantization=suspect.quantization)
    if suspect.open is not _source:
        tensors = suspect.open(source, gptq)
        try:
            write_model(folder / "model.bin", specify(tensors), tensors, suspect.quantization)
        finally:
            tensors.close()
    return folder


def _write_one(name: str, model: str, gptq: Path, output: Path) -> None:
    named = {suspect.name: suspect for suspect in SUSPECTS}
    if name not in named:
        raise ValueError(f"--write {name!r} is no suspect; there are: {'; '.join(named)}")
    suspect = named[name]
    print(write_suspect(Store().fetch(model), gptq, suspect, output / safe_name(name)))


def markdown(report: dict[str, Any]) -> str:
    """The report as a table, the least harm first."""
    lines = [
        f"# Faults of 8-bit GPTQ: {report['model']}",
        "",
        f"Base of every figure: {report['base']}, run in float32. Checkpoint: {report['gptq']}.",
        "",
        "| suspect | mean KL, nats per token | top-1 agreement | perplexity ratio |",
        "|---|---|---|---|",
    ]
    suspects = sorted(report["suspects"].items(), key=lambda item: float(item[1]["mean_kl"]["value"]))
    for name, parity in suspects:
        kl, top1, ratio = (parity[key] for key in ("mean_kl", "top1_agreement", "perplexity_ratio"))
        lines.append(
            f"| {name} | {kl['value']:.3g} ({kl['low']:.3g} to {kl['high']:.3g}) | {top1['value']:.2%} | "
            f"{ratio['value']:.4g} |"
        )
    return "\n".join([*lines, ""])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gptq_faults",
        description="Build each suspected fault into a GPTQ checkpoint and measure what it costs.",
        epilog="example: python -m benchmarks.gptq_faults --gptq ./qwen-gptq8 --output faults",
    )
    parser.add_argument("--model", default="qwen2.5-coder-0.5b-instruct", help="what FOLDER was made from")
    parser.add_argument("--gptq", type=Path, required=True, metavar="FOLDER", help="a GPTQ checkpoint")
    parser.add_argument("--output", type=Path, default=Path("rrtf-gptq-faults"), help="folder")
    parser.add_argument("--tokens", type=int, default=4096, help="positions compared")
    parser.add_argument("--length", type=int, default=128, help="tokens per stretch of code")
    parser.add_argument("--prompts", type=int, default=32, help="greedy answers compared")
    parser.add_argument(
        "--write", metavar="SUSPECT", help="write this one as a CTranslate2 folder, measure none"
    )
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.write:
            _write_one(arguments.write, arguments.model, arguments.gptq, arguments.output)
            return 0
        options = Options(tokens=arguments.tokens, length=arguments.length, prompts=arguments.prompts)
        report = measure_faults(arguments.model, arguments.gptq, arguments.output, options)
    except (ModelError, ValueError) as error:
        print(f"gptq_faults: {error}", file=sys.stderr)
        return 1
    print(markdown(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
