"""What the judge says about one candidate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import IntEnum, StrEnum
from typing import Any

from rrtf_serve.sandbox.limits import Level


class Status(IntEnum):
    """Ordered as RRTF ranks samples (arXiv 2307.14936, section 3); INFRA_ERROR stands outside that order."""

    INFRA_ERROR = -1  # the sandbox failed, not the candidate: never score it
    COMPILE_ERROR = 0
    RUNTIME_ERROR = 1  # raised, died, broke a limit, or passed no test
    PARTIAL = 2  # at least one test passed and at least one did not
    ALL_PASS = 3


class Kind(StrEnum):
    """Why a run was cut short."""

    TIMEOUT = "timeout"  # wall clock or processor time
    MEMORY = "memory"
    OUTPUT = "output"  # printed or returned more than allowed
    KILLED = "killed"  # died of a signal, or broke another limit


@dataclass(frozen=True, slots=True)
class TestResult:
    """One test: an assertion of the test code, or one case."""

    __test__ = False  # not a class for pytest to collect

    name: str  # the assertion's source text (shortened) or "case 7"
    passed: bool
    kind: str = ""  # empty where passed; "assertion", "exception", "not reached", or a Kind's value
    message: str = ""  # the exception's type and text, or what differed; written by untrusted code


@dataclass(frozen=True)
class Verdict:
    status: Status
    level: Level
    kind: Kind | None = None
    tests: tuple[TestResult, ...] = ()
    message: str = ""  # one line for people; may quote untrusted text
    seconds: float = 0.0  # wall clock of the run, without waiting for a free worker
    peak_memory_bytes: int = 0  # largest resident size of the candidate's process tree
    output: str = ""  # the head of what the candidate printed, at most 4 KiB

    @property
    def passed(self) -> bool:
        return self.status is Status.ALL_PASS

    def record(self) -> dict[str, Any]:
        """Plain data for a JSON line: enums by name or value, all else as it is."""
        return {
            **asdict(self),
            "status": self.status.name,
            "level": self.level.value,
            "kind": self.kind.value if self.kind else None,
        }
