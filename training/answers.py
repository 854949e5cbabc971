"""Judged samples as answers that a model can be trained to write.

The paper trains on the code alone (arXiv 2307.14936, section 4.1.2): for chat formats that is the code in one
fenced block, for plain ones the completion up to its stop strings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rrtf_serve.problems.extraction import defines, extract_code
from rrtf_serve.problems.origins import Record, json_lines
from rrtf_serve.problems.problem import Problem, StdioTests
from rrtf_serve.problems.prompts import Prompt
from rrtf_serve.sandbox.verdict import Status
from training.records import Candidate
from training.sources import REFERENCE

NO_CODE = "without code"
OTHER_FORMAT = "of another prompt format"
INFRA = "failed by the sandbox"
DUPLICATE = "duplicates"


@dataclass
class SourceCounts:
    """What a source's file holds. Counts are of samples; `by_task` of samples and passed ones."""

    role: str
    levels: Counter[str] = field(default_factory=Counter)  # Status' name -> samples
    left_out: Counter[str] = field(default_factory=Counter)  # why -> samples that can't be candidates
    cut_off: int = 0  # ended at max_tokens
    by_task: dict[str, list[int]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """pass@1 is the mean over problems of the share that passes."""
        rates = [passed / samples for samples, passed in self.by_task.values()]
        return {
            "role": self.role,
            "problems": len(self.by_task),
            "samples": self.levels.total(),
            "levels": {level.name: self.levels[level.name] for level in Status if level >= 0},
            "pass@1": round(sum(rates) / len(rates), 6) if rates else None,
            "solved": sum(passed > 0 for _, passed in self.by_task.values()),
            "cut_off": self.cut_off,
            "left_out": dict(sorted(self.left_out.items())),
        }


def read_answers(
    path: Path, source: str, problems: dict[str, Problem], prompts: dict[str, Prompt], counts: SourceCounts
) -> Iterable[tuple[str, Candidate]]:
    """(task_id, candidate) of each line that can be one, with score 0; `counts` grows by every line.

    `prompts` are those of the tasks that are ranked; lines of others are passed over.
    Raises ValueError naming the file and line of a record that is no judged sample.
    """
    for number, record in json_lines(path):
        verdict = record.get("verdict")
        judged = isinstance(verdict, dict) and verdict.get("status") in Status.__members__
        if "passed" not in record or not isinstance(verdict, dict) or not judged:
            raise ValueError(f"{path}:{number}: not a judged sample; `rrtf-train judge` writes those")
        task_id = record.get("task_id")
        if task_id not in prompts:
            continue
        problem, status = problems[task_id], Status[verdict["status"]]
        if record["passed"] is None or status is Status.INFRA_ERROR:
            counts.left_out[INFRA] += 1
            continue
        counts.levels[status.name] += 1
        counts.cut_off += record.get("finish") == "length"
        entry = counts.by_task.setdefault(task_id, [0, 0])
        entry[0] += 1
        entry[1] += status is Status.ALL_PASS
        text, why = answer_text(record, problem, prompts[task_id])
        if not text:
            counts.left_out[why] += 1
            continue
        yield (
            task_id,
            Candidate(
                source=source,
                role=counts.role,
                text=text,
                status=status.name,
                passed=int(verdict.get("tests_passed") or 0),
                tests=int(verdict.get("tests") or 0),
                score=0.0,
                key=str(record.get("key") or ""),
            ),
        )


def answer_text(record: Record, problem: Problem, prompt: Prompt) -> tuple[str, str]:
    """What the model is to write in answer to `prompt`, or "" and why there is nothing."""
    if prompt.message:
        code = code_of(record, problem)
        fence = f"```{problem.language}\n"
        if not code.strip() or "\n```" in code:
            return "", NO_CODE
        body = f"{code.strip(chr(10))}\n```"
        return (body if prompt.prefill else fence + body), ""
    completion = record.get("completion")
    if record.get("prompt_format") not in (prompt.format, REFERENCE) or not isinstance(completion, str):
        return "", OTHER_FORMAT
    if not completion.startswith(prompt.lead):  # a reference that writes its signature in its own way
        return "", OTHER_FORMAT
    text = completion.removeprefix(prompt.lead).rstrip()
    return (text + "\n", "") if text else ("", NO_CODE)


def code_of(record: Record, problem: Problem) -> str:
    """The code that a sample stands for, the whole function or programme; "" where it holds none."""
    response, made_as = record.get("response"), str(record.get("prompt_format"))
    if isinstance(response, str) and made_as.startswith("chat"):
        begun = made_as == "chat-prefilled"
        code = extract_code(response, problem, in_fence=begun)
        fenced = begun or "```" in response or "~~~" in response
        return code if fenced or _looks_like_code(code, problem) else ""
    if isinstance(record.get("solution"), str):
        return str(record["solution"])
    completion = str(record.get("completion") or "")
    if not completion.strip():
        return ""
    whole = isinstance(problem.tests, StdioTests) or defines(completion, problem)
    return completion if whole else problem.program(completion)


def _looks_like_code(code: str, problem: Problem) -> bool:
    """Of a response without a fence: does it define what was asked for?"""
    return bool(problem.entry_point) and defines(code, problem)
