"""What a scheduler tells of its work; api/metrics makes figures of it.

It tells from its own threads and from the event loops of submitters, most of it under its lock.
"""

from __future__ import annotations

from typing import Literal

Ending = Literal["stop", "length", "cancelled", "replaced", "deadline", "error"]
Refusal = Literal["queue_full", "too_many_tokens"]


class Observer:
    """Does nothing; whoever wants to know overrides some. Seconds are of time.monotonic().

    Submissions that share a decode each have a start, a first token and ends of their own; `next_token`,
    `tokens` and `batch` tell of the decode, once.
    """

    def queued(self, jobs: int) -> None:
        """So many jobs wait now."""

    def running(self, rows: int) -> None:
        """So many rows are being decoded, and prompts scored, now."""

    def started(self, queue_seconds: float) -> None:
        """A job left the queue for a batch."""

    def first_token(self, seconds: float) -> None:
        """A job's first token came, so long after it was submitted."""

    def next_token(self, seconds: float) -> None:
        """A row's token came, so long after the row's token before it."""

    def tokens(self, prompt: int, completion: int) -> None:
        """A row ended that had read and made so many."""

    def batch(self, rows: int) -> None:
        """A step was made with so many rows."""

    def ended(self, how: Ending, seconds: float) -> None:
        """A row ended for whoever submitted it, so long after it did."""

    def refused(self, why: Refusal) -> None:
        """A job was not accepted."""
