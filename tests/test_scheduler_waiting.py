"""When a client that found the queue full is told to come again."""

from __future__ import annotations

import pytest

from rrtf_serve.engine.waiting import Pace


def test_a_long_job_says_nothing_of_the_short_ones_behind_it() -> None:
    pace = Pace()
    pace.begin(0.0)
    pace.note_end(1000, 64.0)  # 16 tokens a second
    assert pace.seconds_for(5 * 30) == pytest.approx(9.6, rel=0.2)
    for end in range(1, 6):
        pace.note_end(30, 64.0 + 1.9 * end)
        assert pace.seconds_for(5 * 30) == pytest.approx(9.6, rel=0.2)


def test_jobs_that_end_together_count_together() -> None:
    pace = Pace()
    pace.begin(0.0)
    for _ in range(10):
        pace.note_end(100, 100.0)
    assert pace.seconds_for(1000) == pytest.approx(100, rel=0.1)


def test_time_without_work_is_none_that_work_took() -> None:
    pace = Pace()
    pace.begin(0.0)
    pace.note_end(1000, 2.0)
    pace.rest()
    pace.begin(500.0)
    pace.note_end(1000, 502.0)
    assert pace.seconds_for(1000) == pytest.approx(2.0, rel=0.05)


def test_what_was_slow_long_ago_is_forgotten() -> None:
    pace = Pace()
    pace.begin(0.0)
    pace.note_end(100, 60.0)
    for second in range(1, 301):
        pace.note_end(100, 60.0 + second)
    assert pace.seconds_for(100) == pytest.approx(1.0, rel=0.05)
