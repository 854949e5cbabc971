"""What runs at once, held against what an engine can run at once."""

from __future__ import annotations

from rrtf_serve.engine.protocol import Capabilities, Request


class Load:
    """What a batch holds so far, against what the engine can run at once."""

    def __init__(self, limits: Capabilities) -> None:
        self._limits = limits
        self._rows = 0
        self._tokens = 0
        self._shortest = self._longest = 0

    def add(self, requests: list[Request]) -> bool:
        """Add them if they fit; the first ones always do."""
        limits = self._limits
        lengths = [len(request.prompt) for request in requests]
        shortest, longest = min(lengths), max(lengths)
        if self._rows:
            shortest, longest = min(shortest, self._shortest), max(longest, self._longest)
        rows = self._rows + len(requests)
        tokens = self._tokens + sum(
            min(length + request.max_tokens, limits.max_context)
            for length, request in zip(lengths, requests, strict=True)
        )
        fits = (
            rows <= limits.max_batch
            and tokens <= limits.max_batch_tokens
            and (limits.prompt_spread is None or longest - shortest <= limits.prompt_spread)
        )
        if self._rows and not fits:
            return False
        self._rows, self._tokens, self._shortest, self._longest = rows, tokens, shortest, longest
        return True
