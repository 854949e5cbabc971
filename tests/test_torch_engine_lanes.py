"""Interactive rows in a batch of the torch engine: read in first, with a share of the batch for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from engine_rows import GREEDY, NO_END, answers, open_engine, tokens
from tiny_models import write_hf

from rrtf_serve.engine.load import Share
from rrtf_serve.engine.protocol import Capabilities, Delta, Request
from rrtf_serve.engine.torch import batch as batches

LONG = Request(tuple((7 * at) % 120 for at in range(100)), 5, NO_END, GREEDY)
TYPED = Request((3, 8, 5), 4, NO_END, GREEDY, interactive=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("qwen2") / "qwen2", "qwen2")


def alone(folder: Path, request: Request) -> list[int]:
    engine = open_engine(folder, kv_cache_tokens=0)
    answer = answers(engine, [request])[0]
    engine.close()
    return answer


def finish(batch: batches.TorchBatch, rows: dict[int, list[Delta]]) -> list[int]:
    """Step to the end; the rows in the order in which they had their first token."""
    while deltas := batch.step():
        for delta in deltas:
            rows.setdefault(delta.row, []).append(delta)
    batch.close()
    return list(rows)


def test_an_interactive_row_is_read_in_the_midst_of_a_long_prompt(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 16)
    engine = open_engine(folder)
    batch = engine.start([LONG])
    assert batch.move() is None  # a piece was read
    assert batch.move() is None
    number = batch.admit([TYPED])
    deltas = batch.move()
    assert deltas is not None
    assert [delta.row for delta in deltas] == [number]
    rows = {number: list(deltas)}
    finish(batch, rows)
    assert tokens(rows[number]) == alone(folder, TYPED)
    assert tokens(rows[0]) == alone(folder, LONG)
    engine.close()


def test_a_full_batch_keeps_a_share_for_interactive_rows(folder: Path) -> None:
    engine = open_engine(folder, max_batch=8)
    assert (engine.capabilities.interactive_rows, engine.capabilities.interactive_tokens) == (2, 4096)
    chats = [Request((5 + row, 9), 20, NO_END, GREEDY) for row in range(9)]
    batch = engine.start(chats)
    rows: dict[int, list[Delta]] = {}
    while len(rows) < 6:
        for delta in batch.step():
            rows.setdefault(delta.row, []).append(delta)
    typed = [replace(TYPED, prompt=(row, 1)) for row in (3, 4, 5)]
    first = batch.admit(typed)
    order = finish(batch, rows)
    assert sorted(order[:6]) == [0, 1, 2, 3, 4, 5]
    assert order[6:9] == [first, first + 1, first + 2]  # before the three chats that wait
    for number, request in enumerate([*chats, *typed]):
        assert tokens(rows[number]) == alone(folder, request)
    engine.close()


def test_small_batches_keep_nothing_and_rows_enter_in_order(folder: Path) -> None:
    engine = open_engine(folder, max_batch=2)
    assert (engine.capabilities.interactive_rows, engine.capabilities.interactive_tokens) == (0, 0)
    batch = engine.start([replace(LONG, prompt=(row, 2)) for row in range(4)])
    typed = batch.admit([TYPED])
    rows: dict[int, list[Delta]] = {}
    assert finish(batch, rows)[-1] == typed
    engine.close()


def test_an_interactive_row_that_is_cancelled_while_it_is_read_leaves_the_long_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "PREFILL_TOKENS", 16)
    engine = open_engine(folder)
    batch = engine.start([LONG])
    assert batch.move() is None
    number = batch.admit([replace(TYPED, prompt=LONG.prompt[::-1])])
    assert batch.move() is None
    batch.cancel(number)
    rows: dict[int, list[Delta]] = {}
    finish(batch, rows)
    assert [delta.finish for delta in rows[number]] == ["cancelled"]
    assert tokens(rows[0]) == alone(folder, LONG)
    engine.close()


LIMITS = Capabilities(1000, 8, 0, 0, max_batch_tokens=1000, interactive_rows=2, interactive_tokens=250)


@pytest.mark.parametrize(
    ("running", "interactive", "tokens", "long_waits", "admitted"),
    [
        ([], False, [5000] * 9, False, True),  # into what is empty anything may go
        ([(False, 1000)], True, [250], True, True),  # the share is there whatever runs
        ([(False, 1000)], True, [251], False, False),
        ([(False, 100)], True, [251], False, True),  # more only while nothing long waits
        ([(False, 100)], True, [251], True, False),
        ([(True, 10)] * 2, True, [10], True, False),
        ([(True, 10)] * 2, True, [10], False, True),
        ([(True, 10)] * 8, True, [10], False, False),
        ([(False, 10)] * 5, False, [10], False, True),
        ([(False, 10)] * 6, False, [10], False, False),
        ([(False, 700)], False, [50], False, True),
        ([(False, 700)], False, [51], False, False),
        ([(True, 100)] * 2, False, [900], False, True),  # the first long one
        ([(True, 100)] * 3, False, [900], False, False),  # which waits until interactive ones keep to theirs
        ([(True, 100)] * 3, False, [700], False, True),
    ],
)
def test_who_may_join(
    running: list[tuple[bool, int]], interactive: bool, tokens: list[int], long_waits: bool, admitted: bool
) -> None:
    assert Share(LIMITS, running).admits(interactive, tokens, long_waits=long_waits) is admitted
