"""Rows that decode together: each enters when there is room and leaves when it ends.

A row that enters is read in (prefill) in pieces. While others decode, at most GAP_TOKENS are read between two
of their steps. Rows with the same prompt and owner are read once; what a slot holds of a prompt is not read
again (see `shelf`). Interactive rows are read in before long ones, in the midst of their prompts if need be,
and have a share of the batch (see `load.Share`).
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque

import torch
from torch import Tensor

from rrtf_serve.engine.checks import check_request
from rrtf_serve.engine.load import Share
from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, Request, RowsFailed
from rrtf_serve.engine.torch.choice import choose, logprobs
from rrtf_serve.engine.torch.opening import AnyDecoder
from rrtf_serve.engine.torch.rows import Row, new_row
from rrtf_serve.engine.torch.shelf import Shelf

# Prompt tokens read at a time: a cancelled row is let go between two pieces.
PREFILL_TOKENS = 512
# Prompt tokens read between two steps of rows that decode. A piece takes about as long as two steps (0.5B in
# bfloat16, one thread: 277 ms against 140; pieces of 512 would take 911 and save a fifth per token).
GAP_TOKENS = 128
NOT_FINITE = (
    "the model's output holds NaN or infinity; its weights are damaged, or too large for the type "
    "it computes in: try --dtype bfloat16 or float32, or fetch or convert the model again"
)
# What a shorter pass counts for: it takes half as long as one over GAP_TOKENS, as it reads all weights too.
_PASS_TOKENS = 64


class Loaded:
    """Holds the one reference to the decoder and its slots, and keeps those who use them apart."""

    def __init__(self, decoder: AnyDecoder, shelf: Shelf) -> None:
        self._parts: tuple[AnyDecoder, Shelf] | None = (decoder, shelf)
        self.lock = threading.Lock()  # held while the decoder or the shelf is used
        self.running: weakref.WeakSet[TorchBatch] = weakref.WeakSet()
        atexit.register(self.drop)  # no pass may run while the interpreter goes

    def get(self) -> tuple[AnyDecoder, Shelf]:
        if self._parts is None:
            raise EngineError("the engine is closed")
        return self._parts

    @property
    def shelf(self) -> Shelf | None:
        """None once it was dropped."""
        return self._parts[1] if self._parts is not None else None

    def drop(self) -> None:
        """Stop what runs, wait for the pass that is under way, and free the model. Idempotent."""
        self.let_go()
        with self.lock:
            atexit.unregister(self.drop)

    def let_go(self) -> None:
        """As `drop`, without waiting: a pass that is under way ends with what it has. For the garbage
        collector, in whose hands a lock could wait for its own thread."""
        for batch in list(self.running):
            batch.stop()
        self._parts = None


class TorchBatch:
    """`admit`, `step`, `move` and `close` belong to one thread, `cancel` and `stop` to any."""

    def __init__(self, loaded: Loaded, limits: Capabilities) -> None:
        self._loaded = loaded
        self._limits = limits
        self._next = 0  # number of the next row
        self._rows: dict[int, Row] = {}  # that have not ended
        self._waiting: deque[Row] = deque()
        self._reading: list[Row] = []  # one of each kind at most
        self._active: list[Row] = []
        self._gap = 0  # prompt tokens that may be read before the next decode step
        self._failed: RowsFailed | None = None  # of the last pass, to be told of
        loaded.running.add(self)

    def admit(self, requests: list[Request]) -> int:
        """See AdmittingBatch.admit. Rows that don't fit yet enter as others leave."""
        if not requests:
            raise ValueError("no requests: a batch needs at least one row")
        vocabulary = self._loaded.get()[0].vocabulary
        for request in requests:
            check_request(request, self._limits, vocabulary)
        first = self._next
        for number, request in enumerate(requests, first):
            row = new_row(number, request, context=self._limits.max_context, vocabulary=vocabulary)
            self._rows[number] = row
            self._waiting.append(row)
        self._next += len(requests)
        return first

    def step(self) -> list[Delta]:
        while (deltas := self.move()) is None:
            pass
        return deltas

    @torch.inference_mode()
    def move(self) -> list[Delta] | None:
        """See AdmittingBatch.move."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed
        deltas = self._let_go()
        if deltas or not self._rows:
            return deltas
        return self._read_or_decode() or None

    def cancel(self, row: int) -> None:
        found = self._rows.get(row)
        if found is not None:
            found.cancelled = True

    def stop(self) -> None:
        """Cancel every row."""
        for row in list(self._rows.values()):
            row.cancelled = True

    def close(self) -> None:
        self.stop()
        self._leave(list(self._rows.values()))
        self._loaded.running.discard(self)

    def _let_go(self) -> list[Delta]:
        """Rows that were cancelled leave."""
        gone = [row for row in self._rows.values() if row.cancelled]
        self._leave(gone)
        return [Delta(row.number, None, "cancelled") for row in gone]

    def _read_or_decode(self) -> list[Delta]:
        row = self._next_to_read()
        if row is None or (self._active and self._gap <= 0):
            return self._decode()
        return self._read(row)

    def _next_to_read(self) -> Row | None:
        kinds: tuple[bool | None, ...] = (True, False) if self._limits.interactive_rows else (None,)
        for kind in kinds:
            row = next((each for each in self._reading if kind in (None, each.interactive)), None)
            if row is not None:
                return row
            row = next((each for each in self._waiting if kind in (None, each.interactive)), None)
            if row is not None and self._fits(row):
                self._waiting.remove(row)
                self._reading.append(row)
                return row
        return None

    def _fits(self, row: Row) -> bool:
        """Whether a row that waits can enter now. The first of all always can."""
        share = Share(self._limits, ((each.interactive, each.needs) for each in self._reading + self._active))
        long_waits = any(not each.interactive for each in self._waiting)
        return share.admits(row.interactive, [row.needs], long_waits=long_waits)

    def _read(self, row: Row) -> list[Delta]:
        """Read in a piece of a row's prompt; after the last it decodes."""
        with self._loaded.lock:
            if row.cancelled:
                return []  # perhaps the engine was closed; `step` finds out
            decoder, shelf = self._loaded.get()
            try:
                if row.slot is None:
                    row.slot, row.read = shelf.take(row.prompt, row.owner)
                size = min(PREFILL_TOKENS, self._gap) if self._active else PREFILL_TOKENS
                piece = list(row.prompt[row.read : row.read + size])
                logits = decoder.prefill(piece, shelf.slots, row.slot, row.read)
            except (RuntimeError, MemoryError) as error:
                raise self._failure([row], error) from error
            shelf.extend(row.slot, piece)
            row.read += len(piece)
            self._gap -= max(len(piece), _PASS_TOKENS)
            if row.read < len(row.prompt):
                return []
            self._reading.remove(row)
            self._active.append(row)
            entered = [row, *self._twins(row, row.slot, shelf)]
        return self._advance(entered, logits.expand(len(entered), -1))

    def _twins(self, row: Row, slot: int, shelf: Shelf) -> list[Row]:
        """Rows that wait with the same prompt, and fit, get a copy of what was read."""
        found: list[Row] = []
        for twin in [each for each in self._waiting if (each.prompt, each.owner) == (row.prompt, row.owner)]:
            if not self._fits(twin):
                break
            try:
                twin.slot = shelf.twin(slot)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                break  # they stay where they were, to be read one by one
            self._waiting.remove(twin)
            self._active.append(twin)
            twin.read = len(twin.prompt)
            found.append(twin)
        return found

    def _decode(self) -> list[Delta]:
        with self._loaded.lock:
            rows = list(self._active)
            if any(row.cancelled for row in rows):
                return []  # as in _read
            decoder, shelf = self._loaded.get()
            places = [row.slot for row in rows if row.slot is not None]
            tokens = [row.made[-1] for row in rows]
            try:
                logits = decoder.decode(tokens, shelf.slots, places, [row.held for row in rows])
            except (RuntimeError, MemoryError) as error:
                # Where memory ends, the row that takes most of it goes; the others try again without it.
                longest = [max(rows, key=lambda row: row.held)]
                raise self._failure(longest if is_out_of_memory(error) else rows, error) from error
            for place, token in zip(places, tokens, strict=True):
                shelf.extend(place, [token])
            self._gap = GAP_TOKENS
        return self._advance(rows, logits)

    def _advance(self, rows: list[Row], logits: Tensor) -> list[Delta]:
        """Each row goes on by a token; those that end leave. logits: [R, V]."""
        try:
            chosen = choose(logits, rows)
            lost = [row for row, token in zip(rows, chosen, strict=True) if token is None]
            if lost:
                sound = [at for at, token in enumerate(chosen) if token is not None]
                rows, logits = [rows[at] for at in sound], logits[sound]
                with self._loaded.lock:
                    self._failed = self._failure(lost, ArithmeticError(NOT_FINITE))
            tokens = [token for token in chosen if token is not None]
            records = logprobs(logits, tokens, [row.sampling.logprobs for row in rows])
        except (RuntimeError, MemoryError) as error:
            with self._loaded.lock:
                raise self._failure(rows, error) from error
        deltas = [row.take(token, record) for row, token, record in zip(rows, tokens, records, strict=True)]
        self._leave([row for row, delta in zip(rows, deltas, strict=True) if delta.finish is not None])
        return deltas

    def _leave(self, rows: list[Row]) -> None:
        if not rows:
            return
        self._forget(rows)
        with self._loaded.lock:
            shelf = self._loaded.shelf
            for row in rows:
                if row.slot is not None and shelf is not None:
                    shelf.leave(row.slot)

    def _failure(self, rows: list[Row], error: Exception) -> RowsFailed:
        """Take rows out whose slots hold nobody knows what; the error that tells of it. Under the lock."""
        shelf = self._loaded.shelf
        memory = is_out_of_memory(error)
        for row in rows:
            if row.slot is not None and shelf is not None:
                shelf.drop(row.slot)
        if memory and shelf is not None:
            shelf.empty()
        self._forget(rows)
        held = sum(len(row.prompt) + len(row.made) for row in rows)
        what = (
            f"out of memory at {held} tokens: ask for fewer, or start the server with a smaller --max-batch, "
            f"--kv-cache-tokens or --context-length ({error})"
            if memory
            else f"decoding failed: {error}"
        )
        return RowsFailed(what, frozenset(row.number for row in rows))

    def _forget(self, rows: list[Row]) -> None:
        gone = {row.number for row in rows}
        for number in gone:
            self._rows.pop(number, None)
        self._waiting = deque(row for row in self._waiting if row.number not in gone)
        self._active = [row for row in self._active if row.number not in gone]
        self._reading = [row for row in self._reading if row.number not in gone]


def is_out_of_memory(error: Exception) -> bool:
    """torch has a class for it on GPUs only; its CPU allocator says so in words."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("not enough memory", "DefaultCPUAllocator", "out of memory")
    )
