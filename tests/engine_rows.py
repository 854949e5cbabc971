"""Tiny torch engines, and what their batches give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rrtf_serve.engine.protocol import Delta, Engine, Request, Sampling
from rrtf_serve.engine.torch.engine import TorchEngine

GREEDY = Sampling(temperature=0)
NO_END: frozenset[int] = frozenset()


def open_engine(folder: Path, **options: Any) -> TorchEngine:
    return TorchEngine(folder, **{"context_length": 128, "threads": 1, "device": "cpu", **options})


def collect(engine: Engine, requests: list[Request]) -> list[list[Delta]]:
    """Each row's deltas; checks what holds for every batch."""
    batch = engine.start(requests)
    rows: list[list[Delta]] = [[] for _ in requests]
    try:
        while deltas := batch.step():
            for delta in deltas:
                rows[delta.row].append(delta)
        assert batch.step() == []
    finally:
        batch.close()
    for row in rows:
        assert [delta.finish for delta in row[:-1]] == [None] * (len(row) - 1)
        assert row[-1].finish is not None
        assert all(delta.token is not None for delta in row[:-1])
    return rows


def tokens(row: list[Delta]) -> list[int]:
    return [delta.token for delta in row if delta.token is not None]


def answers(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [tokens(row) for row in collect(engine, requests)]
