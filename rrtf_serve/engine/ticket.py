"""What the scheduler is told about a job beside its rows: whose it is and how urgent."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Ticket:
    """owner: as Request.owner, for fairness between keys. interactive: an editor waits for a few tokens.
    editor: names one place where somebody types (never shared between owners); a newer interactive job of the
    same editor replaces an older one. deadline: time.monotonic() seconds after which the answer is of no use.
    """

    owner: str | None = None
    interactive: bool = False
    editor: str | None = None
    deadline: float | None = None


NOBODY = Ticket()
