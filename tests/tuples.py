"""Tuples and encoded tuples for the training tests, from a seed."""

from __future__ import annotations

import random
from pathlib import Path

from rrtf_serve.problems.prompts import Prompt
from training.encoding import Encoded
from training.records import Candidate, Pair, Tuple, write_tuples


def encoded(seed: int, answers: int = 3, *, low: int = 3, high: int = 119) -> Encoded:
    """Random ids, the first answer ranked above all others."""
    chance = random.Random(seed)

    def ids(least: int, most: int) -> tuple[int, ...]:
        return tuple(chance.randrange(low, high) for _ in range(chance.randint(least, most)))

    pairs = tuple(Pair(0, at, round(chance.uniform(0.1, 1), 3)) for at in range(1, answers))
    return Encoded(f"t/{seed}", ids(2, 12), tuple(ids(1, 9) for _ in range(answers)), pairs, 0)


def text_tuple(number: int, rejected: int = 2) -> Tuple:
    """A plain completion problem whose texts the tiny models' tokenizer knows."""
    chance = random.Random(number)

    def text() -> str:
        return "".join(chance.choice("abcdefgh +\n") for _ in range(chance.randint(3, 20))) + "x"

    good = Candidate("reference", "teacher", text(), "ALL_PASS", 3, 3, 1.0)
    bad = [
        Candidate("student", "student", text(), "SOME_FAIL", at, 3, 0.4 + 0.1 * at) for at in range(rejected)
    ]
    pairs = tuple(Pair(0, at, 1.0 - each.score) for at, each in enumerate(bad, 1))
    return Tuple(
        f"T/{number}", "made", Prompt("completion", text=f"def f{number}():"), (good, *bad), pairs, 0
    )


def write_made(path: Path, count: int) -> Path:
    """A file of `count` tuples, every third without pairs."""
    write_tuples(path, [text_tuple(number, rejected=number % 3) for number in range(count)])
    return path
