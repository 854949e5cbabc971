"""Windows of code that no quantisation was calibrated on, for `verify`: token ids of equal length.

The text is the held-out part of the running interpreter's standard library (see convert.calibration), never
evaluation data. The same interpreter, tokenizer, seed and sizes give the same windows; `digest` tells.
"""

from __future__ import annotations

import hashlib
import json
import platform
import random
from dataclasses import dataclass
from itertools import chain, zip_longest

from convert.calibration import standard_library_files
from rrtf_serve.models.tokens import Tokenizer


@dataclass(frozen=True)
class Window:
    """`ids` is one token longer than what is scored: each token but the last predicts the next."""

    document: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class HeldOut:
    windows: tuple[Window, ...]
    source: str
    digest: str  # SHA-256 of the windows' documents and ids

    @property
    def documents(self) -> int:
        return len({window.document for window in self.windows})


def window_count(tokens: int, length: int) -> int:
    """Windows of `length` that `tokens` positions fill. Raises ValueError naming the flag on fewer than two,
    which give no interval."""
    if length < 2:
        raise ValueError(f"--length is {length}; it must be at least 2")
    count = -(-tokens // length)
    if count < 2:
        raise ValueError(f"--tokens {tokens} is less than two windows of --length {length}; ask for more")
    return count


def held_out_windows(
    tokenizer: Tokenizer, *, tokens: int, length: int, seed: int, first: int | None = None
) -> HeldOut:
    """Windows of `length` scored positions each, `tokens` of them in all, rounded up to whole windows.

    Spread over as many documents as there are; the windows of one document do not overlap. `first`: an id put
    before every window, for models that begin with one. Raises ValueError, naming the flag, on sizes that the
    text can't serve.
    """
    count = window_count(tokens, length)
    random_ = random.Random(seed)
    taken = length + 1 - (first is not None)
    head = () if first is None else (first,)
    per_document = []
    for path in standard_library_files("held-out"):
        name = f"{path.parent.name}/{path.name}" if path.name.startswith("_") else path.name
        ids = tokenizer.encode(path.read_text("utf-8"), specials=False)
        blocks = [ids[at : at + taken] for at in range(0, len(ids) - taken + 1, taken)]
        random_.shuffle(blocks)
        per_document.append([Window(name, (*head, *block)) for block in blocks])
    random_.shuffle(per_document)
    # One of each document, then a second of each, ...
    found = [window for window in chain.from_iterable(zip_longest(*per_document)) if window is not None]
    if len(found) < count:
        raise ValueError(
            f"--tokens {tokens}: the held-out code gives {len(found) * length:,} with --length {length}; "
            "ask for fewer, or take a shorter length"
        )
    windows = tuple(found[:count])
    listed = json.dumps([[window.document, window.ids] for window in windows])
    return HeldOut(
        windows,
        f"standard library of CPython {platform.python_version()}, held-out part",
        hashlib.sha256(listed.encode()).hexdigest(),
    )
