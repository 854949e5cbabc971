"""Settings of `rrtf-serve`: defaults, then a TOML file, then flags; each later one wins."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from rrtf_serve.engine.torch import DTYPES, OUTPUT_BITS
from rrtf_serve.models import catalog
from rrtf_serve.models.folder import QUANTIZATIONS

DEFAULT_MODEL = catalog.DEFAULT
ENGINES = ("auto", "ct2", "torch")

_RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "threads": (0, 1024),
    "max_queue": (1, 100_000),
    "max_queue_tokens": (1, 1_000_000_000),
    "max_batch": (1, 1024),
    "requests_per_minute": (1, 1_000_000),
    "tokens_per_minute": (1, 1_000_000_000),
    "concurrent_requests": (1, 100_000),
    "max_body_bytes": (1024, 2**30),
    "max_prompt_tokens": (1, 10_000_000),
    "first_token_seconds": (0, 600),
    "receive_seconds": (0.1, 86_400),
    "request_seconds": (0.1, 86_400),
    "drain_delay_seconds": (0, 3600),
    "drain_seconds": (0, 86_400),
    "max_loaded": (1, 1000),
    "unload_after": (0, 30 * 86_400),
}

_CHOICES: dict[str, Sequence[str]] = {
    "quantization": QUANTIZATIONS,
    "device": ("auto", "cpu", "cuda"),
    "engine": ENGINES,
    "dtype": DTYPES,
    "kv_dtype": DTYPES,
}


@dataclass(frozen=True)
class ServeConfig:
    """Everything `rrtf-serve` can be told. Raises ValueError naming the flag (its key in a file is the same
    word with underscores)."""

    model: str = DEFAULT_MODEL
    more_models: tuple[str, ...] = ()  # served beside it, loaded when they are asked for
    max_loaded: int | None = None  # models in memory at once; None: as many as fit
    unload_after: float = 0.0  # seconds without a request; 0: never
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
    api_key_file: Path | None = None  # see api/keys; RRTF_API_KEYS (comma-separated) adds to it
    requests_per_minute: int | None = None  # of one key, as are the next two; None: no limit
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    max_body_bytes: int = 4 * 2**20
    max_prompt_tokens: int | None = None  # None: what the context holds
    first_token_seconds: float = 1.0  # what reading an editor's prompt may take; 0: no limit
    receive_seconds: float = 30.0  # for a request's line and headers, and without progress in its body
    request_seconds: float | None = None  # None: no time limit
    allowed_host: tuple[str, ...] = ()  # names under which the server is reached, besides its own
    cors_origin: tuple[str, ...] = ()  # web pages that may call the API
    trusted_proxy: tuple[str, ...] = ()  # addresses whose X-Forwarded-For and -Proto are believed
    open_metrics: bool = False  # /metrics without a key
    metrics_by_key: bool = False
    log_format: str = "text"
    log_file: Path | None = None  # None: stderr
    log_prompts: bool = False
    max_queue: int = 64  # requests waiting before 429
    max_queue_tokens: int | None = None  # of their prompts and completions; None: see Scheduler
    max_batch: int = 16  # rows decoded together
    drain_delay_seconds: float = 0.0  # how long /ready says 503 before a stopping server takes no more
    drain_seconds: float = 30.0  # how long a stopping server finishes accepted requests
    ui: bool = True

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # written so that NaN fails it
                raise ValueError(f"{flag(name)} must be between {low} and {high}, not {value}")
        own = ("served_name", "family", "revision", "context_length") if self.more_models else ()
        for name in own:
            if getattr(self, name) is not None:
                raise ValueError(f"{flag(name)} goes with one model; several keep what is their own")
        for proxy in self.trusted_proxy:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise ValueError(
                    f"--trusted-proxy {proxy}: give an address or a network ({error})"
                ) from error
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{flag(name)} {getattr(self, name)}: must be one of {', '.join(known)}")
        if self.kv_cache_tokens is not None and self.kv_cache_tokens < 0:
            raise ValueError(f"--kv-cache-tokens must be 0 (no reuse) or more, not {self.kv_cache_tokens}")
        if self.output_bits not in (None, *OUTPUT_BITS):
            known = ", ".join(map(str, OUTPUT_BITS))
            raise ValueError(f"--output-bits {self.output_bits}: must be one of {known}")
        if self.context_length is not None and self.context_length < 2:
            raise ValueError(f"--context-length must be at least 2, not {self.context_length}")

    def each_model(self) -> list[ServeConfig]:
        """A configuration for each model, with it alone."""
        return [replace(self, model=name, more_models=()) for name in (self.model, *self.more_models)]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def read_config(path: Path | None, flags: Mapping[str, Any]) -> ServeConfig:
    """Defaults, overlaid by the TOML file, overlaid by the flags that were given (those not None).

    Raises ValueError naming the file and the key, or the flag.
    """
    config = ServeConfig()
    if path is not None:
        config = _overlay(config, path)
    # A flag that may be repeated comes as a list.
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in flags.items()
        if value is not None
    }
    if models := given.pop("model", ()):
        given |= {"model": models[0], "more_models": models[1:]}
    return replace(config, **given)


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
    """TOML knows strings, integers, floats, booleans and lists; hold each against the field's annotation."""
    if annotation.startswith("Path") and isinstance(value, str):
        return Path(value)
    if annotation.startswith("tuple") and isinstance(value, list):
        if not all(isinstance(item, str) for item in value):
            raise ValueError(f"--config {path}: {key} must be a list of strings, not {value!r}")
        return tuple(value)
    if annotation.startswith("float") and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = {"str": str, "int": int, "bool": bool, "float": float}.get(annotation.split(" ", 1)[0])
    # bool is an int to Python, and `port = true` is a mistake all the same.
    if expected is None or type(value) is not expected:
        raise ValueError(f"--config {path}: {key} must be {annotation}, not {value!r}")
    return value
