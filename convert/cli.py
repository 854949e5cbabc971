"""`rrtf-convert`: turn models into folders that the server can run."""

from __future__ import annotations

import argparse
import sys

from convert.commands import card, ct2, gguf, gptq, hf, merge, verify
from rrtf_serve import __version__
from rrtf_serve.models.errors import ModelError
from rrtf_serve.stopping import status_of, terminable

# In the order of --help. Each has add(commands), which sets run(arguments) -> exit status.
_COMMANDS = (ct2, hf, merge, gguf, gptq, verify, card)

_EXAMPLES = """\
examples:
  rrtf-convert ct2 qwen2.5-coder-0.5b-instruct -o qwen-int8
  rrtf-serve --model ./qwen-int8                 serves what came out
"""


def command() -> int:
    """`rrtf-convert` as it is installed: a process of its own, so torch can be kept out of all of it."""
    arguments = _parser().parse_args()
    if not arguments.needs_torch:
        # ctranslate2.specs imports torch where it is installed: seconds and 500 MB that nothing here uses.
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  # None makes `import torch` fail
    return _run(arguments)


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0: done, 1: failed, 2: wrong use (argparse), 130: Ctrl-C, 143: SIGTERM."""
    return _run(_parser().parse_args(argv))


def _run(arguments: argparse.Namespace) -> int:
    try:
        with terminable():
            status: int = arguments.run(arguments)
        return status
    except ModelError as error:
        print(f"rrtf-convert: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:  # a disk that is full or read-only, a file that went: its text names it
        print(f"rrtf-convert: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("rrtf-convert: stopped; nothing was left behind", file=sys.stderr)
        return status_of(stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rrtf-convert",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rrtf-convert {__version__}")
    parser.set_defaults(needs_torch=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(command())
