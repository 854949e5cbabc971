"""Reference solutions on this machine: whether they pass, and how long they take.

Time limits follow from the time the reference takes here, so that a slow machine fails nobody; a problem
whose reference does not pass is named and left out of every score. What was measured is kept under
RRTF_HOME/gold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from rrtf_serve.models.store import default_home
from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.problem import Problem, StdioTests, Suite
from rrtf_serve.problems.samples import JUDGE
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.verdict import Status, Verdict

# A reference gets more than any candidate: what it takes is not known yet.
# HumanEval/15 of HumanEval+ returns 147 MB in all.
VALUE_BYTES = 256 << 20
# The processor's time is what a candidate uses up; the clock also runs while others have the processor.
CLOCK_PER_PROCESSOR = 3.0
REFERENCE_LIMITS = Limits(wall_s=180.0, cpu_s=60.0, memory_bytes=4 << 30, value_bytes=VALUE_BYTES)
LEAST_S = 5.0
TIMES_REFERENCE = 5.0
DEFAULT_S = 10.0  # for problems without a reference
MEMORY_BYTES = 2 << 30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Gold:
    """How a reference solution did."""

    passed: bool
    seconds: float
    result: str  # as `judging.result_of` words it
    message: str = ""


def limits_of(gold: Gold | None) -> Limits:
    """Limits for candidates of one problem: 5 times what the reference took, at least 5 s, of the
    processor."""
    usable = gold if gold is not None and gold.passed else None
    seconds = max(LEAST_S, TIMES_REFERENCE * usable.seconds) if usable else DEFAULT_S
    return Limits(
        wall_s=CLOCK_PER_PROCESSOR * seconds,
        cpu_s=seconds,
        memory_bytes=MEMORY_BYTES,
        value_bytes=VALUE_BYTES,
    )


def measure(
    suite: Suite, sandbox: Sandbox, task_ids: Iterable[str] | None = None, *, fresh: bool = False
) -> dict[str, Gold]:
    """Run the references of these problems (default: all that have one) that did not pass here before.

    `fresh` measures all again. What is known is returned for `task_ids` only; problems without reference or
    tests are not in it. A run that the sandbox failed is left out, and tried again next time.
    """
    wanted = [suite.problems[task_id] for task_id in (suite.problems if task_ids is None else task_ids)]
    wanted = [problem for problem in wanted if problem.reference is not None and problem.tests is not None]
    path = _place(suite, sandbox)
    known = _read(path)
    # What failed once may have had a busy machine, or lacked a package that is there now.
    missing = [each for each in wanted if fresh or not (found := known.get(each.digest)) or not found.passed]
    if missing:
        builder = JobBuilder()
        jobs = (builder.build(problem, problem.program(problem.reference or "")) for problem in missing)
        verdicts = sandbox.judge_many(jobs, REFERENCE_LIMITS)
        progress = tqdm(missing, desc=f"references of {suite.name}", unit="problem", leave=False)
        try:
            for problem, verdict in zip(progress, verdicts, strict=True):
                if verdict.status is not Status.INFRA_ERROR:
                    known[problem.digest] = _gold(problem, verdict)
                    continue
                known.pop(problem.digest, None)
                log.warning("%s: the sandbox failed on its reference: %s", problem.task_id, verdict.message)
        finally:  # a run that is stopped keeps what it has measured
            _write(path, known)
    return {problem.task_id: known[problem.digest] for problem in wanted if problem.digest in known}


def _gold(problem: Problem, verdict: Verdict) -> Gold:
    # Limits of standard-input programmes hold per case, the verdict's time is that of all.
    runs = len(verdict.tests) if isinstance(problem.tests, StdioTests) and verdict.tests else 1
    message = verdict.message or next((test.message for test in verdict.tests if not test.passed), "")
    failed = verdict.kind.value if verdict.kind else verdict.status.name
    return Gold(verdict.passed, verdict.seconds / runs, "passed" if verdict.passed else failed, message)


def _place(suite: Suite, sandbox: Sandbox) -> Path:
    # A file of the user's gives the suite its name, with any characters.
    name = "".join(c if c.isalnum() or c in "-_" else "_" for c in suite.name)
    made_by = hashlib.sha256(f"{JUDGE}\n{sandbox.conditions}".encode()).hexdigest()[:8]
    return default_home() / "gold" / f"{name}.{sandbox.level.value}.{made_by}.json"


def _read(path: Path) -> dict[str, Gold]:
    try:
        return {digest: Gold(**record) for digest, record in json.loads(path.read_text("utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        log.warning("%s is not readable; the references are measured again", path)
        return {}


def _write(path: Path, known: dict[str, Gold]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps({digest: asdict(gold) for digest, gold in known.items()}), "utf-8")
    temporary.replace(path)
