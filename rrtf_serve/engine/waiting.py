"""What waits in one lane: bounded, and in turns between owners.

Each piece of work gets the place that it would have if all owners were served at equal speed, token by token
(start-time fair queueing: Goyal, Vin and Cheng, "Start-time Fair Queuing", SIGCOMM 1996). One owner's work so
keeps its order, a hundred jobs of one owner stand behind the first one of another, and a place once given is
passed by a bounded amount of work only.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from rrtf_serve.engine.stream import QueueFull

# Seconds after its last work for which an owner's share of the queue is kept from the others.
REMEMBERED = 60.0
HALF_LIFE = 30.0  # seconds, of what Pace remembers

Work = TypeVar("Work")


@dataclass(eq=False)
class _Place(Generic[Work]):
    work: Work
    owner: str | None
    tokens: int
    start: float  # virtual time: tokens per owner
    number: int


@dataclass(frozen=True)
class Bounds:
    """Of what waits in a lane. jobs: of all owners together; while several owners are about one of them gets
    three quarters of these places. tokens: prompts and completions."""

    jobs: int
    tokens: int

    @property
    def jobs_of_one(self) -> int:
        return max(1, self.jobs * 3 // 4)


@dataclass
class Pace:
    """How fast work ends lately, for Retry-After: in tokens, as jobs differ a thousandfold. Times are of
    time.monotonic(), in seconds."""

    # Of what ended, each half as much worth after HALF_LIFE; before anything has, a guess that soon is worth
    # nothing.
    tokens: float = 500.0
    seconds: float = 1.0
    since: float | None = None  # when the last work ended, or the next one began; None: nothing runs

    def begin(self, now: float) -> None:
        """Some work is taken."""
        if self.since is None:
            self.since = now

    def rest(self) -> None:
        """Nothing waits and nothing runs."""
        self.since = None

    def note_end(self, tokens: int, now: float) -> None:
        """Work of so many tokens has ended, as they were counted when it was put."""
        passed = 0.0 if self.since is None else now - self.since
        kept = 0.5 ** (passed / HALF_LIFE)
        self.tokens = self.tokens * kept + tokens
        self.seconds = self.seconds * kept + passed
        self.since = now

    def seconds_for(self, tokens: float) -> float:
        return tokens * self.seconds / self.tokens


class Waiting(Generic[Work]):
    """Not safe between threads: whoever has it guards it."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._places: dict[int, _Place[Work]] = {}  # by id of the work
        self._finish: dict[str | None, float] = {}  # virtual time at which an owner's last work ends
        self._seen: dict[str | None, float] = {}
        self._clock = 0.0  # virtual time: the place of what was taken last
        self._number = 0
        self.tokens = 0
        self.pace = Pace()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, work: object) -> bool:
        return id(work) in self._places

    def __iter__(self) -> Iterator[Work]:
        """In turn."""
        ordered = sorted(self._places.values(), key=lambda place: (place.start, place.number))
        return iter([place.work for place in ordered])

    @property
    def first(self) -> Work:
        return min(self._places.values(), key=lambda place: (place.start, place.number)).work

    def check(self, owner: str | None, tokens: int, leaving: Collection[Work] = ()) -> None:
        """Raises QueueFull where `put` would once `leaving` don't wait any more; they may be none that do."""
        staying = [place for place in self._places.values() if place.work not in leaving]
        waiting, held = len(staying), sum(place.tokens for place in staying)
        now = time.monotonic()
        self._seen = {each: at for each, at in self._seen.items() if now - at < REMEMBERED}
        self._seen[owner] = now
        if waiting >= self._bounds.jobs:
            raise QueueFull(f"{waiting} requests are waiting", self._retry_after(waiting))
        if held + tokens > self._bounds.tokens:
            raise QueueFull(
                f"requests of {held} tokens are waiting, and at most {self._bounds.tokens} may",
                self._retry_after(waiting),
            )
        mine = sum(place.owner == owner for place in staying)
        if mine >= self._bounds.jobs_of_one and len(self._seen) > 1:
            raise QueueFull(f"{mine} of your requests are waiting", self._retry_after(mine))

    def put(self, work: Work, owner: str | None, tokens: int) -> None:
        """Raises QueueFull."""
        self.check(owner, tokens)
        start = max(self._clock, self._finish.get(owner, 0.0))
        self._enter(_Place(work, owner, tokens, start, self._number))
        self._finish[owner] = start + tokens
        self._number += 1

    def put_back(self, work: Work, owner: str | None, tokens: int) -> None:
        """What was taken and could not be started: before all others, and accounted for already."""
        first = min((place.start for place in self._places.values()), default=self._clock)
        self._enter(_Place(work, owner, tokens, min(first, self._clock), -self._number))
        self._number += 1

    def take(self, work: Work) -> None:
        """Its turn has come."""
        self.pace.begin(time.monotonic())
        place = self._leave(work)
        # Work may be taken past others, to run beside what is; the clock waits for those.
        behind = min((each.start for each in self._places.values()), default=place.start)
        self._clock = max(self._clock, min(place.start, behind))
        self._finish = {owner: end for owner, end in self._finish.items() if end > self._clock}

    def drop(self, work: Work) -> None:
        """Nobody wants it any more: its owner's later work moves up. No effect where it doesn't wait."""
        if work not in self:
            return
        gone = self._leave(work)
        for place in self._places.values():
            if place.owner == gone.owner and place.number > gone.number:
                place.start = max(self._clock, place.start - gone.tokens)
        if gone.owner in self._finish:
            self._finish[gone.owner] -= gone.tokens

    def _enter(self, place: _Place[Work]) -> None:
        self._places[id(place.work)] = place
        self.tokens += place.tokens

    def _leave(self, work: Work) -> _Place[Work]:
        place = self._places.pop(id(work))
        self.tokens -= place.tokens
        return place

    def _retry_after(self, waiting: int) -> float:
        """Seconds that so many of those that wait may take."""
        tokens = self.tokens * waiting / max(1, len(self._places))
        return min(60.0, max(1.0, self.pace.seconds_for(tokens)))
