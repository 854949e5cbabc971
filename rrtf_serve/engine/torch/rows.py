"""One row of a batch: what it was asked, what it has made, when it ends."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch

from rrtf_serve.engine.protocol import Delta, FinishReason, Request, Sampling, TokenLogprob


@dataclass(slots=True, eq=False)
class Row:
    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    end_ids: frozenset[int]
    left: int  # tokens that it may still make
    least: int  # tokens that it must still make before an end token counts
    generator: torch.Generator | None  # None: no chance is involved
    owner: str | None = None
    interactive: bool = False
    slot: int | None = None  # None: it waits
    read: int = 0  # tokens of the prompt that its slot holds
    made: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)  # of `made`
    cancelled: bool = False

    @property
    def held(self) -> int:
        """Tokens in its slot once it decodes: all but the one that was made last."""
        return len(self.prompt) + len(self.made) - 1

    @property
    def needs(self) -> int:
        """Tokens of a slot that it may come to fill."""
        return len(self.prompt) + len(self.made) + self.left

    def take(self, token: int, logprob: TokenLogprob | None) -> Delta:
        """Go on by one token; the delta that tells of it. It carries a finish where the row has ended."""
        if token in self.end_ids and not self.least:
            return Delta(self.number, None, "stop")
        self.made.append(token)
        self.counts[token] += 1
        self.left -= 1
        self.least = max(0, self.least - 1)
        finish: FinishReason | None = None if self.left else "length"
        return Delta(self.number, token, finish, logprob)


def new_row(number: int, request: Request, *, context: int, vocabulary: int) -> Row:
    """A row that has made nothing yet. `context` and `vocabulary` in tokens."""
    left = min(request.max_tokens, context - len(request.prompt))
    end_ids = frozenset(token for token in request.end_ids if 0 <= token < vocabulary)
    return Row(
        number=number,
        prompt=request.prompt,
        sampling=request.sampling,
        end_ids=end_ids,
        left=left,
        least=min(max(request.min_tokens, 0), left) if end_ids else 0,
        generator=_generator(request.sampling),
        owner=request.owner,
        interactive=request.interactive,
    )


def _generator(sampling: Sampling) -> torch.Generator | None:
    """A row's own source of chance, on the CPU whatever the device: the same seed gives the same numbers."""
    if sampling.temperature == 0:
        return None
    generator = torch.Generator()
    if sampling.seed is None:
        generator.seed()
    else:
        generator.manual_seed(sampling.seed % 2**64)
    return generator
