"""Rounds of `rrtf-bench table`: what is timed, what is asked, what is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_models import write_tokenizer

from benchmarks import table_rounds
from benchmarks.table_children import ChildFailedError
from benchmarks.table_rounds import CodePrompts, Job, Measured, Rounds, Work, figure, fit_together, step_ms


def test_steps_are_counted_where_all_rows_decode() -> None:
    # One row: from the first token to the last.
    assert step_ms([[1.0, 1.1, 1.2, 1.3]]) == pytest.approx(100)
    # Rows of one step that are noticed microseconds apart make the same figure.
    late = [[at + 2e-6 for at in row] for row in [[1.0, 1.1, 1.2, 1.3]]]
    assert step_ms([[1.0, 1.1, 1.2, 1.3], *late]) == pytest.approx(100, rel=1e-3)
    # The second row is read in while the first decodes: those steps of another kind do not count.
    assert step_ms([[1.0, 1.5, 1.6, 1.7, 1.8], [1.5, 1.6, 1.7, 1.8, 1.9]]) == pytest.approx(100)


def test_tokens_that_come_all_at_once_are_not_timed() -> None:
    assert step_ms([[1.0, 1.0, 1.0]]) is None
    assert step_ms([[1.0, 1.1], [2.0, 2.1]]) is None
    answers = [[[1.0] * 3], [[1.0] * 3], [[1.0, 1.2, 1.4]]]

    class Late:
        def generate(self, prompts: list[list[int]], most: int) -> list[dict[str, list[float]]]:
            return [{"at": row} for row in answers.pop(0)]

    work = Work(prefill=4, batches=(1,), prompt=4, new_tokens=3)
    late: Any = Late()
    assert figure(late, CodePrompts(list(range(50))), work, "1", 0) == pytest.approx(200)
    answers += [[[1.0] * 3]] * 5
    with pytest.raises(ChildFailedError, match="all at once, too fast to be timed"):
        figure(late, CodePrompts(list(range(50))), work, "1", 0)
    answers += [[[1.0, 1.1]]]
    with pytest.raises(ChildFailedError, match="made 2 of 3 tokens"):
        figure(late, CodePrompts(list(range(50))), work, "1", 0)


def test_no_prompt_comes_twice(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    prompts = CodePrompts.load(tmp_path)
    work = Work(prefill=96, batches=(1, 4), prompt=16, new_tokens=4)
    asked = [
        tuple(prompt)
        for turn in range(-1, 4)
        for task in work.tasks
        for prompt in prompts.of(work, task, turn)
    ]
    assert len(asked) == 5 * (1 + 1 + 4) and len(set(asked)) == len(asked)
    assert {len(prompt) for prompt in asked} == {96, 16}
    assert prompts.of(work, "4", 2) == prompts.of(work, "4", 2)
    assert max(prompts.ids) < 120


def test_a_short_pool_wraps_around() -> None:
    work = Work(prefill=8, batches=(2,), prompt=4, new_tokens=3)
    assert CodePrompts(list(range(10))).of(work, "2", 0) == [[4, 5, 6, 7], [8, 9, 0, 1]]


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"prefill": 0}, "--prefill"),
        ({"new_tokens": 2}, "--new-tokens is 2"),
        ({"batches": ()}, "--batches"),
        ({"batches": (0,)}, "--batches"),
        ({"batches": (4, 4)}, "--batches"),
    ],
)
def test_wrong_work_names_the_flag(options: dict[str, int | tuple[int, ...]], flag: str) -> None:
    with pytest.raises(ValueError, match=flag):
        replace(Work(), **options)


def test_rounds_are_kept_for_their_own_settings_only(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, {"threads": 1, "machine": {"cores": "2"}})
    rounds.of("a").rounds.append({"1": 10.0})
    rounds.save()
    again = Rounds(tmp_path, {"threads": 1, "machine": {"cores": "2"}})
    assert again.of("a").rounds == [{"1": 10.0}]
    with pytest.raises(ValueError, match=r"figures of another machine; give another folder"):
        Rounds(tmp_path, {"threads": 1, "machine": {"cores": "4"}})
    assert [path.name for path in tmp_path.iterdir()] == ["rounds.json"]


def test_a_failed_row_is_tried_again_only_while_nothing_is_paired(tmp_path: Path) -> None:
    rounds = Rounds(tmp_path, {})
    rounds.of("lacking").failed = "no memory"
    rounds.save()
    assert Rounds(tmp_path, {}).of("lacking").failed is None
    rounds.of("good").rounds.append({"1": 10.0})
    rounds.save()
    assert Rounds(tmp_path, {}).of("lacking").failed == "no memory"


def job(name: str, peak_mb: float, failed: str | None = None) -> Job:
    alone = {"peak_mb": peak_mb, "device_mb": None}
    return Job(name, {}, "python", CodePrompts([1]), 0, Measured(alone=alone, failed=failed))


def test_all_stay_loaded_only_where_their_peaks_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_rounds, "available_memory", lambda: 10_000_000_000)
    assert fit_together([job("a", 4000), job("b", 4900)])
    assert not fit_together([job("a", 4000), job("b", 5100)])
    assert fit_together([job("a", 4000), job("b", 5100, failed="killed")])
