"""What the scheduler is told about a job beside its rows: whose it is and how urgent."""

from __future__ import annotations

from dataclasses import dataclass

MOST_TYPED = 200  # characters between two requests of one editing: a line or two, or a completion taken


@dataclass(frozen=True)
class Editing:
    """What somebody is typing. client: who, with which dialect, in which file where that is known. before and
    after: the text on both sides of the cursor. named: the file is known."""

    client: tuple[str, ...]
    before: str
    after: str = ""
    named: bool = False

    def goes_on(self, other: Editing) -> bool:
        """Whether one of the two is what the other became by typing or deleting, so that nobody waits for the
        older one any more. Requests for several pieces of code at once are told from that by their text: the
        code before the cursor of one must begin with all of the other's, which must not be blank; and what is
        after it is the same, or the file is.
        """
        if self.client != other.client or not ((self.named and other.named) or self.after == other.after):
            return False
        short, long = sorted((self.before, other.before), key=len)
        return bool(short.strip()) and len(long) - len(short) <= MOST_TYPED and long.startswith(short)


@dataclass(frozen=True)
class Ticket:
    """owner: as Request.owner, for fairness between keys. interactive: an editor waits for a few tokens.
    editor: what is typed there; a newer interactive job of the owner that goes on with the same replaces an
    older one. deadline: time.monotonic() seconds after which the answer is of no use.
    """

    owner: str | None = None
    interactive: bool = False
    editor: Editing | None = None
    deadline: float | None = None


NOBODY = Ticket()
