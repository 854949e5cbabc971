"""Greedy HumanEval through the HTTP API: what a client of the server gets, judged in a jail.

Data: openai/human-eval's HumanEval.jsonl.gz, in DATA_DIR or DATA_DIR/humaneval. Samples are appended to a
JSON Lines file with human-eval's field names (`task_id`, `completion`); a stopped run goes on where it was.
"""

from __future__ import annotations

import gzip
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.jail import run_with_tests
from benchmarks.machine import machine_record
from benchmarks.server import get_json, post_json
from benchmarks.spread import wilson_interval

INSTRUCTION = (
    "Complete the following Python function. Answer with the whole function, imports included, in one Python "
    "code block and nothing else.\n\n```python\n{prompt}```"
)
MAX_TOKENS = 512
TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Problem:
    task_id: str
    prompt: str
    test: str
    entry_point: str


def load_problems(data_dir: Path, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems in file order. Raises ValueError naming --data-dir and the file."""
    places = [data_dir / "HumanEval.jsonl.gz", data_dir / "humaneval" / "HumanEval.jsonl.gz"]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(
            f"--data-dir {data_dir}: found neither {places[0].name} nor humaneval/{places[0].name}"
        )
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines if line.strip()]
    names = Problem.__dataclass_fields__
    return [Problem(**{name: record[name] for name in names}) for record in records[:limit]]


def extract_code(answer: str) -> str:
    """The first fenced block of an answer, or all of it where there is none; a fence that the length limit
    cut off counts as closed."""
    found = re.search(r"```(?:[Pp]ython|py)?[^\S\n]*\n(.*?)(?:\n```|\Z)", answer, re.DOTALL)
    return found.group(1) if found else answer


def build_program(problem: Problem, code: str) -> str:
    """The answer as a programme: the prompt's own imports and helpers first, since answers often omit them.

    An answer that does not define the function again is taken as its body.
    """
    if re.search(rf"^\s*(?:async\s+)?def\s+{re.escape(problem.entry_point)}\b", code, re.MULTILINE):
        preamble = problem.prompt.rpartition(f"def {problem.entry_point}")[0]
        return preamble + "\n" + code
    return problem.prompt + code


def measure(url: str, data_dir: Path, output: Path, limit: int | None) -> dict[str, Any]:
    """pass@1, greedy, one request at a time (batching may move near-ties); counts with their interval."""
    problems = load_problems(data_dir, limit)
    model = get_json(f"{url}/v1/models")["data"][0]
    answers = _answers(url, model["id"], problems, output)
    outcomes: dict[str, str] = {}
    for problem in tqdm(problems, desc="judging", unit="problem"):
        program = build_program(problem, extract_code(answers[problem.task_id]))
        tests = f"{problem.test}\ncheck({problem.entry_point})"
        outcomes[problem.task_id] = run_with_tests(program, tests, timeout_s=TIMEOUT_S)
    passed = sum(outcome == "passed" for outcome in outcomes.values())
    low, high = wilson_interval(passed, len(problems))
    return {
        "model": model["id"],
        "card": model.get("card"),
        "passed": passed,
        "problems": len(problems),
        "pass@1": passed / len(problems),
        "interval_95": [low, high],
        "decoding": {"temperature": 0, "max_tokens": MAX_TOKENS, "prompt": INSTRUCTION},
        "failed": [task for task, outcome in outcomes.items() if outcome != "passed"],
        "machine": machine_record(),
    }


def _answers(url: str, model: str, problems: list[Problem], output: Path) -> dict[str, str]:
    answers: dict[str, str] = {}
    if output.is_file():
        for number, line in enumerate(output.read_text("utf-8").splitlines(), 1):
            try:
                record = json.loads(line)
                if record["model"] == model:
                    answers[record["task_id"]] = record["completion"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{output}:{number}: not a sample ({error!r}); remove that line") from error
    with output.open("a", encoding="utf-8") as file:
        for problem in tqdm(problems, desc="sampling", unit="problem"):
            if problem.task_id in answers:
                continue
            body = {
                "model": model,
                "messages": [{"role": "user", "content": INSTRUCTION.format(prompt=problem.prompt)}],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
            }
            answer = post_json(f"{url}/v1/chat/completions", body)["choices"][0]["message"]["content"]
            answers[problem.task_id] = answer
            record = {"task_id": problem.task_id, "completion": answer, "model": model}
            file.write(json.dumps(record) + "\n")
            file.flush()
    return answers
