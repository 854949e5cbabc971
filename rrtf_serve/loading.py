"""From a prepared model to an engine that runs it: which one, and what it is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card, describe
from rrtf_serve.models.hf_folder import describe_hf
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.preparation import engine_of

if TYPE_CHECKING:
    from rrtf_serve.engine.torch.engine import TorchEngine


def describe_source(config: ServeConfig, source: Source) -> Card:
    """The card of what `prepare_source` gave. Raises ModelError."""
    if source.kind is Kind.CT2:
        folder = source.path
        return describe(folder, name=folder.name, family=config.family, context_length=config.context_length)
    return describe_hf(source, family=config.family, context_length=config.context_length)


def load_engine(
    config: ServeConfig, source: Source, card: Card, *, prompt_spread: int | None = None
) -> Ct2Engine | TorchEngine:
    """Load what `prepare_source` gave; the caller closes it. `prompt_spread`: see Ct2Engine.

    Raises ModelError on a model that can't be run, or where torch is needed and not installed; ValueError
    naming a flag.
    """
    if engine_of(config, source.kind) == "ct2":
        if config.dtype != "auto":
            raise ValueError("--dtype goes with --engine torch; for ct2 give --compute-type")
        if config.output_bits is not None:
            raise ValueError("--output-bits goes with --engine torch; ct2 stores what --quantization says")
        if config.kv_dtype != "auto" or config.kv_cache_tokens is not None:
            flag = "--kv-dtype" if config.kv_dtype != "auto" else "--kv-cache-tokens"
            raise ValueError(f"{flag} goes with --engine torch; CTranslate2 keeps its own cache")
        return Ct2Engine(
            source.path,
            context_length=card.context_length,
            device=config.device,
            compute_type=config.compute_type,
            threads=config.threads,
            max_batch=config.max_batch,
            prompt_spread=prompt_spread,
        )
    if config.compute_type != "default":
        raise ValueError("--compute-type goes with --engine ct2; for torch give --dtype")
    try:
        from rrtf_serve.engine.torch.engine import TorchEngine  # noqa: PLC0415 - not in the base install
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the torch engine needs {error.name}, which is not installed: install torch for your machine "
            "(https://pytorch.org), then pip install 'rrtf-serve[torch]'"
        ) from error
    return TorchEngine(
        source.path,
        context_length=card.context_length,
        device=config.device,
        dtype=config.dtype,
        kv_dtype=config.kv_dtype,
        kv_cache_tokens=config.kv_cache_tokens,
        output_bits=config.output_bits,
        threads=config.threads,
        max_batch=config.max_batch,
    )
