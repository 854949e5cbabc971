"""The flags of `rrtf-serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from rrtf_serve import __version__
from rrtf_serve.models.families import FAMILIES

EXAMPLES = """examples:
  rrtf-serve                                        the default model, on http://127.0.0.1:8000
  rrtf-serve --model qwen2.5-coder-1.5b-instruct    another one of `rrtf-models list`
  rrtf-serve --model bigcode/starcoder2-3b          any repository of safetensors on the hub
  rrtf-serve --model ./my-model.gguf --port 8080    a GGUF file, a CTranslate2 or Hugging Face folder
  rrtf-serve --model ./my-folder --engine torch     a Hugging Face folder as it is, on torch
  rrtf-serve --model qwen2.5-coder-0.5b-instruct --model qwen2.5-coder-1.5b-instruct    two on one port
  rrtf-serve --prepare                              fetch and convert, then stop
  RRTF_API_KEYS=one,two rrtf-serve --host 0.0.0.0   ask every client for a key
"""


def parser() -> argparse.ArgumentParser:
    """Flags that are not given are None, so that those of a file can be told from them."""
    made = argparse.ArgumentParser(
        prog="rrtf-serve",
        description="Serve a code model through an OpenAI-compatible API, with a page to try it.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = made.add_argument
    option(
        "--model",
        action="append",
        help="catalogue name, hub id, or path (default: the 0.5B Qwen2.5-Coder); may be repeated: the first "
        "is loaded at once, the others when a request names them",
    )
    option(
        "--max-loaded", type=int, help="models in memory at once (default: as many as the free memory holds)"
    )
    option(
        "--unload-after",
        type=float,
        metavar="SECONDS",
        help="free a model's memory after so long without a request; 0: never (default: 0)",
    )
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
    _add_access(made)
    _add_limits(made)
    _add_logs(made)
    option("--max-queue", type=int, help="requests that may wait before new ones get 429 (default: 64)")
    option(
        "--max-queue-tokens",
        type=int,
        help="tokens of prompts and answers that may wait before new requests get 429 (default: 16 batches)",
    )
    option("--max-batch", type=int, help="rows decoded together (default: 16)")
    option(
        "--drain-delay-seconds",
        type=float,
        help="a stopping server first says on /ready, for so long, that it stops (default: 0)",
    )
    option("--drain-seconds", type=float, help="time a stopping server gives accepted requests (default: 30)")
    option("--no-ui", dest="ui", action="store_const", const=False, help="serve the API without the page")
    option("--config", type=Path, help="TOML file with the same settings (underscores); flags win over it")
    option("--prepare", action="store_true", help="fetch and convert the model, print its folder, and stop")
    option("--version", action="version", version=f"rrtf-serve {__version__}")
    return made


def _switch(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    group.add_argument(name, action="store_const", const=True, help=text)


def _add_access(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("who may come in")
    option = group.add_argument
    option(
        "--api-key-file",
        type=Path,
        help="keys that clients must send, one per line, `name:key` or a key alone; read again when it "
        "changes; see also RRTF_API_KEYS",
    )
    option(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="a name under which the server is reached, besides this machine's own; may be repeated; *: any",
    )
    option(
        "--cors-origin",
        action="append",
        metavar="ORIGIN",
        help="a web page that may call the API: https://name, scheme://*, null or *; may be repeated "
        "(default: none)",
    )
    option(
        "--trusted-proxy",
        action="append",
        metavar="ADDRESS",
        help="a proxy whose X-Forwarded-For and X-Forwarded-Proto are believed; may be repeated",
    )


def _add_limits(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("limits, of each key, or of each address where there are no keys")
    option = group.add_argument
    option("--requests-per-minute", type=int, help="(default: no limit)")
    option("--tokens-per-minute", type=int, help="of prompts and answers together (default: no limit)")
    option("--concurrent-requests", type=int, help="at once (default: no limit)")
    option("--max-body-bytes", type=int, help="of a request (default: 4194304)")
    option("--max-prompt-tokens", type=int, help="(default: what the context holds)")
    option(
        "--first-token-seconds",
        type=float,
        help="an editor's prompt is cut to what the model reads in this time; 0: it isn't (default: 1)",
    )
    option(
        "--receive-seconds",
        type=float,
        help="for a request's line and headers to arrive, and without progress in its body (default: 30)",
    )
    option("--request-seconds", type=float, help="until the end of the answer (default: no limit)")


def _add_logs(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group("what it tells")
    group.add_argument("--log-format", help="a line for each request: text, json or none (default: text)")
    group.add_argument(
        "--log-file", type=Path, help="where these go; SIGHUP opens it again (default: stderr)"
    )
    _switch(group, "--log-prompts", "also log the text of prompts")
    _switch(group, "--open-metrics", "let /metrics be read without a key")
    _switch(group, "--metrics-by-key", "also count by the names of keys")
