"""Settings of `rrtf-serve`: defaults, then a TOML file, then flags; each later one wins."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rrtf_serve.engine.torch import DTYPES, OUTPUT_BITS
from rrtf_serve.models import catalog
from rrtf_serve.models.folder import QUANTIZATIONS

DEFAULT_MODEL = catalog.DEFAULT
ENGINES = ("auto", "ct2", "torch")


@dataclass(frozen=True)
class ServeConfig:
    """Everything `rrtf-serve` can be told. Raises ValueError naming the flag (its key in a file is the same
    word with underscores)."""

    model: str = DEFAULT_MODEL
    revision: str | None = None  # of a hub repository
    quantization: str = "int8"  # the type a model is converted to when it must be converted
    host: str = "127.0.0.1"
    port: int = 8000
    engine: str = "auto"  # auto: torch for GPTQ folders, ct2 for everything else
    device: str = "auto"
    compute_type: str = "default"  # of ct2
    dtype: str = "auto"  # of torch
    kv_dtype: str = "auto"  # of torch's keys and values; auto: as the weights compute
    kv_cache_tokens: int | None = (
        None  # of torch, kept for later requests; None: see TorchEngine, 0: no reuse
    )
    output_bits: int | None = None  # of torch's output matrix on a CPU: 16, 8, 4; None: see TorchEngine
    threads: int = 0  # 0: as many as there are cores
    context_length: int | None = None  # tokens; None: what the model says
    family: str | None = None  # prompt family; None: what the model says
    served_name: str | None = None  # the name clients use; None: the model's own
    api_key_file: Path | None = None  # one key per line; RRTF_API_KEYS (comma-separated) adds to it
    max_queue: int = 64  # requests waiting before 429
    max_batch: int = 16  # rows decoded together
    drain_seconds: float = 30.0  # how long a stopping server finishes accepted requests
    ui: bool = True

    def __post_init__(self) -> None:
        ranges = {"port": (0, 65535), "threads": (0, 1024), "max_queue": (1, 100_000), "max_batch": (1, 1024)}
        for name, (low, high) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{flag(name)} must be between {low} and {high}, not {getattr(self, name)}")
        if self.quantization not in QUANTIZATIONS:
            raise ValueError(f"--quantization {self.quantization}: must be one of {', '.join(QUANTIZATIONS)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"--device {self.device}: must be auto, cpu or cuda")
        if self.engine not in ENGINES:
            raise ValueError(f"--engine {self.engine}: must be one of {', '.join(ENGINES)}")
        if self.dtype not in DTYPES:
            raise ValueError(f"--dtype {self.dtype}: must be one of {', '.join(DTYPES)}")
        if self.kv_dtype not in DTYPES:
            raise ValueError(f"--kv-dtype {self.kv_dtype}: must be one of {', '.join(DTYPES)}")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < 0:
            raise ValueError(f"--kv-cache-tokens must be 0 (no reuse) or more, not {self.kv_cache_tokens}")
        if self.output_bits not in (None, *OUTPUT_BITS):
            known = ", ".join(map(str, OUTPUT_BITS))
            raise ValueError(f"--output-bits {self.output_bits}: must be one of {known}")
        if self.context_length is not None and self.context_length < 2:
            raise ValueError(f"--context-length must be at least 2, not {self.context_length}")
        if not 0 <= self.drain_seconds <= 86_400:  # written so that NaN fails it
            raise ValueError(f"--drain-seconds must be between 0 and 86400, not {self.drain_seconds}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_config(path: Path | None, flags: Mapping[str, Any]) -> ServeConfig:
    """Defaults, overlaid by the TOML file, overlaid by the flags that were given (those not None).

    Raises ValueError naming the file and the key, or the flag.
    """
    config = ServeConfig()
    if path is not None:
        config = _overlay(config, path)
    return replace(config, **{name: value for name, value in flags.items() if value is not None})


def _overlay(config: ServeConfig, path: Path) -> ServeConfig:
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"--config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: not valid TOML ({error})") from error
    types = {item.name: str(item.type) for item in fields(ServeConfig)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            raise ValueError(f"--config {path}: unknown key {key!r}; known: {', '.join(sorted(types))}")
        values[key] = _typed(path, key, value, types[key])
    try:
        return replace(config, **values)
    except ValueError as error:
        raise ValueError(f"--config {path}: {error}") from error


def _typed(path: Path, key: str, value: Any, annotation: str) -> Any:
    """TOML knows strings, integers, floats and booleans; hold each against the field's annotation."""
    if annotation.startswith("Path") and isinstance(value, str):
        return Path(value)
    if annotation.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = {"str": str, "int": int, "bool": bool, "float": float}.get(annotation.split(" ", 1)[0])
    # bool is an int to Python, and `port = true` is a mistake all the same.
    if expected is None or type(value) is not expected:
        raise ValueError(f"--config {path}: {key} must be {annotation}, not {value!r}")
    return value
