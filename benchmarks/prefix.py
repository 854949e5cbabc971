"""Time to the first token after a typed line: a prompt read anew, against one whose beginning is still held.

Run as: python -m benchmarks.prefix ./my-folder --context 1024 --repeats 7

MODEL is a folder for the torch engine (Hugging Face or GPTQ). Each repetition asks for a few tokens after a
context of code, as an editor does, then types a line of 12 to 20 tokens and asks again: once as the same
client, once as one who was never seen, whose prompt has to be read whole. Which of them comes first changes
from repetition to repetition. Times are from the call of the engine to its first token, without HTTP.
Processor time is that of the whole process: with one thread it tells what the work takes on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import trange

from benchmarks.latency import code_prompt
from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.config import ServeConfig
from rrtf_serve.engine.protocol import Request, Sampling
from rrtf_serve.engine.torch import DTYPES
from rrtf_serve.engine.torch.engine import TorchEngine
from rrtf_serve.loading import describe_source, load_engine
from rrtf_serve.models.errors import ModelError
from rrtf_serve.models.tokens import Tokenizer
from rrtf_serve.preparation import prepare_source

_LENGTHS = (12, 20)  # tokens of the line, from and to
# What is typed is not what was suggested: all of it has to be read.
_LINE = "    checksum = (checksum * 31 + weights[position] ^ salt) % modulus  # rolling\n"
_SUGGESTED = 8  # tokens asked for before the line is typed


def measure(config: ServeConfig, *, context: int, repeats: int) -> dict[str, Any]:
    """Milliseconds to the first token, fresh and reused, with the tokens that each had to read."""
    source = prepare_source(config)
    engine = load_engine(config, source, describe_source(config, source))
    if not isinstance(engine, TorchEngine):
        raise ModelError(f"{source.path}: only the torch engine reuses prefixes; give a folder that it runs")
    longest = context + _LENGTHS[1]
    if engine.capabilities.max_context <= longest:
        raise ValueError(f"--context {context}: the model takes {engine.capabilities.max_context} tokens")
    tokenizer = Tokenizer.load(source.path)
    before = code_prompt(tokenizer, context)
    line = tuple(tokenizer.encode(_LINE, specials=False))
    if len(line) < _LENGTHS[1]:
        raise ModelError(f"{source.path}: the line has {len(line)} tokens; a tokenizer for code gives more")
    runs: dict[str, list[_First]] = {"fresh": [], "reused": []}
    try:
        for turn in trange(repeats, desc="interleaved runs"):
            after = before + line[: _LENGTHS[0] + turn % (_LENGTHS[1] - _LENGTHS[0] + 1)]
            _first_token(engine, before, f"client {turn}", _SUGGESTED)
            order = [("reused", f"client {turn}"), ("fresh", f"stranger {turn}")]
            for name, owner in order if turn % 2 else order[::-1]:
                runs[name].append(_first_token(engine, after, owner, 1))
        described = engine.describe()
    finally:
        engine.close()
    return {
        "model": source.name,
        "context_tokens": context,
        **{
            name: {
                "ttft_ms": summary([1000 * run.seconds for run in found]),
                "processor_ms": summary([1000 * run.processor_seconds for run in found]),
                "read_tokens": summary([run.read for run in found]),
            }
            for name, found in runs.items()
        },
        "ttft_ratio": summary(
            [new.seconds / old.seconds for new, old in zip(runs["fresh"], runs["reused"], strict=True)]
        ),
        "engine": described,
        "machine": machine_record(),
    }


@dataclass(frozen=True)
class _First:
    """What the first token took; `read`: tokens of the prompt that had to be read."""

    seconds: float
    processor_seconds: float
    read: int


def _first_token(engine: TorchEngine, prompt: tuple[int, ...], owner: str, count: int) -> _First:
    """The first of `count` tokens."""
    held = engine.reused_tokens
    started, processor = time.perf_counter(), time.process_time()
    batch = engine.start([Request(prompt, count, frozenset(), Sampling(temperature=0), owner=owner)])
    try:
        batch.step()
        seconds, processor_seconds = time.perf_counter() - started, time.process_time() - processor
        while batch.step():
            pass
    finally:
        batch.close()
    return _First(seconds, processor_seconds, len(prompt) - (engine.reused_tokens - held))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix", description=__doc__.split("\n")[0])
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face or GPTQ folder")
    parser.add_argument("--context", type=int, default=1024, help="tokens before the line (default: 1024)")
    parser.add_argument("--repeats", type=int, default=7, help="interleaved repetitions (default: 7)")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core (default: 0)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto")
    parser.add_argument("--kv-dtype", choices=DTYPES, default="auto")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    given = parser.parse_args()
    if given.repeats < 1 or given.context < 1:
        parser.error("--repeats and --context must be at least 1")
    try:
        config = ServeConfig(
            model=given.model,
            engine="torch",
            dtype=given.dtype,
            kv_dtype=given.kv_dtype,
            threads=given.threads,
        )
        report = json.dumps(measure(config, context=given.context, repeats=given.repeats), indent=1)
    except (ModelError, ValueError, OSError) as error:
        print(f"prefix: {error}", file=sys.stderr)
        return 1
    if given.out is not None:
        given.out.write_text(report + "\n", "utf-8")
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
