"""HumanEval+ v0.1.10 and MBPP+ v0.2.0 (EvalPlus, arXiv 2305.01210): many more inputs, judged against a
reference.

Groups: "base" holds the original inputs, "plus" the added ones. The files hold inputs only; what is expected
is what the reference solution returns, compared by EvalPlus' rules:

- equal by `==`, or
- where the expected value is a float, or a sequence of floats, or the problem names a tolerance: the same
  type and length, and within that tolerance (1e-6 if none is named) plus 1e-7 of the expected value;
- a few problems have several right answers and an oracle of their own (ORACLES).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrtf_serve.problems import humaneval, mbpp
from rrtf_serve.problems.origins import DataFile, Record, load_records
from rrtf_serve.problems.problem import CaseTests, Problem, Suite, make_suite

HUMANEVAL_PLUS = DataFile(
    name="HumanEvalPlus.jsonl.gz",
    folder="humaneval-plus",
    home="https://github.com/evalplus/humanevalplus_release/releases",
)
MBPP_PLUS = DataFile(
    name="MbppPlus.jsonl.gz",
    folder="mbpp-plus",
    home="https://github.com/evalplus/mbppplus_release/releases",
)

# Expressions over out, expected and arguments (as they were before the call) that hold for a right answer, in
# place of the common rule or, where the name begins with "or", beside it.
ORACLES: dict[str, str] = {
    "": "",
    # Any root will do: the polynomial must be near 0 there.
    "root": "abs(sum(c * math.pow(out, i) for i, c in enumerate(arguments[0]))) <= tolerance",
    "set": "set(out) == set(expected)",
    "not-none": "(out if isinstance(out, bool) else out is not None) == (expected is not None)",
    "any": "True",
    "or-zero": "out == 0",
    # Height may also be read as that of the pyramid, not of its faces.
    "or-surface": "abs(out - round(arguments[0] ** 2 + 2 * arguments[0]"
    " * math.sqrt((arguments[0] / 2) ** 2 + arguments[1] ** 2))) <= tolerance",
    # Numbers of unequal length may also be padded with zeros.
    "or-digits": "out == sum(abs(int(a) - int(b)) for a, b in zip("
    "str(arguments[0]).zfill(len(str(arguments[1]))), str(arguments[1]).zfill(len(str(arguments[0])))))",
}
_ORACLE_OF = {
    "HumanEval/32": "root",
    "Mbpp/164": "any",
    "Mbpp/295": "or-zero",
    "Mbpp/558": "or-digits",
    "Mbpp/581": "or-surface",
    **dict.fromkeys((f"Mbpp/{n}" for n in (2, 7, 111, 140, 232, 249, 579, 769)), "set"),
}
_NOT_NONE = {"check_str", "text_match_three", "text_starta_endb"}

# JSON has neither tuples nor sets. "0@1" reads: in argument 0, the lists at depth 1 (its items) become
# tuples; "*" stands for every argument or every depth.
_TUPLES = {
    **dict.fromkeys(
        (2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424, 429, 470, 560, 579, 596, 616, 630, 726, 740,
         744, 809),
        "*@0",
    ),
    **dict.fromkeys((63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780), "*@1"),
    **dict.fromkeys((75, 413, 444, 753), "0@1"),
    **dict.fromkeys((106, 750), "1@0"),
    **dict.fromkeys((250, 307, 405, 446, 617, 720, 763, 808), "0@0"),
    **dict.fromkeys((259, 278, 401, 445), "*@01"),
    722: "0@1",
    **dict.fromkeys((580, 615, 791), "*@*"),
}  # fmt: skip


def load_humaneval_plus(folder: Path | None) -> Suite:
    """Raises ValueError as `origins.load_records` does."""
    records = load_records(HUMANEVAL_PLUS, folder)
    return make_suite("humaneval-plus", [_plus_problem(record, humaneval.STOP) for record in records])


def load_mbpp_plus(folder: Path | None) -> Suite:
    """Raises ValueError as `origins.load_records` does."""
    records = load_records(MBPP_PLUS, folder)
    return make_suite("mbpp-plus", [_plus_problem(record, mbpp.STOP) for record in records])


def _plus_problem(record: Record, stop: tuple[str, ...]) -> Problem:
    task_id, entry_point = record["task_id"], record["entry_point"]
    groups = {name: [to_python(task_id, each) for each in _cases(record, name)] for name in ("base", "plus")}
    oracle = "not-none" if entry_point in _NOT_NONE else _ORACLE_OF.get(task_id, "")
    return Problem(
        task_id=task_id,
        prompt=record["prompt"],
        entry_point=entry_point,
        tests=CaseTests(groups, oracle, record["atol"], record["prompt"] + record["canonical_solution"]),
        task="" if task_id.startswith("HumanEval") else record["prompt"].strip().strip('"').strip(),
        reference=record["canonical_solution"],
        stop=stop,
    )


def _cases(record: Record, group: str) -> list[Any]:
    # MBPP+ writes an empty dictionary where a problem has no added inputs.
    return record[f"{group}_input"] or []


def to_python(task_id: str, arguments: list[Any]) -> list[Any]:
    """One case's arguments as the Python values that EvalPlus calls the candidate with."""
    if not task_id.startswith("Mbpp/"):
        return arguments
    number = int(task_id.removeprefix("Mbpp/"))
    if number == 115:  # a list of sets; an empty one stands for an empty dictionary
        return [[set(each) if isinstance(each, list) and each else {} for each in arguments[0]]]
    if number == 124:
        return [float(arguments[0]), complex(arguments[1])]
    if number == 252:
        return [complex(arguments[0])]
    rule = _TUPLES.get(number)
    if rule is None:
        return arguments
    which, depths = rule.split("@")
    return [
        _with_tuples(argument, depths, 0) if which in ("*", str(position)) else argument
        for position, argument in enumerate(arguments)
    ]


def _with_tuples(value: Any, depths: str, depth: int) -> Any:
    if isinstance(value, dict):
        return {key: _with_tuples(item, depths, depth + 1) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = [_with_tuples(item, depths, depth + 1) for item in value]
    return tuple(items) if depths == "*" or str(depth) in depths else items
