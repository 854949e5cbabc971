"""Rows that decode together: each enters when there is room and leaves when it ends.

Active rows hold the slots 0, 1, ... in order. Rows that wait are read in (prefill) one after another, before
the next decode step; rows with the same prompt are read once. A row that ends gives its slot to the last one.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from rrtf_serve.engine.protocol import Delta, EngineError
from rrtf_serve.engine.torch.choice import choose, logprobs
from rrtf_serve.engine.torch.decoder import Decoder
from rrtf_serve.engine.torch.rows import Row

# Prompt tokens read at a time: a cancelled row is let go between two pieces.
PREFILL_TOKENS = 512


class Loaded:
    """Holds the one reference to the decoder, and keeps those who use it apart."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder: Decoder | None = decoder
        self.lock = threading.Lock()  # held during each forward pass
        self.running: weakref.WeakSet[TorchBatch] = weakref.WeakSet()

    def get(self) -> Decoder:
        if self._decoder is None:
            raise EngineError("the engine is closed")
        return self._decoder

    def drop(self) -> None:
        for batch in list(self.running):
            batch.close()
        with self.lock:
            self._decoder = None


class TorchBatch:
    """`step` and `close` belong to one thread, `cancel` to any; an engine's `close` may come from another.

    max_rows: rows that decode at once. max_tokens: tokens that these may come to hold, all together.
    """

    def __init__(self, loaded: Loaded, rows: Sequence[Row], *, max_rows: int, max_tokens: int) -> None:
        self._loaded = loaded
        self._rows = list(rows)
        self._waiting = deque(rows)
        self._active: list[Row] = []
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._slots = loaded.get().new_slots()
        loaded.running.add(self)

    @torch.inference_mode()
    def step(self) -> list[Delta]:
        while True:
            deltas = self._let_go()
            if deltas or not (self._waiting or self._active):
                return deltas
            try:
                deltas = self._enter() if self._fits() else self._decode()
            except (RuntimeError, MemoryError) as error:
                self._end()
                raise EngineError(f"decoding failed: {error}") from error
            if deltas:
                return deltas

    def cancel(self, row: int) -> None:
        self._rows[row].cancelled = True

    def close(self) -> None:
        for row in self._rows:
            row.cancelled = True
        with self._loaded.lock:  # a forward pass on another thread
            self._loaded.running.discard(self)

    def _end(self) -> None:
        self._waiting.clear()
        self._active.clear()
        self._slots.clear()

    def _let_go(self) -> list[Delta]:
        """Rows that were cancelled leave."""
        gone = [row for row in (*self._active, *self._waiting) if row.cancelled]
        if gone:
            self._waiting = deque(row for row in self._waiting if not row.cancelled)
            self._leave([row for row in self._active if row.cancelled])
        return [Delta(row.number, None, "cancelled") for row in gone]

    def _fits(self) -> bool:
        """Whether the row that waits first can enter now. The first of all always can."""
        if not self._waiting or len(self._active) >= self._max_rows:
            return False
        needed = sum(row.needs for row in (*self._active, self._waiting[0]))
        return not self._active or needed <= self._max_tokens

    def _enter(self) -> list[Delta]:
        """Read in the row that waits first, and those with the same prompt that fit beside it."""
        row = self._waiting.popleft()
        logits = self._prefill(row)
        if logits is None:
            return [Delta(row.number, None, "cancelled")]
        slot = len(self._active)
        entered = [row]
        self._active.append(row)
        for twin in [each for each in self._waiting if each.prompt == row.prompt]:
            if not self._fits():
                break
            self._waiting.remove(twin)
            self._slots.reserve(len(self._active) + 1, len(twin.prompt))
            self._slots.copy(slot, len(self._active), len(twin.prompt))
            self._active.append(twin)
            entered.append(twin)
        return self._advance(entered, logits.expand(len(entered), -1))

    def _prefill(self, row: Row) -> Tensor | None:
        """Logits after the row's prompt, [1, V]; None where it was cancelled meanwhile."""
        logits: Tensor | None = None
        for start in range(0, len(row.prompt), PREFILL_TOKENS):
            piece = row.prompt[start : start + PREFILL_TOKENS]
            with self._loaded.lock:
                if row.cancelled:
                    return None
                logits = self._loaded.get().prefill(list(piece), self._slots, len(self._active), start)
        return logits

    def _decode(self) -> list[Delta]:
        rows = list(self._active)
        with self._loaded.lock:
            if any(row.cancelled for row in rows):
                return []  # perhaps the engine was closed; `step` finds out
            logits = self._loaded.get().decode(
                [row.made[-1] for row in rows],
                self._slots,
                list(range(len(rows))),
                [row.held for row in rows],
            )
        return self._advance(rows, logits)

    def _advance(self, rows: list[Row], logits: Tensor) -> list[Delta]:
        """Each row goes on by a token; those that end leave. logits: [R, V]."""
        tokens = choose(logits, rows)
        records = logprobs(logits, tokens, [row.sampling.logprobs for row in rows])
        deltas = [row.take(token, record) for row, token, record in zip(rows, tokens, records, strict=True)]
        self._leave([row for row, delta in zip(rows, deltas, strict=True) if delta.finish is not None])
        return deltas

    def _leave(self, rows: list[Row]) -> None:
        for row in rows:
            place = self._active.index(row)
            last = self._active.pop()
            if last is not row:
                self._slots.copy(len(self._active), place, last.held)
                self._active[place] = last
        if not self._active and not self._waiting:
            self._slots.clear()
