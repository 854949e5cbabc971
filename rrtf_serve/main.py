"""`rrtf-serve`: the composition root. Fetches a model, converts it once, serves it, shows the page.

The only module that knows all parts: converters and pages are found through the entry-point groups
`rrtf_serve.converters` and `rrtf_serve.pages`, so that rrtf_serve never imports the packages above it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client import disable_created_metrics

from rrtf_serve.api.app import ApiSettings, Models, Served, create_app
from rrtf_serve.api.keys import VARIABLE, Keyring, read_variable
from rrtf_serve.api.limits import Limits
from rrtf_serve.api.log import RequestLog, format_named
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import ANY, Origins, is_loopback
from rrtf_serve.arguments import parser
from rrtf_serve.config import ServeConfig, read_config
from rrtf_serve.engine.prefill import SAMPLE_CODE, prefill_speed
from rrtf_serve.engine.protocol import Engine
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.greeting import banner
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models import catalog
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.parts import find_part
from rrtf_serve.preparation import prepare, prepare_source
from rrtf_serve.process import Ending, address_of, reserve, run

log = logging.getLogger("rrtf_serve")


@dataclass(frozen=True)
class Operation:
    """What stands between clients and the model."""

    keys: Keyring
    origins: Origins
    metrics: Metrics
    requests: RequestLog

    def hang_up(self) -> None:
        """Read and open again what may have been changed or moved away."""
        self.keys.reload()
        self.requests.reopen()


def main(argv: list[str] | None = None) -> int:
    flags = parser()
    arguments = vars(flags.parse_args(argv))
    prepare_only = arguments.pop("prepare")
    try:
        config = read_config(arguments.pop("config"), arguments)
        keys = Keyring(read_variable(os.environ.get(VARIABLE, "")), file=config.api_key_file)
        origins = Origins(config.allowed_host, origins=config.cors_origin)
        log_format = format_named(config.log_format)
    except ValueError as error:
        flags.error(str(error))  # exits with 2
    logging.basicConfig(level=logging.WARNING, format="rrtf-serve: %(message)s")
    logging.getLogger("rrtf_serve").setLevel(logging.INFO)  # what is fetched, from where
    doing = "what was fetched so far is kept and the next start goes on"
    try:
        if prepare_only:
            print(prepare(config))
            return 0
        # Taken before the long work: a port in use is said at once, not after a download.
        with reserve(config.host, config.port) as listener:
            # A series beside each counter, of which nobody makes use. (The function has no annotations.)
            disable_created_metrics()  # type: ignore[no-untyped-call]
            metrics = Metrics(by_key=config.metrics_by_key)
            with closing(RequestLog(log_format, config.log_file, lost=metrics.lost_lines.inc)) as requests:
                if hangs_up(config):
                    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is somebody to hear it
                operation = Operation(keys, _bound(origins, config, listener, keys), metrics, requests)
                source = prepare_source(config)
                doing = "while the model was being loaded"
                # Before there is an event loop, which would keep Ctrl-C to itself until all is loaded.
                card = describe_source(config, source)
                started = time.monotonic()
                engine = load_engine(config, source, card)
                log.info("model loaded in %.1f s", time.monotonic() - started)
                return asyncio.run(
                    serve(config, source.path, card, engine, operation=operation, listener=listener)
                )
    except (ModelError, ValueError, OSError) as error:
        print(f"rrtf-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a server that runs ends by itself
        print(f"\nrrtf-serve: stopped; {doing}", file=sys.stderr)
        return 130


def hangs_up(config: ServeConfig) -> bool:
    """Whether SIGHUP has something to do here; elsewhere it ends the server, as when a terminal is closed."""
    return config.api_key_file is not None or config.log_file is not None


def _bound(origins: Origins, config: ServeConfig, listener: socket.socket, keys: Keyring) -> Origins:
    """The names that Host may hold follow from where the server listens."""
    if is_loopback(listener.getsockname()[0]):
        return replace(origins, literals=False)
    if not keys.required:
        log.warning("anyone who reaches %s can use this server; set --api-key-file", config.host)
    return origins if config.allowed_host else replace(origins, hosts=(ANY,))


async def serve(
    config: ServeConfig,
    folder: Path,
    card: Card,
    engine: Engine,
    *,
    operation: Operation,
    listener: socket.socket,
) -> int:
    """Serve the model of `folder` until SIGINT or SIGTERM; accepted requests then get `drain_seconds` to
    finish. Closes the engine."""
    keys = operation.keys
    scheduler = Scheduler(
        engine,
        max_queue=config.max_queue,
        observer=operation.metrics.observer(config.served_name or card.name),
    )
    try:
        served = assemble(config, folder, card, scheduler)
        if config.first_token_seconds:
            # Before anybody may ask; away from the event loop, which has signals to hear.
            sample = served.tokenizer.encode(SAMPLE_CODE, specials=False)
            speed = await asyncio.to_thread(prefill_speed, engine, sample)
            log.info("the model reads %.0f tokens per second", speed)
            served = replace(served, prefill_speed=speed)
        app = create_app(
            Models([served]),
            settings=settings_of(config, operation.origins),
            keys=keys,
            metrics=operation.metrics,
            log=operation.requests,
        )
        address = address_of(listener)
        page = config.ui and _mount_page(app, address, keys)
        _add_root(app, page=page)
        text = banner(served.name, address, page=page, keys=keys.required, infill=served.prompts.has_infill)
        await run(
            app,
            listener,
            scheduler,
            Ending(config.drain_seconds, config.drain_delay_seconds),
            greet=lambda: print(text, flush=True),
            hang_up=operation.hang_up if hangs_up(config) else None,
            trusted_proxies=config.trusted_proxy,
        )
    finally:
        await scheduler.close(0)
        engine.close()
    return 0


def settings_of(config: ServeConfig, origins: Origins) -> ApiSettings:
    open_paths = ApiSettings().open_paths + (("/metrics",) if config.open_metrics else ())
    return ApiSettings(
        open_paths=open_paths,
        max_body_bytes=config.max_body_bytes,
        max_prompt_tokens=config.max_prompt_tokens,
        first_token_seconds=config.first_token_seconds,
        request_seconds=config.request_seconds,
        limits=Limits(config.requests_per_minute, config.tokens_per_minute, config.concurrent_requests),
        origins=origins,
        log_prompts=config.log_prompts,
    )


def assemble(config: ServeConfig, folder: Path, card: Card, scheduler: Scheduler) -> Served:
    """What the API serves: the folder's tokenizer and prompts, its names, and the scheduler of its engine.

    Raises ModelError on an unknown family or an unreadable tokenizer.
    """
    tokenizer = Tokenizer.load(folder)
    return Served(
        name=config.served_name or card.name,
        aliases=_aliases(card, config.served_name),
        card=card,
        tokenizer=tokenizer,
        prompts=prompts_of(card, tokenizer),
        scheduler=scheduler,
        created=int(time.time()),
    )


def _aliases(card: Card, served_name: str | None) -> tuple[str, ...]:
    """Other names clients may use: the catalogue's, and the model's own where another was asked for."""
    known = catalog.find(card.name)
    names = (known.aliases if known else ()) + ((card.name,) if served_name else ())
    return tuple(name for name in names if name != served_name)


def _mount_page(app: FastAPI, address: str, keys: Keyring) -> bool:
    """Mount the page where its packages are installed; a server without them is complete, so only say it.

    The page is a client like any other: where keys are asked for it has one for each key of its visitors, so
    that what the engine keeps of theirs is never used for another's.
    """
    try:
        mount = find_part("rrtf_serve.pages", "ui")
    except ModuleNotFoundError as error:
        print(f"rrtf-serve: no page: {error.name} is missing (pip install 'rrtf-serve[ui]')", file=sys.stderr)
        return False
    asked = keys.required
    mount(
        app,
        path="/ui",
        base_url=f"{address}/v1",
        exchange=keys.page_key if asked else None,
        admits=keys.holds if asked else None,
    )
    return True


def _add_root(app: FastAPI, *, page: bool) -> None:
    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def root() -> Response:
        if page:
            return RedirectResponse("/ui")
        return JSONResponse({"api": "/v1", "description": "/openapi.json", "health": "/health"})


if __name__ == "__main__":
    sys.exit(main())
