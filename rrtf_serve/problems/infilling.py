"""HumanEval-Infilling (openai/human-eval-infilling, arXiv 2207.14255): HumanEval solutions with a gap to
fill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rrtf_serve.problems.humaneval import function_problem
from rrtf_serve.problems.origins import DataFile, load_records
from rrtf_serve.problems.problem import Suite, make_suite

FILES = {
    "infilling-single-line": "HumanEval-SingleLineInfilling.jsonl.gz",
    "infilling-multi-line": "HumanEval-MultiLineInfilling.jsonl.gz",
    "infilling-random-span": "HumanEval-RandomSpanInfilling.jsonl.gz",
    "infilling-random-span-light": "HumanEval-RandomSpanInfillingLight.jsonl.gz",
}


def load_infilling(name: str, folder: Path | None) -> Suite:
    """`name` is a key of FILES. Raises ValueError as `origins.load_records` does."""
    data = DataFile(
        name=FILES[name], folder="humaneval-infilling", home="https://github.com/openai/human-eval-infilling"
    )
    # A gap may hold several statements or a part of one: no string tells where it ends.
    return make_suite(
        name,
        [
            replace(function_problem(record, suffix=record["suffix"]), stop=())
            for record in load_records(data, folder)
        ],
    )
