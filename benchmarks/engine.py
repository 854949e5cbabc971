"""What the engine and the scheduler cost over CTranslate2's generator called with a bare callback.

Interleaved runs of one greedy completion in one process. Run as:

    python -m benchmarks.engine FOLDER --repeats 20 --rows 1
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ctranslate2
from tqdm import trange

from benchmarks.machine import machine_record
from benchmarks.spread import summary
from rrtf_serve.engine.cores import available_cores
from rrtf_serve.engine.ct2 import Ct2Engine
from rrtf_serve.engine.ct2_files import read_vocabulary
from rrtf_serve.engine.protocol import Request, Sampling
from rrtf_serve.engine.scheduler import Scheduler

# Seconds since the start at which each step's last row arrived.
Arrivals = list[float]


def measure_engine(
    folder: Path,
    *,
    repeats: int = 20,
    rows: int = 1,
    prompt_tokens: int = 64,
    new_tokens: int = 64,
    threads: int = 0,
) -> dict[str, Any]:
    """Time to first token (ms) and time per step (ms, mean of a run) of three ways to decode
    `rows` equal rows: `raw` (generate_batch), `engine` (Batch.step), `scheduler` (a stream on an event loop).

    Costs are pairwise against the raw run of the same round. The prompt is arbitrary: no text is needed, and
    no end token is given, so that every run makes `new_tokens` steps.
    """
    names = read_vocabulary(folder)
    prompt = tuple(1000 + 7 * index for index in range(prompt_tokens))
    requests = [Request(prompt, new_tokens, frozenset(), Sampling(temperature=0))] * rows
    engine = Ct2Engine(folder, context_length=prompt_tokens + new_tokens, threads=threads)
    generator = ctranslate2.Generator(
        str(folder), device=str(engine.describe()["device"]), intra_threads=threads or available_cores()
    )
    ways: dict[str, Callable[[], Arrivals]] = {
        "raw": lambda: _raw(generator, [[names[token] for token in prompt]] * rows, new_tokens),
        "engine": lambda: _engine(engine, requests),
        "scheduler": lambda: runner.run(_scheduler(scheduler, requests)),
    }
    runs: dict[str, list[Arrivals]] = {way: [] for way in ways}
    scheduler = Scheduler(engine)
    with asyncio.Runner() as runner:
        for way in ways.values():
            way()  # the first call of each is slower
        for turn in trange(repeats, desc="interleaved runs"):
            # Which goes first changes, so that none always follows the same other.
            order = list(ways)[turn % 3 :] + list(ways)[: turn % 3]
            for name in order:
                runs[name].append(ways[name]())
        runner.run(scheduler.close(0))
    engine.close()
    first = {name: [1000 * run[0] for run in of_way] for name, of_way in runs.items()}
    step = {name: [1000 * _mean_gap(run) for run in of_way] for name, of_way in runs.items()}
    report: dict[str, Any] = {
        "folder": folder.name, "rows": rows, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens
    }  # fmt: skip
    for name in ways:
        report[name] = {
            "ttft_ms": summary(first[name]),
            "step_ms": summary(step[name]),
            "decode_tokens_per_s": summary([1000 * rows / value for value in step[name]]),
        }
    for name in ("engine", "scheduler"):
        report[f"{name}_cost"] = {
            "ttft_ms": summary(_differences(first[name], first["raw"])),
            "step_percent": summary(
                [100 * (over / base - 1) for over, base in zip(step[name], step["raw"], strict=True)]
            ),
        }
    return {**report, "machine": machine_record()}


def _raw(generator: Any, prompts: list[list[str]], new_tokens: int) -> Arrivals:
    arrivals: Arrivals = []
    last = len(prompts) - 1
    started = time.perf_counter()

    def moved(result: Any) -> bool:
        if result.batch_id == last:
            arrivals.append(time.perf_counter() - started)
        return False

    generator.generate_batch(
        prompts,
        max_length=new_tokens,
        include_prompt_in_result=False,
        end_token=[2**31 - 1],
        callback=moved,
    )
    return arrivals


def _engine(engine: Ct2Engine, requests: list[Request]) -> Arrivals:
    arrivals: Arrivals = []
    started = time.perf_counter()
    batch = engine.start(requests)
    while deltas := batch.step():
        now = time.perf_counter() - started
        arrivals += [now] * sum(delta.row == len(requests) - 1 for delta in deltas)
    batch.close()
    return arrivals


async def _scheduler(scheduler: Scheduler, requests: list[Request]) -> Arrivals:
    arrivals: Arrivals = []
    started = time.perf_counter()
    async for deltas in scheduler.submit(requests):
        now = time.perf_counter() - started
        arrivals += [now] * sum(delta.row == len(requests) - 1 for delta in deltas)
    return arrivals


def _mean_gap(arrivals: Arrivals) -> float:
    # The mean, not the median: a reader that falls behind gets several steps at once.
    return (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)


def _differences(values: list[float], base: list[float]) -> list[float]:
    return [over - under for over, under in zip(values, base, strict=True)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("folder", type=Path, help="a CTranslate2 folder")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=0, help="0: one per available core")
    arguments = vars(parser.parse_args(argv))
    print(json.dumps(measure_engine(arguments.pop("folder"), **arguments), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
