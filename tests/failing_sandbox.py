"""A sandbox that fails itself, not the programme, on demand."""

from collections.abc import Iterable, Iterator

from rrtf_serve.sandbox.jobs import FunctionJob, Job
from rrtf_serve.sandbox.judge import Sandbox
from rrtf_serve.sandbox.limits import Limits
from rrtf_serve.sandbox.verdict import Status, Verdict


class Failing:
    """Fails where a programme holds `word`; `failed` counts."""

    def __init__(self, sandbox: Sandbox, word: str) -> None:
        self.sandbox, self.level, self.word, self.failed = sandbox, sandbox.level, word, 0

    def judge(self, job: Job, limits: Limits | None = None) -> Verdict:
        [verdict] = self.judge_many([job], limits)
        return verdict

    def judge_many(self, jobs: Iterable[Job], limits: Limits | None = None) -> Iterator[Verdict]:
        for job in jobs:
            assert isinstance(job, FunctionJob)
            fails = self.word in job.candidate_code
            self.failed += fails
            broken = Verdict(Status.INFRA_ERROR, self.level, message="no memory for a cell")
            yield broken if fails else self.sandbox.judge(job, limits)
