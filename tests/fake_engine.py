"""A tiny deterministic engine and a byte-level tokenizer, for tests of what stands around an engine.

The engine answers a prompt with a script: token ids that it makes one by one, one per row and step.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, Request, TokenLogprob
from rrtf_serve.models.tokens import BYTE_ALPHABET, Tokenizer

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
)


def byte_tokenizer() -> Tokenizer:
    """Ids 0 to 255 are the bytes themselves, those after them are SPECIALS."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=dict(BYTE_ALPHABET), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIALS))
    return Tokenizer(backend)


CAPABILITIES = Capabilities(max_context=512, max_batch=16, max_logprobs=20, max_scored_tokens=256)


def repeat(prompt: tuple[int, ...]) -> list[int]:
    """The default script: say the prompt's text again, over and over."""
    return [token for token in prompt if token < 256] or [ord("?")]


def scored(token: int, top: int, at: int) -> TokenLogprob:
    best = tuple(((token + rank) % 256, -0.25 * (rank + 1)) for rank in range(top))
    return TokenLogprob(token, -0.5 if at % 2 else -0.25, best)


@dataclass
class FakeEngine:
    """`script`: prompt to the tokens that follow it, over and over until the request's limits end the row."""

    script: Callable[[tuple[int, ...]], Iterable[int]] = repeat
    capabilities: Capabilities = CAPABILITIES
    scored: Callable[[int, int, int], TokenLogprob] = scored  # token, alternatives, position
    seconds_per_step: float = 0.0
    fails_after: int | None = None  # steps
    vocabulary: int = 256 + len(SPECIALS)
    open: threading.Event = field(default_factory=threading.Event)  # steps wait for it
    started: list[Request] = field(default_factory=list)
    scored_prompts: list[int] = field(default_factory=list)  # tokens of each

    def __post_init__(self) -> None:
        self.open.set()

    def start(self, requests: list[Request]) -> FakeBatch:
        self.started += requests
        for request in requests:
            if not request.prompt or max(request.prompt) >= self.vocabulary:
                raise ValueError("token id outside the vocabulary")
        return FakeBatch(self, requests)

    def score(self, prompt: tuple[int, ...], top: int) -> list[TokenLogprob]:
        self.scored_prompts.append(len(prompt))
        return [self.scored(token, top, at) for at, token in enumerate(prompt[1:])]

    def close(self) -> None:
        self.open.set()


class FakeBatch:
    def __init__(self, engine: FakeEngine, requests: list[Request]) -> None:
        self._engine = engine
        self._requests = requests
        self._scripts = [list(engine.script(request.prompt)) for request in requests]
        self._made = [0] * len(requests)
        self._open = set(range(len(requests)))
        self._cancelled: set[int] = set()
        self._steps = 0

    def step(self) -> list[Delta]:
        if not self._open:
            return []
        if not self._cancelled >= self._open:
            while not self._engine.open.wait(0.01) and not self._cancelled >= self._open:
                pass
            time.sleep(self._engine.seconds_per_step)
        if self._engine.fails_after is not None and self._steps >= self._engine.fails_after:
            raise EngineError("the fake engine was told to fail")
        self._steps += 1
        return [self._move(row) for row in sorted(self._open)]

    def move(self) -> list[Delta]:
        """As an engine that admits; none of its tests lets a row join."""
        return self.step()

    def _move(self, row: int) -> Delta:
        if row in self._cancelled:
            self._open.discard(row)
            return Delta(row, None, "cancelled")
        request, script = self._requests[row], self._scripts[row]
        made = self._made[row]
        token = script[made % len(script)]
        if token in request.end_ids and made >= request.min_tokens:
            self._open.discard(row)
            return Delta(row, None, "stop")
        self._made[row] += 1
        top = request.sampling.logprobs
        delta = Delta(row, token, None, None if top is None else self._engine.scored(token, top, made))
        if self._made[row] == request.max_tokens:
            self._open.discard(row)
            return replace(delta, finish="length")
        return delta

    def cancel(self, row: int) -> None:
        self._cancelled.add(row)

    def close(self) -> None:
        self._cancelled |= self._open
