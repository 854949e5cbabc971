"""MBPP (Austin et al., arXiv 2108.07732): 974 short Python tasks in words, each with three assert statements.

Splits are the paper's: few-shot prompts 1-10, test 11-510, validation 511-600, training 601-974. The
sanitized file holds 427 hand-checked tasks with the same numbers.
"""

from __future__ import annotations

import ast
from pathlib import Path

from rrtf_serve.problems.origins import DataFile, HubFile, Record, load_records
from rrtf_serve.problems.problem import FunctionTests, Problem, Suite, make_suite
from rrtf_serve.problems.syntax import parse

SPLITS = {
    "prompt": range(1, 11),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
}
STOP = ("\n[DONE]", '\n"""', "\nassert", "\nprint", "\nif __name__")

_HOME = "https://github.com/google-research/google-research/tree/master/mbpp"
_REPOSITORY = "google-research-datasets/mbpp"


def _parts(config: str) -> tuple[HubFile, ...]:
    return tuple(HubFile(_REPOSITORY, f"{config}/{split}/0000.parquet") for split in SPLITS)


FULL = DataFile(name="mbpp.jsonl", folder="mbpp", hub=_parts("full"), home=_HOME)
SANITIZED = DataFile(name="sanitized-mbpp.json", folder="mbpp", hub=_parts("sanitized"), home=_HOME)


def load_mbpp(folder: Path | None, *, sanitized: bool = False, split: str | None = None) -> Suite:
    """All tasks, or one of SPLITS. Raises ValueError as `origins.load_records` does."""
    records = sorted(load_records(SANITIZED if sanitized else FULL, folder), key=lambda each: each["task_id"])
    if split is not None:
        records = [record for record in records if record["task_id"] in SPLITS[split]]
    name = "-".join(["mbpp", *(["sanitized"] if sanitized else []), *([split] if split else [])])
    return make_suite(name, [task_problem(record) for record in records])


def task_problem(record: Record) -> Problem:
    """A record with MBPP's field names (`text` in the full file is `prompt` in the sanitized one)."""
    text = record.get("text") or record["prompt"]
    asserts: list[str] = record["test_list"]
    setup = "\n".join([*(record.get("test_imports") or []), record.get("test_setup_code") or ""]).strip()
    return Problem(
        task_id=f"Mbpp/{record['task_id']}",
        # A docstring changes nothing about a programme, so `prompt + completion` is the answer itself.
        prompt=f'"""\n{text.strip()}\n{asserts[0]}\n"""\n',
        entry_point=entry_point_of(record["code"], asserts),
        tests=FunctionTests("\n".join(asserts), setup),
        task=text.strip(),
        reference=record["code"].replace("\r\n", "\n"),
        stop=STOP,
    )


def entry_point_of(code: str, asserts: list[str]) -> str:
    """The function of `code` that the asserts call; the outermost such call of the first assert that has one.

    Raises ValueError where the asserts call nothing that the code defines.
    """
    defined = {
        node.name
        for node in parse(code.replace("\r\n", "\n")).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    }
    for statement in asserts:
        for node in ast.walk(parse(statement)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
                return node.func.id
    raise ValueError(f"no assert calls any of {', '.join(sorted(defined)) or 'the functions (none defined)'}")
