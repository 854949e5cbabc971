"""HumanEval (openai/human-eval, MIT): 164 Python functions given as signature and docstring."""

from __future__ import annotations

from pathlib import Path

from rrtf_serve.problems.origins import DataFile, HubFile, Record, load_records
from rrtf_serve.problems.problem import FunctionTests, Problem, Suite, make_suite

# Where a plain completion leaves the function: the strings of arXiv 2107.03374, section 2.1.
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")

DATA = DataFile(
    name="HumanEval.jsonl.gz",
    folder="humaneval",
    package="human_eval",
    package_path="data/HumanEval.jsonl.gz",
    hub=(HubFile("openai/openai_humaneval", "openai_humaneval/test/0000.parquet"),),
    home="https://github.com/openai/human-eval",
)


def load_humaneval(folder: Path | None) -> Suite:
    """Raises ValueError as `origins.load_records` does."""
    return make_suite("humaneval", [function_problem(record) for record in load_records(DATA, folder)])


def function_problem(record: Record, *, suffix: str | None = None) -> Problem:
    """A record with human-eval's field names. Raises ValueError naming a missing field."""
    missing = [name for name in ("task_id", "prompt", "entry_point", "test") if name not in record]
    if missing:
        raise ValueError(f"{record.get('task_id', 'a record')}: lacks {', '.join(missing)}")
    return Problem(
        task_id=record["task_id"],
        prompt=record["prompt"],
        entry_point=record["entry_point"],
        tests=FunctionTests(record["test"], helpers_of(record["prompt"], record["entry_point"])),
        suffix=suffix,
        reference=record.get("canonical_solution"),
        stop=STOP,
    )


def helpers_of(prompt: str, entry_point: str) -> str:
    """What a prompt holds before the function to write: imports, and helpers that a few tests call."""
    return prompt.rpartition(f"def {entry_point}")[0]
