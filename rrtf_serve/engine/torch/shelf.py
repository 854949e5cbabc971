"""What slots hold, whose it is, and which slot a new row gets.

A row that leaves its slot leaves its tokens there. A new row of the same owner whose prompt begins with the
same tokens goes on from them: it takes the slot over, or copies what it shares where the slot holds much more
or its row still runs. Tokens of different owners never meet. Kept slots are bounded in tokens; the ones that
were left longest ago go first.

    slot, held = shelf.take(prompt, owner)      # the first `held` tokens of the prompt need not be read
    shelf.extend(slot, tokens)                  # after each pass that read some
    shelf.leave(slot)                           # or drop(slot), where what it holds can't be trusted
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rrtf_serve.engine.torch.slots import Slots


@dataclass(slots=True, eq=False)
class Holding:
    """What one slot holds: keys and values of `tokens`, in order."""

    tokens: list[int] = field(default_factory=list)
    owner: str | None = None
    busy: bool = False  # a row has it
    left_at: int = 0  # a count that grows with each row that leaves


class Shelf:
    """Hands out the slots of one store; for one thread at a time.

    max_kept: tokens in slots that no row has; 0: nothing is kept and nothing copied. max_slots: beyond it a
    new row takes the slot that was left longest ago, as long as one is free.
    """

    def __init__(self, slots: Slots, *, max_kept: int, max_slots: int) -> None:
        self.slots = slots
        self.holdings: list[Holding] = []  # by slot
        self.reused_tokens = 0  # of prompts, in all: what needn't be read
        self._max_kept = max_kept
        self._max_slots = max_slots
        self._turn = 0

    @property
    def kept_tokens(self) -> int:
        """Tokens in slots that no row has."""
        return sum(len(held.tokens) for held in self.holdings if not held.busy)

    def take(self, prompt: Sequence[int], owner: str | None) -> tuple[int, int]:
        """A slot for a row, and how many of the prompt's tokens it holds: never the last.

        Raises MemoryError and torch's errors of want of memory; then nothing has changed.
        """
        source, shared = self._nearest(list(prompt[:-1]), owner)
        if source is not None and self._worth_taking(self.holdings[source], shared):
            slot = source
        else:
            slot = self._spare(source)
        self.slots.reserve(slot + 1, len(prompt) + 1)
        if source is None:
            self.slots.truncate(slot, 0)
        elif slot == source:
            self.slots.truncate(slot, shared)
        else:
            self.slots.copy(source, slot, shared)
        self._hand_out(slot, list(prompt[:shared]), owner)
        self.reused_tokens += shared
        return slot, shared

    def twin(self, slot: int) -> int:
        """Another slot that holds what `slot` does, for the same owner. Raises as `take`."""
        original = self.holdings[slot]
        target = self._spare(slot)
        self.slots.reserve(target + 1, len(original.tokens) + 1)
        self.slots.copy(slot, target, len(original.tokens))
        self._hand_out(target, list(original.tokens), original.owner)
        return target

    def extend(self, slot: int, tokens: Sequence[int]) -> None:
        """Note that a pass has read these tokens into the slot."""
        self.holdings[slot].tokens += tokens

    def leave(self, slot: int) -> None:
        """A row goes and its tokens stay, within the bound."""
        self._turn += 1
        held = self.holdings[slot]
        held.busy, held.left_at = False, self._turn
        # A pass that failed may have written more than was noted.
        self.slots.truncate(slot, len(held.tokens))
        for number, other in enumerate(self.holdings):
            if number == slot or other.busy or other.owner != held.owner or not other.tokens:
                continue
            if len(other.tokens) <= len(held.tokens) and held.tokens[: len(other.tokens)] == other.tokens:
                self.drop(number)
            elif other.tokens[: len(held.tokens)] == held.tokens:
                other.left_at = self._turn
                self.drop(slot)
                return
        if len(held.tokens) > self._max_kept:
            self.slots.truncate(slot, self._max_kept)
            del held.tokens[self._max_kept :]
        kept = self.kept_tokens
        while kept > self._max_kept:
            oldest = self._oldest(slot)
            assert oldest is not None, "one slot alone is within the bound"
            kept -= len(self.holdings[oldest].tokens)
            self.drop(oldest)

    def drop(self, slot: int) -> None:
        """Empty a slot and let no row have it."""
        self.slots.truncate(slot, 0)
        held = self.holdings[slot]
        held.tokens, held.owner, held.busy = [], None, False

    def empty(self) -> None:
        """Drop all that is kept."""
        for slot, held in enumerate(self.holdings):
            if not held.busy:
                self.drop(slot)

    def _nearest(self, prompt: list[int], owner: str | None) -> tuple[int | None, int]:
        """The slot of this owner that shares most of the prompt's beginning, and how many tokens; a free one
        and a shorter one first."""
        best: tuple[int, bool, int] = (0, False, 0)
        slot: int | None = None
        if not self._max_kept:
            return slot, 0
        for number, held in enumerate(self.holdings):
            if held.owner == owner and held.tokens:
                found = (shared_prefix(held.tokens, prompt), not held.busy, -len(held.tokens))
                if found[0] and found > best:
                    best, slot = found, number
        return slot, best[0]

    def _worth_taking(self, held: Holding, shared: int) -> bool:
        """Whether a row may go on in this very slot: what it doesn't share is lost."""
        return not held.busy and 2 * shared >= len(held.tokens)

    def _spare(self, beside: int | None) -> int:
        """A slot that no row has, other than `beside`: an empty one, a new one, or the one left longest
        ago."""
        for number, held in enumerate(self.holdings):
            if not (held.busy or held.tokens) and number != beside:
                return number
        oldest = self._oldest(beside)
        if oldest is None or len(self.holdings) < self._max_slots:
            return len(self.holdings)
        return oldest

    def _oldest(self, beside: int | None) -> int | None:
        """The kept slot that was left longest ago, other than `beside`."""
        kept = [
            (held.left_at, number)
            for number, held in enumerate(self.holdings)
            if held.tokens and not held.busy and number != beside
        ]
        return min(kept)[1] if kept else None

    def _hand_out(self, slot: int, tokens: list[int], owner: str | None) -> None:
        if slot == len(self.holdings):
            self.holdings.append(Holding())
        held = self.holdings[slot]
        held.tokens, held.owner, held.busy = tokens, owner, True


def shared_prefix(one: list[int], other: list[int]) -> int:
    """How many tokens two lists have in common from their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        # By halves, since slices are compared many times faster than tokens one by one.
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
