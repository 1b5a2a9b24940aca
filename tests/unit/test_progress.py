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
    for count in (15, 20, 25):  # two windows of four seconds, of one pace
        clock(2)
        assert estimate.after(count) is None
    clock(2)
    assert estimate.after(30) == pytest.approx(20 + 18 * 2)
    clock(9)
    assert estimate.after(40) is None  # once


def test_later_batches_that_compile_set_no_pace(clock):
    from sae.progress import Estimate

    estimate = Estimate(1000)
    estimate.after(1)
    clock(4)
    assert estimate.after(11) is None  # mostly compiled
    for count in (51, 91):
        clock(4)
        found = estimate.after(count)
    assert found == pytest.approx(12 + 909 * 0.1)


def test_a_pace_that_keeps_changing_is_told_in_the_end(clock):
    from sae.progress import Estimate

    estimate = Estimate(1000)
    said = []
    for count in (10, 20, 50, 60, 90, 100):
        said.append(estimate.after(count))
        clock(5)
    assert said[:3] == [None] * 3
    assert said[3] == pytest.approx(15 + 940 * 0.5)
    assert said[4:] == [None] * 2


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
        for _ in range(3):
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
