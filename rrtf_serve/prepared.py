"""A model that lies ready on the disk: what clients may know of it, and how it comes into memory."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.settings import Known, Served
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.prefill import SAMPLE_CODE, prefill_speed
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models import catalog
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.source import Source
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.preparation import prepare_source
from rrtf_serve.roster import Opened

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    config: ServeConfig  # with this one model
    source: Source
    known: Known


def prepare_all(config: ServeConfig) -> list[Prepared]:
    """Fetch and convert every model that the configuration names: nobody's request should wait for that.

    Raises ModelError; ValueError where two have one name.
    """
    found: dict[str, Prepared] = {}
    for each in config.each_model():
        source = prepare_source(each)
        known = known_of(each, source.path, describe_source(each, source))
        if known.name in found:
            raise ValueError(
                f"--model {each.model}: has the name '{known.name}', as --model "
                f"{found[known.name].config.model} has; leave one out"
            )
        found[known.name] = Prepared(each, source, known)
    return list(found.values())


def known_of(config: ServeConfig, folder: Path, card: Card) -> Known:
    """What the API tells of a model that need not be loaded: names, tokenizer, prompts.

    Raises ModelError on an unknown family or an unreadable tokenizer.
    """
    tokenizer = Tokenizer.load(folder)
    return Known(
        name=config.served_name or card.name,
        aliases=_aliases(card, config.served_name),
        card=card,
        tokenizer=tokenizer,
        prompts=prompts_of(card, tokenizer),
        created=int(time.time()),
        context=card.context_length,
    )


def _aliases(card: Card, served_name: str | None) -> tuple[str, ...]:
    """Other names clients may use: the catalogue's, and the model's own where another was asked for."""
    known = catalog.find(card.name)
    names = (known.aliases if known else ()) + ((card.name,) if served_name else ())
    return tuple(name for name in names if name != served_name)


def load(prepared: Prepared, metrics: Metrics) -> Opened:
    """The engine, measured and behind its queue. Blocks. Raises ModelError, ValueError, EngineError."""
    config, known = prepared.config, prepared.known
    began = time.monotonic()
    engine = load_engine(config, prepared.source, known.card)
    try:
        log.info("model loaded in %.1f s", time.monotonic() - began)
        speed = None
        if config.first_token_seconds:  # before anybody may ask
            speed = prefill_speed(engine, known.tokenizer.encode(SAMPLE_CODE, specials=False))
            log.info("the model reads %.0f tokens per second", speed)
        observer = metrics.observer(known.name)
        scheduler = Scheduler(
            engine,
            max_queue=config.max_queue,
            max_queue_tokens=config.max_queue_tokens,
            observer=observer,
        )
    except BaseException:
        engine.close()
        raise
    return Opened(served(known, scheduler, speed), engine)


def served(known: Known, scheduler: Scheduler, speed: float | None = None) -> Served:
    """A known model, loaded. speed: tokens of prompt read in a second, where it was measured."""
    return Served(
        name=known.name,
        aliases=known.aliases,
        card=known.card,
        tokenizer=known.tokenizer,
        prompts=known.prompts,
        created=known.created,
        context=scheduler.capabilities.max_context,
        scheduler=scheduler,
        prefill_speed=speed,
    )
