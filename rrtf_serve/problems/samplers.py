"""Sources of responses: what they have in common, and an engine in this process (a server: `http_sampler`).

They answer a list of asks in whatever order the answers finish, so that each can be kept at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rrtf_serve.engine.protocol import Engine, EngineError, Request, Sampling
from rrtf_serve.engine.protocol import FinishReason as EngineFinish
from rrtf_serve.models.prompts import Prompts
from rrtf_serve.models.tokens import TextStream, Tokenizer
from rrtf_serve.problems.prompts import Prompt

# What of an engine's own description may move a greedy answer; the rest of it follows from these.
_MOVING = ("engine", "device", "compute_type", "dtype", "kv_dtype", "kernels", "threads")
# Requests that wait in an engine for each row that it decodes at once.
_WAITING = 64


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn. temperature 0 is greedy. Raises ValueError naming the flag."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512
    seed: int | None = (
        None  # of sample 0; sample i of a problem gets seed + i, where the source honours seeds
    )

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < 100:
            raise ValueError(f"--temperature must be from 0 to 100, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"--top-p must be above 0 and at most 1, not {self.top_p}")
        if self.max_tokens < 1:
            raise ValueError(f"--max-tokens must be at least 1, not {self.max_tokens}")


@dataclass(frozen=True)
class Ask:
    """One response wanted: the `index`-th for this prompt."""

    prompt: Prompt
    index: int


@dataclass(frozen=True)
class Response:
    text: str
    finish: str  # "stop" or "length"
    tokens: int | None  # of the response; None: not said


class SamplerError(RuntimeError):
    """The source can't answer; what was answered before is kept."""


class TooLong(SamplerError):  # noqa: N818  # says what was found
    """The source has no room for one prompt: that at this position of what was asked, and of this task, where
    a problem was asked."""

    at: int = 0
    task_id: str = ""


class Sampler(Protocol):
    """`model` and `digest` say what answers; the digest must change when the answers may."""

    @property
    def model(self) -> str: ...

    @property
    def digest(self) -> str: ...

    def provenance(self) -> dict[str, Any]:
        """What else may move a greedy answer, as plain data: engine, arithmetic, batches. Each sample names
        it, and samples of another are not taken for this one's."""

    def settings(self) -> dict[str, Any]:
        """The provenance, and what else a report should say."""

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raises ValueError on a prompt that can't be put to this model."""

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        """(position in `asks`, response) of each as it is finished, but for the positions in `done`. Raises
        SamplerError; ValueError as `check` does."""


class EngineSampler:
    """An engine of this process, in batches of prompts of similar length.

    Where the engine's arithmetic makes an answer depend a little on its batch, the batches are made of all
    asks, done or not, so that a run that was stopped ends with the same answers as one that was not.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        prompts: Prompts,
        *,
        model: str,
        digest: str,
        batch: int,
        described: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.digest = digest
        self._engine = engine
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._batch = max(1, min(batch, engine.capabilities.max_batch))
        self._described = described or {}
        self._seeded = engine.capabilities.seed

    def settings(self) -> dict[str, Any]:
        spread = self._engine.capabilities.prompt_spread
        return {
            "batch": self._batch,
            "prompt_spread": spread,
            "seeds_honoured": self._seeded,
            **self._described,
        }

    def provenance(self) -> dict[str, Any]:
        kept = {name: self._described[name] for name in _MOVING if name in self._described}
        spread = self._engine.capabilities.prompt_spread
        arithmetic = self._described.get("compute_type", self._described.get("dtype"))
        # In float32, and among prompts of one length, no answer depends on its batch.
        return (
            kept
            if arithmetic == "float32" or spread == 0 or self._engine.capabilities.independent_rows
            else kept | {"batch": self._batch, "prompt_spread": spread}
        )

    def check(self, prompts: Sequence[Prompt]) -> None:
        for prompt in prompts:
            self._encode(prompt)

    def room(self, prompt: Prompt) -> int:
        """Tokens that the model's context has left for an answer; below 1 the prompt itself is too long."""
        return self._engine.capabilities.max_context - len(self._encode(prompt)[0])

    def answer(
        self, asks: Sequence[Ask], decoding: Decoding, done: Collection[int] = ()
    ) -> Iterator[tuple[int, Response]]:
        encoded = [self._encode(ask.prompt) for ask in asks]
        order = sorted(range(len(asks)), key=lambda at: (len(encoded[at][0]), at))
        size = self._batch
        if self._engine.capabilities.independent_rows:
            # Then the engine has more to choose from: a row enters as another leaves.
            order = [at for at in order if at not in done]
            size *= _WAITING
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if done and all(at in done for at in rows):
                continue
            for at, response in self._run(rows, [asks[row].index for row in rows], encoded, decoding):
                if at not in done:
                    yield at, response

    def _encode(self, prompt: Prompt) -> tuple[list[int], frozenset[int], tuple[str, ...]]:
        """Token ids, end tokens and stop strings."""
        prompts = self._prompts
        if prompt.message:
            ids = prompts.chat([{"role": "user", "content": prompt.message}])
            # The answer's beginning follows the template's own opening of the assistant's turn.
            ids = ids + self._tokenizer.encode(prompt.prefill, specials=False, continues=True)
            return ids, prompts.chat_end_ids, (*prompts.chat_stops, *prompt.stop)
        if prompt.suffix is not None:
            ids = prompts.infill(prompt.text, prompt.suffix)
            stops = prompts.middle_stops(prompt.text, prompt.suffix)  # as the server does
            return ids, prompts.infill_end_ids, (*stops, *prompt.stop)
        return prompts.completion(prompt.text), prompts.completion_end_ids, prompt.stop

    def _sampling(self, decoding: Decoding, sample: int) -> Sampling:
        seed = decoding.seed if self._seeded and decoding.temperature else None
        return Sampling(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=None if seed is None else seed + sample,
        )

    def _run(
        self,
        rows: list[int],
        samples: list[int],
        encoded: list[tuple[list[int], frozenset[int], tuple[str, ...]]],
        decoding: Decoding,
    ) -> Iterator[tuple[int, Response]]:
        streams = [TextStream(self._tokenizer, encoded[at][2]) for at in rows]
        parts: list[list[str]] = [[] for _ in rows]
        counts = [0] * len(rows)
        ended = [False] * len(rows)
        batch = self._engine.start(
            [
                Request(
                    tuple(encoded[at][0]),
                    decoding.max_tokens,
                    encoded[at][1],
                    self._sampling(decoding, sample),
                )
                for at, sample in zip(rows, samples, strict=True)
            ]
        )
        try:
            while deltas := batch.step():
                for delta in deltas:
                    row = delta.row
                    if ended[row]:
                        continue
                    finish: EngineFinish | None = delta.finish
                    if delta.token is not None:
                        text, stopped = streams[row].push(delta.token)
                        parts[row].append(text)
                        counts[row] += 1
                        if stopped:
                            finish = "stop"
                            batch.cancel(row)
                    if finish is None:
                        continue
                    ended[row] = True
                    if not streams[row].stopped:
                        parts[row].append(streams[row].flush())
                    yield rows[row], Response("".join(parts[row]), finish, counts[row])
        except EngineError as error:
            raise SamplerError(f"{self.model}: {error}") from error
        finally:
            batch.close()
