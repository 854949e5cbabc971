"""What runs at once, held against what an engine can run at once."""

from __future__ import annotations

from collections.abc import Iterable

from rrtf_serve.engine.protocol import Capabilities, Request


def needs(request: Request, limits: Capabilities) -> int:
    """Tokens of keys and values that a row may come to fill."""
    return min(len(request.prompt) + request.max_tokens, limits.max_context)


class Load:
    """What a batch holds so far, against what the engine can run at once.

    max_tokens: of all rows, where that is less than the engine's own bound.
    """

    def __init__(self, limits: Capabilities, max_tokens: int | None = None) -> None:
        self._limits = limits
        self._max_tokens = min(limits.max_batch_tokens, max_tokens or limits.max_batch_tokens)
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
        tokens = self._tokens + sum(needs(request, limits) for request in requests)
        fits = (
            rows <= limits.max_batch
            and tokens <= self._max_tokens
            and (limits.prompt_spread is None or longest - shortest <= limits.prompt_spread)
        )
        if self._rows and not fits:
            return False
        self._rows, self._tokens, self._shortest, self._longest = rows, tokens, shortest, longest
        return True


class Share:
    """Who may join a running batch: of its rows and tokens a share is kept for interactive ones.

    For that share they wait for nobody. They take more of the batch only while nothing long waits, so that
    neither kind shuts the other out, and of the long rows the first is let in whatever it needs. So tokens
    stay below max_batch_tokens, or one long row and the share. Without a share all are alike. Into what is
    empty anything may go.

    running: of each row whether it is interactive, and what it needs (tokens).
    """

    def __init__(self, limits: Capabilities, running: Iterable[tuple[bool, int]]) -> None:
        self._limits = limits
        self._rows = {True: 0, False: 0}
        self._tokens = {True: 0, False: 0}
        for interactive, tokens in running:
            self._rows[interactive] += 1
            self._tokens[interactive] += tokens

    def admits(self, interactive: bool, tokens: list[int], *, long_waits: bool = False) -> bool:
        """tokens: what each row that would join needs. long_waits: whether long rows wait to enter."""
        limits = self._limits
        rows, total = len(tokens), sum(tokens)
        whole = (
            sum(self._rows.values()) + rows <= limits.max_batch
            and sum(self._tokens.values()) + total <= limits.max_batch_tokens
        )
        if not any(self._rows.values()):
            return True
        if not limits.interactive_rows:
            return whole
        if interactive:
            return self._kept(rows, total) or (whole and not long_waits)
        if not self._rows[False]:
            return whole or self._kept(0, 0)
        return (
            whole
            and self._rows[False] + rows <= limits.max_batch - limits.interactive_rows
            and self._tokens[False] + total <= limits.max_batch_tokens - limits.interactive_tokens
        )

    def _kept(self, rows: int, tokens: int) -> bool:
        """Whether interactive rows stay within their share with so many more of them."""
        return (
            self._rows[True] + rows <= self._limits.interactive_rows
            and self._tokens[True] + tokens <= self._limits.interactive_tokens
        )
