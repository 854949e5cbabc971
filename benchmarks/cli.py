"""`rrtf-bench`: one command per figure in docs/results.md."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from benchmarks.conversion import measure_conversion
from benchmarks.humaneval import measure
from benchmarks.latency import measure_memory, measure_overhead, measure_startup
from benchmarks.server import Server, running_server
from rrtf_serve.config import DEFAULT_MODEL
from rrtf_serve.models.errors import ModelError

EXAMPLES = """examples:
  rrtf-bench overhead --repeats 20                the HTTP layer over the engine called directly
  rrtf-bench memory                               resident memory of the default server
  rrtf-bench startup --repeats 5                  seconds from start to the first token
  rrtf-bench conversion --quantization int8       time and peak memory of a conversion
  rrtf-bench humaneval --data-dir data --limit 32 greedy pass@1 through the HTTP API
"""


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        report = arguments.run(arguments)
    except (ModelError, ValueError, RuntimeError, OSError) as error:
        print(f"rrtf-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrrtf-bench: stopped", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    return 0


def _print_table(report: dict[str, Any], indent: str = "") -> None:
    for key, value in report.items():
        if isinstance(value, dict) and set(value) == {"median", "min", "max", "n"}:
            text = "{median:.2f} (min {min:.2f}, max {max:.2f}, n {n})".format(**value)
            print(f"{indent}{key:<24}{text}")
        elif isinstance(value, dict):
            print(f"{indent}{key}")
            _print_table(value, indent + "  ")
        else:
            print(f"{indent}{key:<24}{f'{value:.3g}' if isinstance(value, float) else value}")


def _humaneval(arguments: argparse.Namespace) -> dict[str, Any]:
    data_dir = arguments.data_dir or os.environ.get("RRTF_DATA_DIR")
    if not data_dir:
        raise ValueError("--data-dir: say where HumanEval.jsonl.gz lies (or set RRTF_DATA_DIR)")
    given = nullcontext(Server(arguments.url.rstrip("/"), 0, 0.0)) if arguments.url else None
    with given or running_server("--model", arguments.model, "--no-ui") as server:
        return measure(server.address, Path(data_dir), arguments.output, arguments.limit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rrtf-bench", description="Measure what the docs claim.", epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, text: str, run: Any) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--model", default=DEFAULT_MODEL, help=f"default: {DEFAULT_MODEL}")
        made.add_argument("--json", action="store_true", help="print the report as JSON")
        return made

    one = command(
        "overhead", "HTTP layer over the engine called directly, interleaved",
        lambda a: measure_overhead(a.model, repeats=a.repeats),
    )  # fmt: skip
    one.add_argument("--repeats", type=int, default=10)
    command("memory", "resident memory of the whole server", lambda a: measure_memory(a.model))
    one = command(
        "startup", "seconds from start to first token, model already converted",
        lambda a: measure_startup(a.model, repeats=a.repeats),
    )  # fmt: skip
    one.add_argument("--repeats", type=int, default=5)
    one = command(
        "conversion", "time and peak memory of converting to CTranslate2",
        lambda a: measure_conversion(a.model, quantization=a.quantization, repeats=a.repeats),
    )  # fmt: skip
    one.add_argument("--quantization", default="int8")
    one.add_argument("--repeats", type=int, default=3)
    one = command("humaneval", "greedy pass@1 through the HTTP API (needs bubblewrap)", _humaneval)
    one.add_argument("--data-dir", help="folder with HumanEval.jsonl.gz (or RRTF_DATA_DIR)")
    one.add_argument("--url", help="a running server, e.g. http://127.0.0.1:8000 (default: start one)")
    one.add_argument("--limit", type=int, help="only the first N problems")
    one.add_argument(
        "--output", "-o", type=Path, default=Path("humaneval-samples.jsonl"),
        help="samples, appended; a second run goes on where it was (default: ./humaneval-samples.jsonl)",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
