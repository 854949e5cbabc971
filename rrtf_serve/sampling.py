"""From a description of what shall answer to a sampler that is open: an engine of this process, or a URL.

with open_sampler(SamplerConfig("qwen2.5-coder-0.5b-instruct", batch=32)) as sampler:
    keys = draw(sampler, run, path)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rrtf_serve.config import ServeConfig
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.preparation import prepare_source
from rrtf_serve.problems.http_sampler import HttpSampler
from rrtf_serve.problems.samplers import EngineSampler, Sampler

ENGINES = ("ct2", "http", "torch")


@dataclass(frozen=True)
class SamplerConfig:
    """What answers. Raises ValueError naming the flag."""

    model: str  # of a URL: "" takes the first that it serves
    engine: str = "ct2"
    url: str | None = None
    api_key: str | None = None
    batch: int = 16  # rows decoded together, or requests at a time (http)
    prompt_spread: int = 16  # tokens by which the prompts of a batch may differ (ct2)
    threads: int = 0
    device: str = "auto"
    dtype: str = "auto"  # of the torch engine
    quantization: str = "int8"  # the type a model is converted to when it must be converted (ct2)

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"--engine {self.engine}: must be one of {', '.join(ENGINES)}")
        if self.dtype != "auto" and self.engine != "torch":
            raise ValueError(f"--dtype {self.dtype}: goes with --engine torch")
        if (self.engine == "http") != (self.url is not None):
            raise ValueError("--engine http needs --url http://host:port, and --url needs --engine http")
        if not 1 <= self.batch <= 1024:
            raise ValueError(f"--batch must be from 1 to 1024, not {self.batch}")
        if not 0 <= self.prompt_spread <= 16:
            raise ValueError(f"--prompt-spread must be from 0 to 16, not {self.prompt_spread}")


@contextmanager
def open_sampler(config: SamplerConfig) -> Iterator[Sampler]:
    """Fetches, converts and loads the model, or asks the URL what it serves; closed at the end.

    Raises ModelError, SamplerError, and ValueError naming a flag.
    """
    if config.url is not None:
        yield HttpSampler(config.url, config.model or None, workers=config.batch, api_key=config.api_key)
        return
    serving = ServeConfig(
        model=config.model,
        engine=config.engine,
        device=config.device,
        dtype=config.dtype,
        quantization=config.quantization,
        threads=config.threads,
        max_batch=config.batch,
        # With transformers in 16 bits an answer could depend on what was asked before it.
        kv_cache_tokens=0 if config.engine == "torch" else None,
    )
    source = prepare_source(serving)
    card = describe_source(serving, source)
    tokenizer = Tokenizer.load(source.path)
    engine = load_engine(serving, source, card, prompt_spread=config.prompt_spread)
    described = engine.describe()
    try:
        yield EngineSampler(
            engine,
            tokenizer,
            prompts_of(card, tokenizer),
            model=card.name,
            digest=_digest(config, source, card, described, independent=engine.capabilities.independent_rows),
            batch=config.batch,
            described={"engine": config.engine, **described},
        )
    finally:
        engine.close()


def _digest(
    config: SamplerConfig, source: Source, card: Card, described: Mapping[str, object], *, independent: bool
) -> str:
    """What the answers depend on: weights, type of the arithmetic and, in less than float32, the batches."""
    if config.engine == "torch":
        dtype = described["dtype"]
        batches = "" if independent else f":batch{config.batch}"
        return f"{source.digest}:torch-{dtype}{batches}"
    batches = f":batch{config.batch}:spread{config.prompt_spread}" if config.prompt_spread else ""
    digest = f"{card.source.get('sha256') or source.path.name}:{card.quantization}"
    return digest if described["compute_type"] == "float32" else digest + batches
