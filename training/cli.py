"""`rrtf-train`: from problems to an aligned model, one command per stage."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

from rrtf_serve import __version__
from rrtf_serve.models.errors import ModelError
from rrtf_serve.problems.samplers import SamplerError
from rrtf_serve.problems.samples import BusyError
from rrtf_serve.sandbox.limits import SandboxUnavailable
from rrtf_serve.stopping import status_of, terminable
from training.commands import clean, evolve, fit, import_, judge, rank, run, sample, tests

# In the order of --help. Each has add(commands), which sets run(arguments) -> exit status.
_COMMANDS: tuple[ModuleType, ...] = (import_, evolve, tests, clean, sample, judge, rank, fit, run)

_EXAMPLES = """\
examples:
  rrtf-train run run.toml                        all stages of one file; the same command goes on after a stop
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command; 0: done, 1: failed, 2: wrong use, 130: Ctrl-C, 143: SIGTERM."""
    arguments = _parser().parse_args(argv)
    try:
        with terminable():
            status: int = arguments.run(arguments)
        return status
    except ValueError as error:
        print(f"rrtf-train: {error}", file=sys.stderr)
        return 2
    except (ModelError, SamplerError, BusyError, SandboxUnavailable) as error:
        print(f"rrtf-train: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except OSError as error:  # a disk that is full or read-only, a file that went: its text names it
        print(f"rrtf-train: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print("rrtf-train: stopped; the same command goes on from here", file=sys.stderr)
        return status_of(stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rrtf-train",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"rrtf-train {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in _COMMANDS:
        module.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
