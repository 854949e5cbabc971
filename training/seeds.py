"""Tasks that evolution starts from: task files, CodeAlpaca's files, and suites that may be trained on.

CodeAlpaca (github.com/sahil280114/codealpaca) is the paper's own seed (arXiv 2307.14936, section 3.1). Its
data are CC-BY-NC-4.0, not for commercial use; every task that grows from it carries that licence.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrtf_serve.problems.origins import Record, read_records
from rrtf_serve.problems.suites import SUITES
from training.fingerprints import benchmark_of
from training.passages import statement
from training.problem_files import as_problem, check_record, suite_records

ALPACA = "CC-BY-NC-4.0"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seed:
    """One task in words."""

    task_id: str
    text: str
    licence: str
    lineage: dict[str, Any] = field(default_factory=dict)


def read_seeds(source: str, licence: str = "", data_dir: Path | None = None) -> list[Seed]:
    """Of a suite, or of a file (.jsonl, .json, either .gz). `licence` is for records that name none.

    Raises ValueError naming the record and the field, or saying why a suite is refused.
    """
    if source in SUITES:
        records = suite_records(source, data_dir)
    elif Path(source).is_file():
        records = read_records(Path(source))
    else:
        raise ValueError(f"{source}: neither a file nor a suite")
    seeds = [_seed(record, number, source, licence) for number, record in enumerate(records, 1)]
    if not seeds:
        raise ValueError(f"{source}: nothing in it")
    fit = [each for each in seeds if benchmark_of(each.text) is None]
    if len(fit) < len(seeds):  # CodeAlpaca and MBPP's own training split have some
        log.warning(
            "%s: %d seeds are left out, being benchmarks' word for word", source, len(seeds) - len(fit)
        )
    if not fit:
        raise ValueError(
            f"{source}: all of its {len(seeds)} tasks are benchmarks', which are not to grow from"
        )
    return fit


def _seed(record: Record, number: int, source: str, licence: str) -> Seed:
    where = f"{source}: record {number}"
    if "instruction" in record:
        return _alpaca(record, number, source, where)
    if not isinstance(record.get("task_id"), str):
        raise ValueError(f"{where}: task_id is missing or not a text")
    try:
        check_record(record)
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"{where}: {error}") from error
    own = record.get("licence") or licence
    if not own:
        raise ValueError(f"{where}: licence is missing; give --licence NAME for records that name none")
    text = statement(as_problem(record)).strip()
    return Seed(record["task_id"], text, own, dict(record.get("lineage") or {}) | {"source": _name(source)})


def _alpaca(record: Record, number: int, source: str, where: str) -> Seed:
    for name in ("instruction", "input"):
        if not isinstance(record.get(name, ""), str):
            raise ValueError(f"{where}: {name} must be a text")
    given = record.get("input", "").strip()
    text = record["instruction"].strip() + (f"\n\nInput:\n{given}" if given else "")
    lineage = {"source": _name(source), "attribution": "CodeAlpaca, Chaudhary 2023"}
    licence = record.get("licence") or ALPACA  # other data sets have its shape, too
    if not isinstance(licence, str):
        raise ValueError(f"{where}: licence must be a text")
    if licence != ALPACA:
        del lineage["attribution"]
    return Seed(f"{Path(source).name.split('.')[0]}/{number}", text, licence, lineage)


def _name(source: str) -> str:
    return source if source in SUITES else Path(source).name
