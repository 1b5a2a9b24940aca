"""The time that a stage is said to take."""

import logging

import pytest


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` lets so much time pass."""
    from sae import progress

    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_the_first_batch_is_spent_and_sets_no_pace(clock):
    from sae.progress import Estimate

    estimate = Estimate(100)
    clock(20)  # compiles
    assert estimate.after(10) is None
    clock(2)
    assert estimate.after(20) is None  # too short to tell
    clock(2)
    assert estimate.after(30) == pytest.approx(20 + 9 * 2)
    clock(2)
    assert estimate.after(40) is None  # once


def test_a_stage_says_how_long_it_will_take(clock, caplog):
    from sae.progress import progress

    caplog.set_level(logging.INFO)
    with progress("harvest", 1_000_000) as advance:
        for _ in range(4):
            clock(4)
            advance(10_000)
    said = [r.getMessage() for r in caplog.records if "about" in r.getMessage()]
    assert said == ["harvest: 1,000,000 tokens, about 6.7 min"]


def test_what_was_done_before_takes_no_time(clock, caplog):
    from sae.progress import progress

    caplog.set_level(logging.INFO)
    with progress("harvest", 1000, done=900) as advance:
        for _ in range(2):
            clock(4)
            advance(10)
    assert "harvest: 1,000 tokens, about 40 s" in caplog.text


def test_the_end_of_a_slow_stage_is_told_once(clock, caplog):
    from sae.progress import progress

    caplog.set_level(logging.INFO)
    with progress("harvest", 20) as advance:
        for _ in range(2):
            clock(40)
            advance(10)
    assert caplog.text.count("harvest: 10 of 20") == 1
    assert caplog.text.count("harvest: 20 of 20") == 1


@pytest.mark.parametrize(("seconds", "rate"), [(0.5, "6"), (0.001, "3,000"), (40, "0.075")])
def test_slow_stages_have_a_rate_above_zero(clock, caplog, seconds, rate):
    from sae.progress import progress

    caplog.set_level(logging.INFO)
    with progress("fit", 3, "fits") as advance:
        clock(seconds)
        advance(3)
    assert f"3 of 3 fits, {rate} fits/s" in caplog.text
