"""One decode that was accepted, and everybody who listens to it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from rrtf_serve.engine.load import needs
from rrtf_serve.engine.protocol import Batch, Capabilities, Delta, Request
from rrtf_serve.engine.stream import Stream
from rrtf_serve.engine.ticket import Ticket


@dataclass(eq=False)
class Listener:
    """One submitter. open: the rows that have not ended for it."""

    stream: Stream
    ticket: Ticket
    prompts: tuple[tuple[int, ...], ...]
    open: set[int]
    submitted: float = field(default_factory=time.monotonic)
    heard: bool = False  # its first token came

    @property
    def late(self) -> bool:
        return self.ticket.deadline is not None and time.monotonic() >= self.ticket.deadline


@dataclass(eq=False)
class Job:
    """Rows that run together. Most have one listener; identical ones share a job, see `shared_key`."""

    requests: list[Request]
    interactive: bool
    owner: str | None
    tokens: int  # that its rows may come to hold
    key: tuple[object, ...] | None  # of what may share it; None: nobody
    listeners: list[Listener] = field(default_factory=list)
    alone: bool = False  # its batch was refused; run by itself to find out whose fault that was
    history: list[Delta] = field(default_factory=list)  # for who comes later; only where there is a key
    gone: set[int] = field(default_factory=set)  # rows that nobody wants any more
    batch: Batch | None = None  # that it runs in
    offset: int = 0  # of its first row in the batch
    moved: dict[int, float] = field(default_factory=dict)  # when each row's last token came
    made: dict[int, int] = field(default_factory=dict)  # tokens of each row

    @property
    def unwanted(self) -> bool:
        return len(self.gone) == len(self.requests)


def new_job(requests: list[Request], ticket: Ticket, limits: Capabilities) -> Job:
    """Raises ValueError where a row can never run."""
    sizes = [needs(request, limits) for request in requests]
    if max(sizes) > limits.max_batch_tokens:
        raise ValueError(
            f"the request needs {max(sizes)} tokens, prompt and completion together; the server runs "
            f"{limits.max_batch_tokens} at once at most: shorten the prompt or ask for a smaller max_tokens"
        )
    # Interactive is what leaves room for others of its kind; anything larger waits with the long ones.
    interactive = ticket.interactive and (
        not limits.interactive_rows
        or (len(requests) <= limits.interactive_rows and sum(sizes) <= limits.interactive_tokens)
    )
    rows = [replace(request, interactive=interactive) for request in requests] if interactive else requests
    return Job(rows, interactive, ticket.owner, sum(sizes), shared_key(requests, ticket, limits))


def shared_key(requests: list[Request], ticket: Ticket, limits: Capabilities) -> tuple[object, ...] | None:
    """Equal for jobs of one owner whose answers are the same whenever they are made; None for the others.

    Greedy ones are, and seeded ones where nothing else in a batch can change a row.
    """
    for request in requests:
        sampling = request.sampling
        greedy = sampling.temperature == 0 or sampling.top_k == 1
        if not greedy and (sampling.seed is None or not limits.independent_rows):
            return None
    return (ticket.owner, *(replace(request, interactive=False) for request in requests))
