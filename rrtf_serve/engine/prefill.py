"""How fast a model reads: measured once, when it has been loaded, before anybody else asks it anything."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from rrtf_serve.engine.protocol import Engine, Request, Sampling

SAMPLE_CODE = "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n\n\n"
_SIZES = (64, 256, 1024)  # tokens; a slow model has told enough with the first
_LONG_ENOUGH_S = 0.25
_AGAIN, _AGAIN_S = 3, 1.5  # the fastest of several counts, as long as they are quick
_OWNER = "prefill speed"  # nobody's requests find these prompts in an engine's memory


def prefill_speed(engine: Engine, text: Sequence[int]) -> float:
    """Tokens of prompt per second until a first token is there. Blocks for some tenths of a second, on a slow
    machine for some seconds. `text`: token ids, repeated as needed. Raises EngineError."""
    longest = engine.capabilities.max_context // 2
    _read(engine, text, 8, 0)  # the first run sets up threads and memory
    starts = itertools.count(1)
    tokens, seconds = 0, 0.0
    for size in _SIZES:
        tokens = min(size, longest)
        seconds = _read(engine, text, tokens, next(starts))
        if seconds >= _LONG_ENOUGH_S or tokens == longest:
            break
    # Whatever else the machine does while a server starts must not count for as long as that runs.
    begun = time.monotonic()
    for _ in range(_AGAIN):
        if time.monotonic() - begun > _AGAIN_S:
            break
        seconds = min(seconds, _read(engine, text, tokens, next(starts)))
    return tokens / max(seconds, 1e-6)


def _read(engine: Engine, text: Sequence[int], tokens: int, start: int) -> float:
    """Seconds for a prompt that begins unlike the others: an engine may remember beginnings."""
    repeated = [*text] * (1 + (tokens + start) // len(text))
    prompt = tuple(repeated[start : start + tokens])
    begun = time.monotonic()
    batch = engine.start([Request(prompt, 1, frozenset(), Sampling(temperature=0.0), owner=_OWNER)])
    try:
        while batch.step():
            pass
    finally:
        batch.close()
    return time.monotonic() - begun
