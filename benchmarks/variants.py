"""`rrtf-bench variants`: what every variant of one model costs, in one table.

A variant is a CTranslate2 quantisation, made here, or a folder that was made before (GPTQ, or any other that
`rrtf-convert verify` reads). Of each: size, conversion time and peak memory, parity with the source
(convert/verify.py), and, with a suite, greedy pass@1 with a paired test against one variant.

Every variant's record is a file of its own below `output`, written when it is complete: a run that was
stopped goes on with the next variant, and the samples of a suite go on within one.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from benchmarks.machine import machine_record
from benchmarks.passk import PasskConfig, compare_runs, passk
from benchmarks.variants_table import markdown
from convert.ct2 import convert
from convert.gguf_metadata import read_metadata
from convert.runnable import quantization_of
from convert.verify import Options, Reference
from rrtf_serve.models.folder import QUANTIZATIONS, read_card
from rrtf_serve.models.inventory import size_of
from rrtf_serve.models.records import Record
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.store import Store
from rrtf_serve.sandbox.options import SandboxOptions

# Linux keeps ru_maxrss across exec, so that a child would show its parent's peak: VmHWM is its own. Elsewhere
# ru_maxrss has to do; it is in bytes on macOS.
_CHILD = """
import json, resource, sys, time
from pathlib import Path
sys.modules["torch"] = None
from convert.ct2 import convert
from rrtf_serve.models.store import Store
spec, quantization, folder = sys.argv[1:]
source = Store().fetch(spec, progress=False)
started = time.monotonic()
convert(source, Path(folder), quantization=quantization, progress=False, force=True)
seconds = time.monotonic() - started
status = Path("/proc/self/status")
if status.is_file():
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    peak = 1024 * int(line.split()[1])
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"seconds": seconds, "peak_bytes": peak}))
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Variant:
    """`folder` is None for a CTranslate2 quantisation that is made here; `name` is then the quantisation."""

    name: str
    folder: Path | None = None


@dataclass(frozen=True)
class VariantsConfig:
    """What `rrtf-bench variants` can be told. Raises ValueError naming the flag."""

    model: str
    ct2: tuple[str, ...] = ("float32", "int16", "int8")
    folders: tuple[str, ...] = ()  # NAME=PATH or PATH
    output: Path = Path("rrtf-variants")
    tokens: int = 4096
    length: int = 128
    seed: int = 0
    suite: str | None = None
    limit: int | None = None
    max_tokens: int = 512
    batch: int = 16
    against: str = "float32"  # the variant that pass@1 is compared with
    margin: float = 0.05
    suite_engine: str = (
        "ct2"  # of folders that are not CTranslate2's: their exact weights in float32, or torch
    )
    data_dir: Path | None = None

    def __post_init__(self) -> None:
        if self.suite_engine not in ("ct2", "torch"):
            raise ValueError(f"--suite-engine {self.suite_engine!r} is unknown; known: ct2, torch")
        unknown = [name for name in self.ct2 if name not in QUANTIZATIONS]
        if unknown:
            raise ValueError(f"--ct2 {unknown[0]!r} is unknown; known: {', '.join(QUANTIZATIONS)}")
        names = [variant.name for variant in self.variants()]
        double = {name for name in names if names.count(name) > 1}
        if double:
            raise ValueError(f"two variants are called {double.pop()!r}; name folders with NAME=PATH")
        if not names:
            raise ValueError("no variants: give --ct2 or --folder")
        if self.suite and self.against not in names:
            raise ValueError(f"--against {self.against!r} is none of the variants: {', '.join(names)}")
        if not 0 < self.margin < 1:
            raise ValueError(f"--margin is {self.margin}; it is a share of problems, between 0 and 1")

    def variants(self) -> list[Variant]:
        found = [Variant(name) for name in self.ct2]
        for text in self.folders:
            name, _, path = text.rpartition("=")
            folder = Path(path).expanduser()
            if not folder.exists():
                raise ValueError(f"--folder {text}: no such file or folder")
            found.append(Variant(name or folder.resolve().name, folder))
        return found


def measure_variants(config: VariantsConfig, sandbox: SandboxOptions) -> dict[str, Any]:
    """Measure what is not measured yet and write variants.json and variants.md.

    Raises ModelError, ValueError, SandboxUnavailable.
    """
    source = Store().fetch(config.model)
    config.output.mkdir(parents=True, exist_ok=True)
    base = base_of(source)
    _measure_parity(config, source)
    if config.suite:
        _measure_suite(config, source, sandbox)
    rows = [_read(config, variant, source) for variant in config.variants()]
    if config.suite:
        for row, variant in zip(rows, config.variants(), strict=True):
            row["comparison"] = _comparison(config, variant)
    report = {
        "model": source.name,
        "base": base,
        "source_sha256": source.digest,
        "suite": config.suite,
        "against": config.against if config.suite else None,
        "margin": config.margin if config.suite else None,
        "variants": rows,
        "command": " ".join(["rrtf-bench", *sys.argv[1:]]),
        "machine": machine_record(),
    }
    _write(config.output / "variants.json", report)
    (config.output / "variants.md").write_text(markdown(report), "utf-8")
    return report


def base_of(source: Source) -> str:
    """What the source's own weights are, to be said beside every figure."""
    if source.kind is Kind.GGUF:
        number = read_metadata(source.path).integer("general.file_type")
        known = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in LlamaFileType}
        return f"dequantised GGUF {known.get(-1 if number is None else number, 'of an unknown type')}"
    if source.kind is Kind.HF:
        record = Record.read(source.path / "config.json")
        return f"Hugging Face folder in {record.text('dtype') or record.text('torch_dtype') or 'float32'}"
    return str(source.kind)


def _measure_parity(config: VariantsConfig, source: Source) -> None:
    """Conversion and parity of every variant that has no record of this source and these settings yet."""
    todo = [variant for variant in config.variants() if not _read(config, variant, source).get("parity")]
    if not todo:
        return
    options = Options(tokens=config.tokens, length=config.length, seed=config.seed)
    with Reference.open(source, options, progress=True) as reference:
        for variant in todo:
            logger.warning("%s: converting and comparing", variant.name)
            with _place(config, variant) as folder:
                conversion = _conversion(config, variant, folder)
                destination = Store().fetch(str(folder), progress=False)
                stored = quantization_of(destination)
                started = time.monotonic()
                found = reference.compare(destination)
            record = {
                "name": variant.name,
                "key": _key(config, variant, source),
                "base": base_of(source),
                "quantization": stored,
                **conversion,
                "parity": found.record,
                "parity_seconds": round(time.monotonic() - started, 1),
            }
            _write(_record_path(config, variant), record)


@contextmanager
def _place(config: VariantsConfig, variant: Variant) -> Iterator[Path]:
    """Where the variant lies, or where it is to be made; what is made goes afterwards."""
    if variant.folder is not None:
        yield variant.folder
        return
    with tempfile.TemporaryDirectory(prefix=".made-", dir=config.output) as parent:
        yield Path(parent) / variant.name


def _conversion(config: VariantsConfig, variant: Variant, folder: Path) -> dict[str, Any]:
    """Time and peak memory of the conversion, run here in a process of its own, or as a folder's card has
    them (GPTQ's recipe); size in bytes."""
    if variant.folder is not None:
        card = read_card(folder) if folder.is_dir() else None
        recipe = card.recipe if card and card.recipe else {}
        return {
            "seconds": recipe.get("seconds"),
            "peak_bytes": recipe.get("peak_rss_bytes"),
            "recipe": recipe,
            "size_bytes": size_of(folder),
        }
    command = [sys.executable, "-c", _CHILD, config.model, variant.name, str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {**json.loads(done.stdout), "size_bytes": size_of(folder)}


def _measure_suite(config: VariantsConfig, source: Source, sandbox: SandboxOptions) -> None:
    """Greedy pass@1 of every variant that has no score of this suite yet."""
    for variant in config.variants():
        engine = _suite_engine(config, variant)
        key = {name: asdict(config)[name] for name in ("suite", "limit", "max_tokens")} | {"engine": engine}
        record = _read(config, variant, source)
        if record.get("suite", {}).get("key") == key:
            continue
        logger.warning("%s: %s", variant.name, config.suite)
        with _running(config, variant, source, engine) as folder:
            report = passk(
                PasskConfig(
                    model=str(folder),
                    engine=engine,
                    suite=str(config.suite),
                    limit=config.limit,
                    max_tokens=config.max_tokens,
                    batch=config.batch,
                    data_dir=config.data_dir,
                    output=_suite_folder(config, variant),
                ),
                sandbox,
            )
        facts = {name: report[name] for name in ("suite_digest", "sandbox", "prompt_format", "decoding", "n")}
        _write(
            _record_path(config, variant),
            record | {"suite": {"key": key} | facts | report["scores"]["pass@1"]},
        )


def _suite_engine(config: VariantsConfig, variant: Variant) -> str:
    if variant.folder is None or Store().fetch(str(variant.folder), progress=False).kind is Kind.CT2:
        return "ct2"
    return config.suite_engine


@contextmanager
def _running(config: VariantsConfig, variant: Variant, source: Source, engine: str) -> Iterator[Path]:
    """What the engine runs: the variant's folder itself, or for CTranslate2 made, or its exact weights in
    float32."""
    folder, quantization = source, variant.name
    if variant.folder is not None:
        folder, quantization = Store().fetch(str(variant.folder), progress=False), "float32"
        if engine == "torch" or folder.kind is Kind.CT2:
            yield variant.folder
            return
    with tempfile.TemporaryDirectory(prefix=".made-", dir=config.output) as parent:
        # Named by the variant: the samples are filed under the model's name.
        yield convert(folder, Path(parent) / variant.name, quantization=quantization)


def _comparison(config: VariantsConfig, variant: Variant) -> dict[str, Any] | None:
    """The paired test against `config.against`, and whether "not worse by the margin" is shown."""
    if variant.name == config.against:
        return None
    against = next(each for each in config.variants() if each.name == config.against)
    found = compare_runs(_suite_folder(config, against), _suite_folder(config, variant))
    return found | {"margin": config.margin, "not_worse": bool(found["interval"]["low"] > -config.margin)}


def _suite_folder(config: VariantsConfig, variant: Variant) -> Path:
    return config.output / f"{config.suite}-{variant.name}"


def _record_path(config: VariantsConfig, variant: Variant) -> Path:
    return config.output / f"{variant.name}.json"


def _key(config: VariantsConfig, variant: Variant, source: Source) -> dict[str, Any]:
    """What a record depends on: another source, folder or setting makes another record."""
    measured = {name: asdict(config)[name] for name in ("tokens", "length", "seed")}
    place = variant.folder
    changed = max(path.stat().st_mtime_ns for path in place.rglob("*")) if place and place.is_dir() else 0
    return {"source": source.digest, "folder": str(place or ""), "changed": changed, **measured}


def _read(config: VariantsConfig, variant: Variant, source: Source) -> dict[str, Any]:
    """The variant's record, empty where it has none or one of another source, folder or setting."""
    path = _record_path(config, variant)
    if not path.is_file():
        return {}
    record: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return record if record.get("key") == _key(config, variant, source) else {}


def _write(path: Path, record: dict[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.fresh")
    fresh.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    fresh.replace(path)
