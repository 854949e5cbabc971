"""`rrtf-serve`: the composition root. Fetches a model, converts it once, serves it, shows the page.

The only module that knows all parts: converters and pages are found through the entry-point groups
`rrtf_serve.converters` and `rrtf_serve.pages`, so that rrtf_serve never imports the packages above it.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import logging
import multiprocessing
import os
import secrets
import socket
import sys
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from rrtf_serve import __version__
from rrtf_serve.api.app import ApiSettings, Served, create_app
from rrtf_serve.config import ServeConfig, read_config
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.scheduler import Scheduler
from rrtf_serve.models import catalog
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.families import FAMILIES, detect_family
from rrtf_serve.models.folder import Card, describe
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.models.source import Kind, Source
from rrtf_serve.models.store import Store
from rrtf_serve.models.tokens import Tokenizer

EXAMPLES = """examples:
  rrtf-serve                                        the default model, on http://127.0.0.1:8000
  rrtf-serve --model qwen2.5-coder-1.5b-instruct    another one of `rrtf-models list`
  rrtf-serve --model bigcode/starcoder2-3b          any repository of safetensors on the hub
  rrtf-serve --model ./my-model.gguf --port 8080    a GGUF file, a CTranslate2 or Hugging Face folder
  rrtf-serve --prepare                              fetch and convert, then stop
  RRTF_API_KEYS=one,two rrtf-serve --host 0.0.0.0   ask every client for a key
"""

LISTEN_BACKLOG = 2048  # connections that wait while the event loop is busy

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
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        if prepare_only:
            print(prepare(config))
            return 0
        # Taken before the long work: a port in use is said at once, not after a download.
        with reserve(config.host, config.port) as listener:
            folder = prepare(config)
            return asyncio.run(serve(config, folder, keys, listener))
    except (ModelError, ValueError, OSError) as error:
        print(f"rrtf-serve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nrrtf-serve: stopped; what was fetched so far is kept and the next start goes on",
            file=sys.stderr,
        )
        return 130


def prepare(config: ServeConfig) -> Path:
    """The folder to serve: fetched and converted where that is still to be done.

    Raises ModelError.
    """
    store = Store()
    source = store.fetch(config.model, revision=config.revision)
    if source.kind is Kind.CT2:
        return source.path
    if source.kind is Kind.GPTQ:
        raise ModelError(
            f"{source.path}: GPTQ checkpoints can't be served yet; serve the model it was made from"
        )
    folder = store.converted(source, config.quantization)
    if folder.is_dir():
        return folder
    with store.lock(folder.name):
        if not folder.is_dir():  # another process may have made it while this one waited
            _convert_apart(source, folder, config.quantization)
    return folder


def _convert_apart(source: Source, folder: Path, quantization: str) -> None:
    """Convert in a process of its own, so that the server never carries the conversion's memory."""
    print(f"rrtf-serve: converting {source.name} to CTranslate2 {quantization}, once", file=sys.stderr)
    # spawn: a fork would inherit threads of whatever was imported so far.
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    worker = context.Process(target=_convert, args=(source, folder, quantization, sender))
    worker.start()
    sender.close()
    try:
        message = receiver.recv()
    except EOFError:
        message = "it was killed, most likely for want of memory"
    finally:
        worker.join()
        receiver.close()
    if message:
        raise ModelError(f"converting {source.name} failed: {message}")


def _convert(source: Source, folder: Path, quantization: str, sender: Any) -> None:
    try:
        _entry_point("rrtf_serve.converters", "ct2")(source, folder, quantization=quantization)
    except (ModelError, OSError, ValueError) as error:
        sender.send(str(error))
    else:
        sender.send("")
    finally:
        sender.close()


def _entry_point(group: str, name: str) -> Callable[..., Any]:
    for entry in entry_points(group=group, name=name):
        loaded: Callable[..., Any] = entry.load()
        return loaded
    raise ModelError(
        f"no {name!r} in entry-point group {group}: reinstall the package (pip install rrtf-serve)"
    )


async def serve(config: ServeConfig, folder: Path, keys: frozenset[str], listener: socket.socket) -> int:
    """Serve `folder` until SIGINT or SIGTERM; accepted requests then get `drain_seconds` to finish."""
    card = describe(folder, name=folder.name, family=config.family, context_length=config.context_length)
    tokenizer = Tokenizer.load(folder)
    family = card.family or detect_family(card.architecture, tokenizer, card.name, card.chat_template)
    if family not in FAMILIES:
        raise ModelError(f"--family {family}: unknown; known: {', '.join(sorted(FAMILIES))}")
    started = time.monotonic()
    engine = Ct2Engine(
        folder,
        context_length=card.context_length,
        device=config.device,
        compute_type=config.compute_type,
        threads=config.threads,
        max_batch=config.max_batch,
    )
    scheduler = Scheduler(engine, max_queue=config.max_queue)
    try:
        served = Served(
            name=config.served_name or card.name,
            aliases=_aliases(card, config.served_name),
            card=card,
            tokenizer=tokenizer,
            prompts=Prompts(
                tokenizer,
                FAMILIES[family],
                chat_template=card.chat_template,
                add_bos=card.add_bos,
                bos_token=card.bos_token,
                end_tokens=card.end_tokens,
            ),
            scheduler=scheduler,
            created=int(time.time()),
        )
        # The page is a client like any other: with keys set it needs one, its own, made anew at each start.
        page_key = secrets.token_urlsafe(32) if keys else None
        digests = keys | {hash_key(page_key)} if page_key else keys
        app = create_app(served, settings=ApiSettings(api_keys=frozenset(digests)))
        address = address_of(listener)
        page = config.ui and _mount_page(app, address, page_key, keys)
        _redirect_root(app, "/ui" if page else "/docs")
        log.info("model loaded in %.1f s", time.monotonic() - started)
        text = banner(served.name, address, page=page, keys=bool(keys), infill=served.prompts.has_infill)
        await _run(app, listener, config.drain_seconds, greeting=text)
    finally:
        await scheduler.close(config.drain_seconds)
        engine.close()
    return 0


def _aliases(card: Card, served_name: str | None) -> tuple[str, ...]:
    """Other names clients may use: the catalogue's, and the model's own where another was asked for."""
    known = catalog.find(card.name)
    names = (known.aliases if known else ()) + ((card.name,) if served_name else ())
    return tuple(name for name in names if name != served_name)


def _mount_page(app: FastAPI, address: str, page_key: str | None, keys: frozenset[str]) -> bool:
    """Mount the page where its packages are installed; a server without them is complete, so only say it."""
    try:
        mount = _entry_point("rrtf_serve.pages", "ui")
    except ModuleNotFoundError as error:
        print(f"rrtf-serve: no page: {error.name} is missing (pip install 'rrtf-serve[ui]')", file=sys.stderr)
        return False
    check = (lambda key: hash_key(key) in keys) if keys else None
    mount(app, path="/ui", base_url=f"{address}/v1", api_key=page_key, check_key=check)
    return True


def _redirect_root(app: FastAPI, target: str) -> None:
    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    def root() -> RedirectResponse:
        return RedirectResponse(target)


class _Server(uvicorn.Server):
    """Ends the endless streams of open pages first: a graceful shutdown would wait for them all its time."""

    def __init__(self, config: uvicorn.Config, greeting: str) -> None:
        super().__init__(config)
        self._greeting = greeting

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Not before: whoever reads the address may use it at once.
        print(self._greeting, flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        app = self.config.app
        if isinstance(app, FastAPI) and hasattr(app.state, "close_page"):  # no page, no streams
            app.state.close_page()
        await super().shutdown(sockets)


async def _run(app: FastAPI, listener: socket.socket, drain_seconds: float, *, greeting: str) -> None:
    try:
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:  # another server that was still loading took the port first
        host, port = listener.getsockname()[:2]
        raise _taken(host, port, error) from error
    server = _Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=max(1, round(drain_seconds)),
            # Behind TLS or a proxy of the user's own; never trusted by default.
            proxy_headers=False,
            server_header=False,
            backlog=LISTEN_BACKLOG,
        ),
        greeting,
    )
    await server.serve(sockets=[listener])


def reserve(host: str, port: int) -> socket.socket:
    """Bind host:port without listening yet. Raises ValueError naming --host or --port."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ValueError(f"--host {host}: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise _taken(host, port, error) from error
    return listener


def _taken(host: str, port: int, error: OSError) -> ValueError:
    return ValueError(
        f"--port {port}: can't listen on {host}:{port} ({error.strerror}); is another server running? "
        "Choose another with --port"
    )


def address_of(listener: socket.socket) -> str:
    """The URL a client on this machine uses; a wildcard address is reached through loopback."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def hash_key(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def read_api_keys(path: Path | None) -> frozenset[str]:
    """SHA-256 digests of the keys in the file (one a line, # starts a comment) and in RRTF_API_KEYS.

    Raises ValueError naming the flag.
    """
    keys = [key.strip() for key in os.environ.get("RRTF_API_KEYS", "").split(",")]
    if path is not None:
        try:
            lines = path.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--api-key-file {path}: {error}") from error
        file_keys = [line.split("#", 1)[0].strip() for line in lines]
        if not any(file_keys):
            # Serving without any check is surely not what somebody who named a key file wants.
            raise ValueError(f"--api-key-file {path}: holds no key")
        keys += file_keys
    return frozenset(hash_key(key) for key in keys if key)


def banner(name: str, address: str, *, page: bool, keys: bool, infill: bool) -> str:
    """What a newcomer needs next: the addresses, and three ways to use them by copy and paste."""
    key = "YOUR_KEY" if keys else "none"
    header = " -H 'Authorization: Bearer YOUR_KEY'" if keys else ""
    body = f'{{"model": "{name}", "prompt": "def fib(n):\\n    ", '
    body += '"suffix": "\\n\\nprint(fib(10))", ' if infill else ""
    body += '"max_tokens": 64, "temperature": 0}'
    lines = [
        f"{name} is ready.",
        f"  API   {address}/v1",
        *([f"  page  {address}/ui"] if page else []),
        "",
        "curl:",
        f"  curl {address}/v1/completions{header} -H 'Content-Type: application/json' \\",
        f"    -d '{body}'",
        "",
        "OpenAI SDK (pip install openai):",
        "  from openai import OpenAI",
        f'  client = OpenAI(base_url="{address}/v1", api_key="{key}")',
        f'  chat = client.chat.completions.create(model="{name}",',
        '      messages=[{"role": "user", "content": "Reverse a string in Python."}])',
        "  print(chat.choices[0].message.content)",
        "",
        "Editor (Continue, ~/.continue/config.yaml):",
        "  models:",
        f"    - name: {name}",
        "      provider: openai",
        f"      model: {name}",
        f"      apiBase: {address}/v1",
        f"      apiKey: {key}",
        "      roles: [chat, edit, autocomplete]" if infill else "      roles: [chat, edit]",
        "",
        "Ctrl-C stops the server.",
    ]
    return "\n".join(lines)


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
    option("--device", help="auto, cpu or cuda (default: auto)")
    option(
        "--compute-type", help="CTranslate2 compute type (default: what the weights and the device suggest)"
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
