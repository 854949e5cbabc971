"""Contest problems on standard input and output, in the shape of CodeContests (arXiv 2203.07814).

A record holds `content` (the statement), `id` and `test`: a JSON list of {"input": {"stdin"}, "output":
{"stdout"}}.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rrtf_serve.problems.origins import DataFile, Record, load_records
from rrtf_serve.problems.problem import Problem, StdioTests, Suite, make_suite

DATA = DataFile(
    name="code_eval_code_contests.jsonl",
    folder="codecontests-sample",
    home="https://github.com/bytedance/SandboxFusion",
)


def load_codecontests(folder: Path | None) -> Suite:
    """Raises ValueError as `origins.load_records` does, or naming the record whose tests are malformed."""
    return make_suite("codecontests", [_problem(record) for record in load_records(DATA, folder)])


def _problem(record: Record) -> Problem:
    task_id = f"CodeContests/{record['id']}"
    labels = json.loads(record.get("labels") or "{}")
    return Problem(
        task_id=task_id,
        prompt="",
        tests=StdioTests(stdio_cases(f"{task_id}: test", json.loads(record["test"]))),
        task=record["content"].strip(),
        labels={key: str(value) for key, value in labels.items()},
    )


def stdio_cases(field: str, cases: Any) -> tuple[tuple[str, str], ...]:
    """(stdin, stdout) pairs out of {"input": ..., "output": ...} records, each side a text or
    {"stdin"/"stdout"}.

    Raises ValueError naming `field`, which holds them, and the case.
    """
    if not isinstance(cases, list) or not cases:
        raise ValueError(f"{field} must be a non-empty list")
    pairs = []
    for number, case in enumerate(cases):
        sides = []
        for side, stream in (("input", "stdin"), ("output", "stdout")):
            value = case.get(side) if isinstance(case, dict) else None
            text = value.get(stream) if isinstance(value, dict) else value
            if not isinstance(text, str):
                raise ValueError(f"{field}[{number}].{side} is missing or not a text")
            sides.append(text)
        pairs.append((sides[0], sides[1]))
    return tuple(pairs)
