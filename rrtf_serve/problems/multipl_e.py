"""MultiPL-E (arXiv 2208.08227): HumanEval translated to other languages, each with tests in that language.

Its licence forbids training on it: for evaluation only. JavaScript, TypeScript, Bash and C++ can be judged,
each where its interpreter or compiler is installed. Candidate and tests share one programme; docs/sandbox.md
says what that allows.
"""

from __future__ import annotations

from pathlib import Path

from rrtf_serve.problems.origins import DataFile, Record, load_records
from rrtf_serve.problems.problem import Problem, ProgramTests, Suite, make_suite

LANGUAGES = {"js": "javascript", "ts": "typescript", "sh": "bash", "cpp": "cpp"}


def load_multipl_e(extension: str, folder: Path | None) -> Suite:
    """`extension` is a key of LANGUAGES. Raises ValueError as `origins.load_records` does."""
    data = DataFile(
        name=f"humaneval-{extension}.jsonl", folder="multipl-e", home="https://github.com/nuprl/MultiPL-E"
    )
    problems = [_problem(record, LANGUAGES[extension]) for record in load_records(data, folder)]
    return make_suite(f"multipl-e-{extension}", problems)


def _problem(record: Record, language: str) -> Problem:
    return Problem(
        task_id=record["name"],
        prompt=record["prompt"],
        # "HumanEval_0_has_close_elements" -> "has_close_elements"
        entry_point=record["name"].split("_", 2)[2],
        tests=ProgramTests(record["tests"]),
        language=language,
        stop=tuple(record["stop_tokens"]),
    )
