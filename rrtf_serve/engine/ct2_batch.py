"""One batch on CTranslate2: rows that decode together, and the calls of generate_batch that they need."""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

import ctranslate2
import numpy as np
from numpy.typing import NDArray

from rrtf_serve.engine.heap import trim_memory
from rrtf_serve.engine.logprobs import log_softmax, token_logprob
from rrtf_serve.engine.protocol import Capabilities, Delta, EngineError, FinishReason, Sampling, TokenLogprob

LOGITS_BYTES = 256 * 2**20  # what one call may hold in logits, whether scoring or generating
# Tokens by which prompts of one call may differ: each one beyond the shortest costs a whole decode step.
PROMPT_SPREAD = 16
LONG_PREFILL = 256  # prompt tokens in a call; from here on a prefill leaves 100 MB and more behind
# Division by less than this makes every token but the best one impossible in float32.
GREEDY_BELOW = 1e-4
# With top_p so many of the best tokens are candidates. CTranslate2 refuses more on CUDA; on CPU it sorts them
# all at each step: 20 to 30 ms for 150,000 tokens, nearly as long as a step of the 0.5B model.
TOP_P_TOKENS = 8192
_NO_TOKEN = 2**31 - 1


class Loaded:
    """Holds the one reference to the generator and to the batches that run on it."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._lock = threading.Lock()  # of `_running`: batches begin and end on several threads
        self._running: weakref.WeakSet[Ct2Batch] = weakref.WeakSet()

    def get(self) -> Any:
        if self._generator is None:
            raise EngineError("the engine is closed")
        return self._generator

    def enter(self, batch: Ct2Batch) -> None:
        self.get()  # raises when closed
        with self._lock:
            self._running.add(batch)

    def leave(self, batch: Ct2Batch) -> None:
        with self._lock:
            self._running.discard(batch)

    def drop(self) -> None:
        with self._lock:
            running = list(self._running)
        for batch in running:
            batch.close()
        # The last reference. CTranslate2 joins its threads here; after the interpreter's end it would abort.
        self._generator = None


@dataclass(slots=True, eq=False)
class Row:
    number: int
    prompt: list[int]  # grows by what each leg made
    left: int  # tokens that it may still make
    least: int  # tokens that it must still make before an end token counts
    end_ids: frozenset[int]
    cancelled: bool = False
    ended: bool = False
    first: int = 0  # the leg's step at which its first new token comes
    made: list[int] = field(default_factory=list)  # in this leg


class Ct2Batch:
    """Rows that decode together. `step` and `close` belong to one thread; `cancel` to any."""

    def __init__(
        self,
        loaded: Loaded,
        vocabulary: list[str],
        rows: list[Row],
        legs: list[list[Row]],
        sampling: Sampling,
    ) -> None:
        self._loaded = loaded
        self._vocabulary = vocabulary
        self._rows = rows
        self._sampling = sampling
        self._queue: SimpleQueue[list[Delta] | EngineError | None] = SimpleQueue()
        self._finished = False
        self._max_steps = steps_in_memory(sampling, len(vocabulary))
        self._legs = deque(legs)
        loaded.enter(self)
        self._thread = threading.Thread(target=self._run, name="ct2-batch", daemon=True)
        self._thread.start()

    def step(self) -> list[Delta]:
        if self._finished:
            return []
        item = self._queue.get()
        deltas: list[Delta] = []
        while True:
            if isinstance(item, EngineError):
                self._finished = True
                raise item
            if item is None:
                self._finished = True
                return deltas
            deltas += item
            try:
                item = self._queue.get_nowait()
            except Empty:
                return deltas

    def cancel(self, row: int) -> None:
        self._rows[row].cancelled = True

    def close(self) -> None:
        for row in self._rows:
            row.cancelled = True
        self._thread.join()
        self._loaded.leave(self)

    def _run(self) -> None:
        try:
            while self._legs:
                rows = self._legs.popleft()
                self._skip_cancelled(rows)
                rows = [row for row in rows if not row.ended]
                if not rows:
                    continue
                leg = _Leg(rows, self._sampling, self._queue, max(1, self._max_steps // len(rows)))
                leg.run(self._loaded.get(), self._vocabulary)
                unfinished = [row for row in rows if not row.ended]
                if unfinished:
                    self._legs.appendleft(unfinished)
        except Exception as error:  # whatever it is, the one who waits in step() must hear of it
            failure = EngineError(f"decoding failed: {error}")
            failure.__cause__ = error
            self._queue.put(failure)
        else:
            self._queue.put(None)
        trim_memory()

    def _skip_cancelled(self, rows: list[Row]) -> None:
        for row in rows:
            if row.cancelled and not row.ended:
                row.ended = True
                self._queue.put([Delta(row.number, None, "cancelled")])


class _Leg:
    """One call of generate_batch."""

    def __init__(
        self,
        rows: list[Row],
        sampling: Sampling,
        queue: SimpleQueue[list[Delta] | EngineError | None],
        max_steps: int,
    ) -> None:
        self._rows = rows
        self._sampling = sampling
        self._queue = queue
        self._max_steps = max_steps
        shortest = min(len(row.prompt) for row in rows)
        for row in rows:
            row.first = len(row.prompt) - shortest
            row.made = []
        self._step = -1
        self._at = 0.0  # when this step's tokens were there
        self._expected = 0  # callbacks still to come in this step
        self._pending: list[Delta] = []
        self._logprobs: NDArray[np.float32] | None = None  # [rows of this step, V]
        self._position = 0  # of the next callback's row in _logprobs

    def run(self, generator: Any, vocabulary: list[str]) -> None:
        rows, sampling = self._rows, self._sampling
        least = rows[0].least  # equal in all rows, see partition
        # No token can be less likely than all others: up to 1/V top_p keeps the best one alone. CTranslate2
        # refuses a top_p that is 0 in float32.
        best_alone = sampling.top_k == 1 or sampling.top_p * len(vocabulary) <= 1
        greedy = sampling.temperature < GREEDY_BELOW or best_alone
        generator.generate_batch(
            [[vocabulary[token] for token in row.prompt] for row in rows],
            include_prompt_in_result=False,
            max_length=max(row.left for row in rows) + PROMPT_SPREAD + 1,
            min_length=least,
            end_token=self._end_tokens(),
            repetition_penalty=sampling.repetition_penalty,
            sampling_topk=1 if greedy else _top_k(sampling, len(vocabulary)),
            sampling_topp=1.0 if greedy else sampling.top_p,
            sampling_temperature=1.0 if greedy else sampling.temperature,
            return_scores=sampling.logprobs is not None,
            return_logits_vocab=bool(sampling.logprobs),
            callback=self._moved,
        )
        self._flush()
        for row in rows:
            row.prompt += row.made

    def _end_tokens(self) -> list[int]:
        """What CTranslate2 is told. The callback ends rows anyway, but given none it takes the model's own.

        It writes to the logits of these tokens, unchecked, before the minimum length and while it feeds the
        rest of longer prompts. Only then must they be real ones, and all rows of the call share one then.
        """
        first = self._rows[0]
        if first.least:
            return sorted(first.end_ids)
        return [min(first.end_ids)] if any(row.first for row in self._rows) else [_NO_TOKEN]

    def _moved(self, result: Any) -> bool:
        """CTranslate2's callback, once per row and step; True ends the row."""
        row = self._rows[result.batch_id]
        step: int = result.step
        if step != self._step:
            self._begin(step, result)
        if (
            step < row.first
        ):  # a token of its own prompt, reported only when the shortest prompt has one token
            return self._cancelled(row)
        self._expected -= 1
        ended = self._cancelled(row) or self._advance(row, int(result.token_id), result)
        self._position += 1
        if not self._expected:
            self._flush()
        return ended or step + 1 == self._max_steps

    def _begin(self, step: int, result: Any) -> None:
        self._flush()
        if self._step < 0 and sum(len(row.prompt) for row in self._rows) >= LONG_PREFILL:
            trim_memory()  # what the prefill needed and the decoding doesn't
        self._step = step
        self._at = time.monotonic()
        self._expected = sum(not row.ended and row.first <= step for row in self._rows)
        if self._sampling.logprobs:
            # The first callback of a step carries the logits of all its rows, the others carry none.
            self._logprobs = log_softmax(to_numpy(result.logits))
            self._position = 0

    def _cancelled(self, row: Row) -> bool:
        if row.cancelled:
            self._end(row, None, "cancelled")
        return row.cancelled

    def _advance(self, row: Row, token: int, result: Any) -> bool:
        if token in row.end_ids and not row.least:
            self._end(row, None, "stop")
            return True
        logprob = self._logprob(token, result)
        row.made.append(token)
        row.left -= 1
        row.least = max(0, row.least - 1)
        if not row.left:
            self._end(row, token, "length", logprob)
            return True
        self._pending.append(Delta(row.number, token, None, logprob, self._at))
        return False

    def _logprob(self, token: int, result: Any) -> TokenLogprob | None:
        if self._sampling.logprobs is None:
            return None
        if self._logprobs is None:
            return TokenLogprob(token, float(result.log_prob))
        return token_logprob(self._logprobs[self._position], token, self._sampling.logprobs)

    def _end(
        self, row: Row, token: int | None, finish: FinishReason, logprob: TokenLogprob | None = None
    ) -> None:
        row.ended = True
        self._pending.append(Delta(row.number, token, finish, logprob, self._at))

    def _flush(self) -> None:
        if self._pending:
            self._queue.put(self._pending)
            self._pending = []


def partition(rows: list[Row], sampling: Sampling, limits: Capabilities, vocabulary: int) -> list[list[Row]]:
    """Rows that can share a call, in the order of their first row.

    Prompts of one length only where prompt tokens fed one by one would change the answer: they round
    differently in 8 or 16 bits (limits.prompt_spread), they would count for the repetition penalty and the
    minimum length, and they would shift the rows of the logits. Prompts of different length also need an end
    token in common, see _Leg._end_tokens.
    """
    max_rows = limits.max_batch
    if sampling.logprobs:
        # A leg costs a prefill, so it should last some steps; with a penalty it must last to the end.
        steps = max(row.left for row in rows) if sampling.repetition_penalty != 1 else 64
        max_rows = min(max_rows, max(1, steps_in_memory(sampling, vocabulary) // steps))
    alike = sampling.repetition_penalty != 1 or bool(sampling.logprobs)
    legs: list[list[Row]] = []
    open_legs: dict[tuple[int, frozenset[int]], list[Row]] = {}
    for row in sorted(rows, key=lambda row: len(row.prompt)):
        key = (row.least, row.end_ids if row.least else frozenset(sorted(row.end_ids)[:1]))
        spread = 0 if alike or row.least or not row.end_ids else limits.prompt_spread or 0
        leg = open_legs.get(key)
        if (
            leg is None
            or len(leg) == max_rows
            or len(row.prompt) - len(leg[0].prompt) > spread
            or sum(len(other.prompt) + other.left for other in [*leg, row]) > limits.max_batch_tokens
        ):
            leg = open_legs[key] = []
            legs.append(leg)
        leg.append(row)
    return sorted(legs, key=lambda leg: min(row.number for row in leg))


def _top_k(sampling: Sampling, vocabulary: int) -> int:
    top_k = min(sampling.top_k, vocabulary)
    if sampling.top_p < 1 and not 0 < top_k <= TOP_P_TOKENS:
        return min(TOP_P_TOKENS, vocabulary)
    return top_k


def steps_in_memory(sampling: Sampling, vocabulary: int) -> int:
    """Row-steps whose logits fit into LOGITS_BYTES; CTranslate2 keeps them all until the call returns."""
    return max(1, LOGITS_BYTES // (4 * vocabulary)) if sampling.logprobs else _NO_TOKEN


def to_numpy(storage: Any) -> NDArray[np.float32]:
    if storage.device != "cpu":
        storage = storage.to_device(ctranslate2.Device.cpu)
    if storage.dtype != ctranslate2.DataType.float32:
        storage = storage.to(ctranslate2.DataType.float32)
    return np.asarray(storage)
