"""`rrtf-serve`: the composition root. Fetches a model, converts it once, serves it, shows the page.

The only module that knows all parts: converters and pages are found through the entry-point groups
`rrtf_serve.converters` and `rrtf_serve.pages`, so that rrtf_serve never imports the packages above it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import os
import secrets
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import JSONResponse, RedirectResponse, Response

from rrtf_serve import __version__
from rrtf_serve.api.app import ApiSettings, Models, Served, create_app
from rrtf_serve.config import ServeConfig, read_config
from rrtf_serve.engine.prefill import SAMPLE_CODE, prefill_speed
from rrtf_serve.engine.protocol import Engine
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.greeting import banner
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models import catalog
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import FAMILIES
from rrtf_serve.models.folder import Card
from rrtf_serve.models.prompts import prompts_of
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.parts import find_part
from rrtf_serve.preparation import prepare, prepare_source
from rrtf_serve.process import address_of, reserve, run

EXAMPLES = """examples:
  rrtf-serve                                        the default model, on http://127.0.0.1:8000
  rrtf-serve --model qwen2.5-coder-1.5b-instruct    another one of `rrtf-models list`
  rrtf-serve --model bigcode/starcoder2-3b          any repository of safetensors on the hub
  rrtf-serve --model ./my-model.gguf --port 8080    a GGUF file, a CTranslate2 or Hugging Face folder
  rrtf-serve --model ./my-folder --engine torch     a Hugging Face folder as it is, on torch
  rrtf-serve --prepare                              fetch and convert, then stop
  RRTF_API_KEYS=one,two rrtf-serve --host 0.0.0.0   ask every client for a key
"""

log = logging.getLogger("rrtf_serve")


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    prepare_only = arguments.pop("prepare")
    try:
        config = read_config(arguments.pop("config"), arguments)
        keys = read_api_keys(config.api_key_file)
    except ValueError as error:
        parser.error(str(error))  # exits with 2
    logging.basicConfig(level=logging.WARNING, format="rrtf-serve: %(message)s")
    logging.getLogger("rrtf_serve").setLevel(logging.INFO)  # what is fetched, from where
    doing = "what was fetched so far is kept and the next start goes on"
    try:
        if prepare_only:
            print(prepare(config))
            return 0
        # Taken before the long work: a port in use is said at once, not after a download.
        with reserve(config.host, config.port) as listener:
            source = prepare_source(config)
            doing = "while the model was being loaded"
            # Before there is an event loop, which would keep Ctrl-C to itself until all is loaded.
            card = describe_source(config, source)
            started = time.monotonic()
            engine = load_engine(config, source, card)
            log.info("model loaded in %.1f s", time.monotonic() - started)
            return asyncio.run(serve(config, source.path, card, engine, keys=keys, listener=listener))
    except (ModelError, ValueError, OSError) as error:
        print(f"rrtf-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a server that runs ends by itself
        print(f"\nrrtf-serve: stopped; {doing}", file=sys.stderr)
        return 130


async def serve(
    config: ServeConfig,
    folder: Path,
    card: Card,
    engine: Engine,
    *,
    keys: frozenset[str],
    listener: socket.socket,
) -> int:
    """Serve the model of `folder` until SIGINT or SIGTERM; accepted requests then get `drain_seconds` to
    finish. Closes the engine."""
    scheduler = Scheduler(engine, max_queue=config.max_queue)
    try:
        served = assemble(config, folder, card, scheduler)
        # Before anybody may ask; away from the event loop, which has signals to hear.
        sample = served.tokenizer.encode(SAMPLE_CODE, specials=False)
        speed = await asyncio.to_thread(prefill_speed, engine, sample)
        log.info("the model reads %.0f tokens per second", speed)
        served = replace(served, prefill_speed=speed)
        # The page is a client like any other: with keys set it needs some, made anew at each start: one for
        # each key of its visitors, so that what the engine keeps of theirs is never used for another's.
        page_keys = {digest: secrets.token_urlsafe(32) for digest in keys}
        digests = keys | {hash_key(key) for key in page_keys.values()}
        app = create_app(Models([served]), settings=ApiSettings(api_keys=digests))
        address = address_of(listener)
        page = config.ui and _mount_page(app, address, page_keys)
        _add_root(app, page=page)
        text = banner(served.name, address, page=page, keys=bool(keys), infill=served.prompts.has_infill)
        await run(app, listener, scheduler, config.drain_seconds, greet=lambda: print(text, flush=True))
    finally:
        await scheduler.close(0)
        engine.close()
    return 0


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


def _mount_page(app: FastAPI, address: str, page_keys: dict[str, str]) -> bool:
    """Mount the page where its packages are installed; a server without them is complete, so only say it.

    page_keys: by the digest of a visitor's key the one with which the page calls the API for them; empty: no
    keys are asked for.
    """
    try:
        mount = find_part("rrtf_serve.pages", "ui")
    except ModuleNotFoundError as error:
        print(f"rrtf-serve: no page: {error.name} is missing (pip install 'rrtf-serve[ui]')", file=sys.stderr)
        return False
    visitors = ApiSettings(api_keys=frozenset(page_keys))  # without the page's own keys, which no visitor has

    def exchange(key: str) -> str | None:
        owner = visitors.owner(key.encode("utf-8", "surrogatepass"))
        return None if owner is None else page_keys[owner]

    mount(app, path="/ui", base_url=f"{address}/v1", exchange=exchange if page_keys else None)
    return True


def _add_root(app: FastAPI, *, page: bool) -> None:
    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def root() -> Response:
        if page:
            return RedirectResponse("/ui")
        return JSONResponse({"api": "/v1", "description": "/openapi.json", "health": "/health"})


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_keys(path: Path | None) -> frozenset[str]:
    """SHA-256 digests of the keys in the file (one a line; lines that start with # are comments) and in
    RRTF_API_KEYS. Raises ValueError naming the flag or the variable."""
    given = os.environ.get("RRTF_API_KEYS", "")
    keys = [key.strip() for key in given.split(",") if key.strip()]
    # Serving without any check is surely not what somebody who set keys wants: never fail open.
    if given and not keys:
        raise ValueError("RRTF_API_KEYS is set but holds no key; unset it to serve without keys")
    if path is not None:
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except OSError as error:
            raise ValueError(f"--api-key-file {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ValueError(f"--api-key-file {path}: not UTF-8 text") from error
        file_keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not file_keys:
            raise ValueError(f"--api-key-file {path}: holds no key")
        keys += file_keys
    return frozenset(map(hash_key, keys))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rrtf-serve",
        description="Serve a code model through an OpenAI-compatible API, with a page to try it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("--model", help="catalogue name, hub id, or path (default: the 0.5B Qwen2.5-Coder)")
    option("--revision", help="branch, tag or commit of a hub repository")
    option("--quantization", help="type to convert to when the model isn't converted yet (default: int8)")
    option("--host", help="address to listen on (default: 127.0.0.1, this machine only)")
    option("--port", type=int, help="port to listen on; 0 takes a free one (default: 8000)")
    option("--engine", help="auto, ct2 or torch (default: torch for GPTQ folders, ct2 for everything else)")
    option("--device", help="auto, cpu or cuda (default: auto)")
    option(
        "--compute-type", help="CTranslate2 compute type (default: what the weights and the device suggest)"
    )
    option("--dtype", help="torch's type: auto, float32, bfloat16 or float16 (default: as the weights are)")
    option("--kv-dtype", help="torch's type of keys and values, as --dtype (default: as the weights compute)")
    option(
        "--kv-cache-tokens",
        type=int,
        help="torch: tokens of ended requests kept, so that prompts that begin alike are not read again; 0: "
        "none (default: 16384, or what 512 MiB hold)",
    )
    option(
        "--output-bits",
        type=int,
        help="torch on a CPU: bits of the output matrix: 16, 8, 4 (default: 8 for quantised models, else 16)",
    )
    option("--threads", type=int, help="CPU threads per batch; 0: one per core (default: 0)")
    option(
        "--context-length", type=int, help="tokens of prompt and completion together (default: the model's)"
    )
    option("--family", help="prompt family, where it isn't recognised: " + ", ".join(sorted(FAMILIES)))
    option("--served-name", help="the model name clients use (default: the model's own)")
    option(
        "--api-key-file", type=Path, help="keys that clients must send, one per line; see also RRTF_API_KEYS"
    )
    option("--max-queue", type=int, help="requests that may wait before new ones get 429 (default: 64)")
    option("--max-batch", type=int, help="rows decoded together (default: 16)")
    option("--drain-seconds", type=float, help="time a stopping server gives accepted requests (default: 30)")
    option("--no-ui", dest="ui", action="store_const", const=False, help="serve the API without the page")
    option("--config", type=Path, help="TOML file with the same settings (underscores); flags win over it")
    option("--prepare", action="store_true", help="fetch and convert the model, print its folder, and stop")
    option("--version", action="version", version=f"rrtf-serve {__version__}")
    return parser


if __name__ == "__main__":
    sys.exit(main())
