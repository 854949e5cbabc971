"""Slots and the shelf without a model: what each slot holds is held against what it should hold."""

from __future__ import annotations

import hashlib
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rrtf_serve.engine.torch.pages import Pages
from rrtf_serve.engine.torch.shelf import Shelf, shared_prefix
from rrtf_serve.engine.torch.slots import Slots

LAYERS, HEADS, WIDTH = 2, 1, 4
KEPT, MOST = 24, 5  # tokens kept, slots
CPU = torch.device("cpu")
OWNERS = (None, "a", "b")
# Few tokens, so that prompts often begin alike.
PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=14)


def slots_of(dtype: torch.dtype = torch.float32) -> Slots:
    return Slots(LAYERS, HEADS, WIDTH, dtype=dtype, device=CPU)


def mark(owner: str | None, tokens: Sequence[int], layer: int) -> torch.Tensor:
    """What a model would write for the last of these tokens: it depends on all of them. [1, WIDTH]"""
    digest = hashlib.sha256(repr((owner, list(tokens), layer)).encode()).digest()
    return torch.tensor([list(digest[:WIDTH])], dtype=torch.float32) + 1


def write(slots: Slots, slot: int, owner: str | None, tokens: list[int], new: int) -> None:
    """As a decoder does: the last `new` of the tokens."""
    start = len(tokens) - new
    slots.extend([slot], [start], new)
    for layer in range(LAYERS):
        for at in range(start, len(tokens)):
            slots.keys(layer)[slot, at] = mark(owner, tokens[: at + 1], layer)
            slots.values(layer)[slot, at] = -mark(owner, tokens[: at + 1], layer)


class Shelves(RuleBasedStateMachine):
    """Rows come, read, decode and go; `rows` and `left` say what every slot should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = slots_of()
        self.shelf = Shelf(self.slots, max_kept=KEPT, max_slots=MOST)
        self.rows: dict[int, tuple[str | None, list[int], int]] = {}  # slot: owner, tokens, how many are read
        self.left: list[tuple[str | None, list[int]]] = []  # what rows left, whether it is still there or not

    @precondition(lambda self: len(self.rows) < MOST - 2)
    @rule(prompt=PROMPTS, owner=st.sampled_from(OWNERS))
    def enter(self, prompt: list[int], owner: str | None) -> None:
        nearest = max(
            (
                shared_prefix(held.tokens, prompt[:-1])
                for held in self.shelf.holdings
                if held.owner == owner and held.tokens
            ),
            default=0,
        )
        slot, shared = self.shelf.take(prompt, owner)
        assert slot not in self.rows
        assert shared == nearest
        # Nothing comes out of nowhere: somebody of this owner had read just these tokens.
        known = [*self.left, *((mine, tokens[:read]) for mine, tokens, read in self.rows.values())]
        assert not shared or any(
            mine == owner and tokens[:shared] == prompt[:shared] for mine, tokens in known
        )
        self.rows[slot] = owner, list(prompt), shared

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), count=st.integers(1, 6), new=st.integers(0, 1))
    def read(self, data: st.DataObject, count: int, new: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        owner, tokens, read = self.rows[slot]
        if read == len(tokens):
            tokens = [*tokens, new]
        stop = min(read + count, len(tokens))
        write(self.slots, slot, owner, tokens[:stop], stop - read)
        self.shelf.extend(slot, tokens[read:stop])
        self.rows[slot] = owner, tokens, stop

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), half_written=st.booleans())
    def leave(self, data: st.DataObject, half_written: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        owner, tokens, read = self.rows.pop(slot)
        if half_written:  # a pass that failed: never noted
            write(self.slots, slot, owner, [*tokens[:read], 1], 1)
        self.left.append((owner, tokens[:read]))
        self.shelf.leave(slot)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        self.rows.pop(slot)
        self.shelf.drop(slot)

    @precondition(lambda self: self.rows and len(self.rows) < MOST - 2)
    @rule(data=st.data())
    def split(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        owner, tokens, read = self.rows[slot]
        other = self.shelf.twin(slot)
        assert other not in self.rows
        self.rows[other] = owner, list(tokens), read

    @rule()
    def empty(self) -> None:
        self.shelf.empty()
        assert self.shelf.kept_tokens == 0

    @invariant()
    def slots_hold_what_is_said(self) -> None:
        assert self.shelf.kept_tokens <= KEPT
        assert self.slots.count >= len(self.shelf.holdings)
        assert len(self.shelf.holdings) <= MOST
        assert {slot for slot, held in enumerate(self.shelf.holdings) if held.busy} == set(self.rows)
        for slot, held in enumerate(self.shelf.holdings):
            if slot in self.rows:
                owner, tokens, read = self.rows[slot]
                assert (held.owner, held.tokens) == (owner, tokens[:read])
            elif held.tokens:
                assert any(
                    owner == held.owner and tokens[: len(held.tokens)] == held.tokens
                    for owner, tokens in self.left
                )
            assert self.slots.filled(slot) == len(held.tokens)
            for layer in range(LAYERS):
                for store, sign in ((self.slots.keys(layer), 1), (self.slots.values(layer), -1)):
                    for at in range(len(held.tokens)):
                        expected = sign * mark(held.owner, held.tokens[: at + 1], layer)
                        assert torch.equal(store[slot, at], expected)
                    assert not store[slot, len(held.tokens) :].any()


Shelves.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestShelves = Shelves.TestCase


def held_by(shelf: Shelf, prompt: list[int], owner: str | None = None) -> int:
    """A row with this prompt comes, reads it and leaves; how much of it needn't be read."""
    slot, shared = shelf.take(prompt, owner)
    write(shelf.slots, slot, owner, prompt, len(prompt) - shared)
    shelf.extend(slot, prompt[shared:])
    shelf.leave(slot)
    return shared


def test_the_slot_left_longest_ago_goes_first() -> None:
    shelf = Shelf(slots_of(), max_kept=12, max_slots=8)
    for first in (10, 20, 30):
        assert held_by(shelf, [first, 1, 2, 3]) == 0
    assert held_by(shelf, [10, 1, 2, 3]) == 3  # used again: 20 is the oldest now
    assert held_by(shelf, [40, 1, 2, 3]) == 0
    assert shelf.kept_tokens == 12
    assert held_by(shelf, [10, 1, 2, 9]) == 3
    assert held_by(shelf, [20, 1, 2, 9]) == 0


def test_a_long_conversation_outlives_a_short_question_that_begins_alike() -> None:
    shelf = Shelf(slots_of(), max_kept=100, max_slots=8)
    conversation = list(range(40))
    held_by(shelf, conversation)
    assert held_by(shelf, [*range(5), 70]) == 5
    assert held_by(shelf, [*conversation, 80]) == 40
    # What is the beginning of something longer is kept once.
    assert shelf.kept_tokens == 41 + 6


def test_a_running_rows_prefix_is_copied_and_an_owners_alone() -> None:
    shelf = Shelf(slots_of(), max_kept=100, max_slots=8)
    prompt = list(range(10))
    slot, _ = shelf.take(prompt, "a")
    write(shelf.slots, slot, "a", prompt, 10)
    shelf.extend(slot, prompt)
    for owner, shared in (("b", 0), (None, 0), ("a", 9)):
        other, found = shelf.take(prompt, owner)
        assert (other != slot, found) == (True, shared)


def test_what_is_too_long_is_kept_in_part_and_nothing_where_nothing_is_to_be_kept() -> None:
    shelf = Shelf(slots_of(), max_kept=6, max_slots=8)
    held_by(shelf, list(range(10)))
    assert held_by(shelf, list(range(10))) == 6
    none = Shelf(slots_of(), max_kept=0, max_slots=8)
    assert [held_by(none, list(range(10))) for _ in range(3)] == [0, 0, 0]
    slot, _ = none.take([1, 2, 3], None)
    write(none.slots, slot, None, [1, 2, 3], 3)
    none.extend(slot, [1, 2, 3])
    assert none.take([1, 2, 3], None)[1] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_store_grows_without_losing_what_it_holds(dtype: torch.dtype) -> None:
    slots = slots_of(dtype)
    slots.extend([1], [0], 3)
    for layer in range(LAYERS):
        slots.keys(layer)[1, :3] = 1 + layer
        slots.values(layer)[1, :3] = -1
    slots.extend([5, 1], [0, 3], 200)
    assert (slots.count >= 6, slots.length >= 203) == (True, True)
    for layer in range(LAYERS):
        assert slots.keys(layer).dtype == dtype
        assert slots.keys(layer)[1, :3].unique().tolist() == [1 + layer]
        assert not slots.keys(layer)[1, 3:].any()
        assert slots.values(layer)[1, :3].unique().tolist() == [-1]
        assert slots.values(layer)[0].eq(0).all()
        assert slots.keys(layer).stride()[2:] == (WIDTH, 1)
    assert slots.bytes_per_token == 2 * LAYERS * WIDTH * dtype.itemsize
    slots.clear()
    assert (slots.count, slots.length, slots.keys(0).nbytes) == (0, 0, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is taken at once")
def test_memory_is_taken_where_it_is_written_and_given_back() -> None:
    shape = (16, 65_536, 64)
    before = resident_mb()
    pages = Pages(shape, torch.float32, CPU)  # 268 MB
    assert resident_mb() - before < 20
    pages.tensor[3, 100:30_100] = 1  # 8 MB
    assert 6 < resident_mb() - before < 30
    pages.clear(pages.tensor[3, 101:30_100])
    assert resident_mb() - before < 4
    assert pages.tensor[3, 100].eq(1).all()
    assert not pages.tensor[3, 101:].any()
    assert pages.tensor.sum() == 64


def test_too_large_a_store_is_a_memory_error_and_leaves_the_old_one() -> None:
    slots = slots_of()
    slots.extend([0], [0], 2)
    slots.keys(0)[0, :2] = 7
    with pytest.raises((MemoryError, RuntimeError), match="memory"):
        slots.reserve(1 << 30, 1 << 24)
    assert slots.keys(0)[0, :2].eq(7).all()
    assert (slots.filled(0), slots.length) == (2, 128)


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [([], [], 0), ([1], [], 0), ([1], [2], 0), ([1, 2], [1, 2], 2), ([1, 2, 3, 4], [1, 2, 9, 4, 5], 2)],
)
def test_shared_prefixes(one: list[int], other: list[int], shared: int) -> None:
    assert shared_prefix(one, other) == shared_prefix(other, one) == shared
