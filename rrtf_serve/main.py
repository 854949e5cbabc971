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
from contextlib import closing
from dataclasses import dataclass, replace

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response
from prometheus_client import disable_created_metrics

from rrtf_serve.api.app import ApiSettings, Models, create_app
from rrtf_serve.api.keys import VARIABLE, Keyring, read_variable
from rrtf_serve.api.limits import Limits
from rrtf_serve.api.log import RequestLog, format_named
from rrtf_serve.api.metrics import Metrics
from rrtf_serve.api.origin import ANY, Origins, is_loopback
from rrtf_serve.arguments import parser
from rrtf_serve.config import ServeConfig, read_config
from rrtf_serve.engine.protocol import EngineError
from rrtf_serve.greeting import banner
from rrtf_serve.models.errors import ModelError
from rrtf_serve.parts import find_part
from rrtf_serve.preparation import prepare
from rrtf_serve.prepared import Prepared, load, prepare_all
from rrtf_serve.process import Ending, address_of, leave_within, reserve, run
from rrtf_serve.roster import Residence, Roster

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
            for each in config.each_model():
                print(prepare(each))
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
                prepared = prepare_all(config)
                doing = "while the model was being loaded"
                roster = _roster(config, prepared, metrics)
                if asyncio.run(serve(config, roster, operation=operation, listener=listener)):
                    return 0
                raise KeyboardInterrupt
    except (ModelError, EngineError, ValueError, OSError) as error:
        print(f"rrtf-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a server that runs ends by itself
        print(f"\nrrtf-serve: stopped; {doing}", file=sys.stderr)
        return 130


def _roster(config: ServeConfig, prepared: list[Prepared], metrics: Metrics) -> Roster:
    by_name = {each.known.name: each for each in prepared}
    return Roster(
        [each.known for each in prepared],
        lambda known: load(by_name[known.name], metrics),
        Residence(config.max_loaded, config.unload_after, waiting=config.max_queue),
    )


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
    config: ServeConfig, roster: Roster, *, operation: Operation, listener: socket.socket
) -> bool:
    """Load the first model and serve until SIGINT or SIGTERM; accepted requests then get `drain_seconds` to
    finish. Closes the roster. False where SIGINT came before the model was there. Raises what `load` raises.
    """
    keys = operation.keys
    try:
        models = Models(roster.known, roster)
        app = create_app(
            models,
            settings=settings_of(config, operation.origins),
            keys=keys,
            metrics=operation.metrics,
            log=operation.requests,
        )
        address = address_of(listener)
        page = config.ui and _mount_page(app, address, keys)
        _add_root(app, page=page)
        first = roster.known[0]
        text = banner(
            first.name,
            address,
            page=page,
            keys=keys.required,
            infill=first.prompts.has_infill,
            others=tuple(each.name for each in roster.known[1:]),
        )
        return await run(
            app,
            listener,
            roster,
            Ending(config.drain_seconds, config.drain_delay_seconds),
            begin=roster.begin,
            greet=lambda: print(text, flush=True),
            hang_up=operation.hang_up if hangs_up(config) else None,
            at_last=lambda seconds, status: leave_within(
                seconds, status, lambda: operation.requests.close(1.0)
            ),
            trusted_proxies=config.trusted_proxy,
            receive_seconds=config.receive_seconds,
        )
    finally:
        await roster.close(0)
        await roster.release()


def settings_of(config: ServeConfig, origins: Origins) -> ApiSettings:
    open_paths = ApiSettings().open_paths + (("/metrics",) if config.open_metrics else ())
    return ApiSettings(
        open_paths=open_paths,
        max_body_bytes=config.max_body_bytes,
        max_prompt_tokens=config.max_prompt_tokens,
        first_token_seconds=config.first_token_seconds,
        receive_seconds=config.receive_seconds,
        request_seconds=config.request_seconds,
        limits=Limits(config.requests_per_minute, config.tokens_per_minute, config.concurrent_requests),
        origins=origins,
        log_prompts=config.log_prompts,
    )


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
