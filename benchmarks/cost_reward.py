"""The sandbox as a reward function for TRL's trainers.

A reward is the score that `rrtf-train rank` gives the same verdict, so both methods see the same signal.
Where the sandbox itself fails, there is no reward at all: TRL leaves such an answer out of its group's mean.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rrtf_serve.problems.gold import Gold, limits_of
from rrtf_serve.problems.jobs import JobBuilder
from rrtf_serve.problems.problem import Problem
from rrtf_serve.problems.prompts import Prompt, to_sample
from rrtf_serve.problems.samples import Sample
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.verdict import Status, Verdict
from training.rank import RankOptions, score_of
from training.records import Candidate


class SandboxReward:
    """Judges completions of known problems; `None` for those that the sandbox failed on in the end.

    Equal programmes are run once, as `rrtf-train judge` does. The counters are for the report.
    """

    __name__ = "tests"  # TRL names its log's column after it

    def __init__(
        self, problems: dict[str, Problem], prompts: dict[str, Prompt], golds: dict[str, Gold],
        sandbox: Sandbox, options: RankOptions, *, retries: int = 2,
    ) -> None:  # fmt: skip
        self._problems, self._prompts, self._golds = problems, prompts, golds
        self._sandbox, self._options, self._retries = sandbox, options, retries
        self._builder = JobBuilder()
        self._known: dict[str, float] = {}  # by what decides a verdict
        self.answers = self.tokens = self.programmes = self.tests = self.passed = self.failed = 0
        self.seconds = 0.0

    def __call__(
        self, *, completions: Sequence[Any], completion_ids: Sequence[Sequence[int]], task_id: Sequence[str],
        **_: Any,
    ) -> list[float | None]:  # fmt: skip
        """TRL's signature. completions: texts, or conversations of one assistant message."""
        began = time.monotonic()
        texts = [each if isinstance(each, str) else str(each[0]["content"]) for each in completions]
        samples = [self._sample(task, text) for task, text in zip(task_id, texts, strict=True)]
        keys = [sample.key(self._sandbox.conditions) for sample in samples]
        for _attempt in range(1 + self._retries):
            missing = {key: each for key, each in zip(keys, samples, strict=True) if key not in self._known}
            self._judge(missing)
        found = [self._known.get(key) for key in keys]
        self.answers += len(texts)
        self.tokens += sum(map(len, completion_ids))
        self.failed += sum(each is None for each in found)
        self.passed += sum(each == self._options.level_scores[-1] for each in found)
        self.seconds += time.monotonic() - began
        return found

    def _sample(self, task: str, text: str) -> Sample:
        problem = self._problems[task]
        return Sample(0, problem, {"task_id": task, **to_sample(text, problem, self._prompts[task])})

    def _judge(self, missing: dict[str, Sample]) -> None:
        jobs = (
            (
                self._builder.build(each.problem, each.program),
                limits_of(self._golds.get(each.problem.task_id)),
            )
            for each in missing.values()
        )
        for key, verdict in zip(missing, self._sandbox.judge_many(jobs), strict=True):
            if verdict.status is Status.INFRA_ERROR:
                continue  # never a reward
            self.programmes += 1
            self.tests += len(verdict.tests)
            self._known[key] = score_of(_candidate(verdict), self._options)


def _candidate(verdict: Verdict) -> Candidate:
    passed = sum(test.passed for test in verdict.tests)
    return Candidate("grpo", "student", "-", verdict.status.name, passed, len(verdict.tests), 0.0)
