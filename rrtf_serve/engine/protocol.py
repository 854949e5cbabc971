"""The contract between the API and whatever runs the model.

An engine owns tokens: it takes prompt token ids and sampling options and gives back token ids. Text, stop
strings and special tokens belong to `models.tokens`.

    batch = engine.start([request, request])
    while deltas := batch.step():          # blocks until at least one row moved; [] once every row ended
        for delta in deltas: ...
    batch.close()                          # always; stops whatever still runs
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, Protocol

# Prompts and completions of what runs at once, unless an engine says otherwise.
BATCH_TOKENS = 16_384

FinishReason = Literal["stop", "length", "cancelled"]


class EngineError(Exception):
    """The engine failed on this batch; other batches are unaffected."""


class RowsFailed(EngineError):  # noqa: N818 - says what is so, as QueueFull does
    """The engine failed on some rows of a batch, and these have ended; `step` goes on with the others."""

    def __init__(self, problem: str, rows: frozenset[int]) -> None:
        super().__init__(problem)
        self.rows = rows


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are chosen. temperature 0 is greedy decoding."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit
    repetition_penalty: float = 1.0  # 1.0: none
    logprobs: int | None = None  # None: none; k: the chosen token's log-probability and the k best
    # Only for engines whose capabilities name them.
    min_p: float = 0.0  # 0: no limit
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, added to its logit)


@dataclass(frozen=True)
class Request:
    """One row: generate after `prompt` until an end token, or `max_tokens` new ones.

    `min_tokens` new tokens are made before an end token may end the row. `owner` names whose request it is,
    without being a secret itself: nothing of it is used again for another owner's. `interactive`: it may use
    what an engine keeps for such rows (Capabilities); the scheduler sets it.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    end_ids: frozenset[int]
    sampling: Sampling = Sampling()
    min_tokens: int = 0
    owner: str | None = None  # None: nobody in particular, who is an owner too
    interactive: bool = False


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability under the model at temperature 1."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token, logprob), best first, at most Sampling.logprobs entries


@dataclass(frozen=True, slots=True)
class Delta:
    """One row moved by one token, ended, or both.

    `token` is None on an end without a token: an end token is not reported as a token of the completion.
    `at`: when its step was made (time.monotonic() seconds; one value for all its rows), where one call may
    give several steps.
    """

    row: int
    token: int | None
    finish: FinishReason | None = None
    logprob: TokenLogprob | None = None
    at: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Capabilities:
    """What an engine can do; api/fields turns it into honoured, dropped or refused."""

    max_context: int  # tokens, prompt and completion together
    max_batch: int
    max_logprobs: int  # 0: none at all
    max_scored_tokens: int  # longest prompt that `score` takes; 0: can't
    seed: bool = False
    penalties: bool = False  # presence and frequency
    logit_bias: bool = False
    min_p: bool = False
    admission: bool = False  # a request can join a running batch, see AdmittingBatch
    mixed_sampling: bool = False  # rows of one batch may differ in their sampling
    independent_rows: bool = False  # no token of a row depends on what else is in its batch, or was before
    max_batch_tokens: int = BATCH_TOKENS  # prompts and completions of all rows that run at once
    prompt_spread: int | None = None  # tokens by which prompts may differ and still run at once; None: any
    # Batches that may run at once, each stepped by a thread of its own. The bounds above hold for each.
    parallel_batches: int = 1
    # What interactive jobs may take at once. With `admission` it is kept for them out of max_batch and
    # max_batch_tokens; with parallel batches it is what one batch of theirs may hold. A job that needs more
    # is a long one. 0 rows: nothing is kept, and rows enter in order.
    interactive_rows: int = 0
    interactive_tokens: int = 0


# Of a request that no engine is to see.
NO_ENGINE = Capabilities(max_context=1, max_batch=1, max_logprobs=0, max_scored_tokens=0)


class Batch(Protocol):
    def step(self) -> list[Delta]:
        """Block until something moved; [] means that every row has ended. Raises RowsFailed where others go
        on, any other EngineError where none does."""

    def cancel(self, row: int) -> None:
        """Stop one row at its next decode step; safe from any thread, no effect on an ended row."""

    def close(self) -> None:
        """Cancel what runs and wait until the engine has let go of it. Idempotent."""


class AdmittingBatch(Batch, Protocol):
    """A batch of an engine whose capabilities have `admission`."""

    def move(self) -> list[Delta] | None:
        """As `step`, but None as soon as there is something done that moved no row, a piece of a prompt read:
        others need not wait for all of a long prompt before they join."""

    def admit(self, requests: list[Request]) -> int:
        """Let rows join before the next step, numbered on from the rows there were; the first one's number.

        For the thread that calls `step`. They need not fit at once. Raises as Engine.start; the batch is then
        as it was."""


class Engine(Protocol):
    """`start` and `score` are called from as many threads at a time as batches may run at once."""

    @property
    def capabilities(self) -> Capabilities: ...

    def start(self, requests: list[Request]) -> Batch:
        """Start rows, with equal `sampling` unless the capabilities allow mixed. Raises ValueError on ids
        outside the vocabulary, an empty prompt, a prompt that leaves no room in the context, or unequal
        sampling; EngineError once closed."""

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        """Log-probability of each prompt token after the first, given those before it.

        `top`: how many of the best tokens each of the len(prompt) - 1 records lists. Raises ValueError on
        what the capabilities exclude, EngineError."""

    def close(self) -> None:
        """Free the model; idempotent. Nothing may be started afterwards."""


class AdmittingEngine(Engine, Protocol):
    """An engine whose capabilities have `admission`; its batches are AdmittingBatches."""

    def score_pieces(self, prompt: tuple[int, ...], top: int) -> Iterator[list[TokenLogprob]]:
        """The records of `score`, some at a time: between two pieces a batch may step, so that nobody who
        decodes waits for the whole of a long prompt. Each piece raises as `score` does."""
