import csv
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from callbacks.metrics_csv import MetricsCSV
from sae.errors import ArtifactError

NAMES = ["train/loss", "train/fvu", "val/fvu", "val/ce_recovered_zero", "test/fvu"]


def log_all(table, events):
    for step, metrics in events:
        table.log_metrics(metrics, step=step)


@st.composite
def event_lists(draw):
    """(step, metrics) in the order of training; several calls may share a step."""
    steps = sorted(draw(st.lists(st.integers(0, 12), max_size=25)))
    cells = st.dictionaries(
        st.sampled_from([*NAMES, "tokens", "epoch"]),
        st.one_of(st.floats(), st.none(), st.integers(-3, 10**12)),
        max_size=4,
    )
    return [(step, draw(cells)) for step in steps]


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(events=event_lists(), data=st.data())
def test_a_killed_and_resumed_table_is_byte_identical(events, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    log_all(whole := MetricsCSV(folder / "whole.csv"), events)

    def logged_by(step):
        return sum(event[0] <= step for event in events)

    path, checkpoint, checksum = folder / "killed.csv", -1, None
    for _ in range(3):
        table = MetricsCSV(path, checkpoint if path.exists() else None, checksum)
        done = logged_by(checkpoint)
        checkpoint = data.draw(st.integers(checkpoint, 12))  # then the run goes on, and is killed
        killed = data.draw(st.integers(logged_by(checkpoint), len(events)))
        log_all(table, events[done : logged_by(checkpoint)])
        checksum = table.checksum
        log_all(table, events[logged_by(checkpoint) : killed])
        if data.draw(st.booleans()) and max(table._rows, default=-1) > checkpoint:
            path.write_bytes(path.read_bytes()[:-1])  # in the middle of writing a line
    table = MetricsCSV(path, checkpoint if path.exists() else None, checksum)
    log_all(table, events[logged_by(checkpoint) :])
    assert (path.read_bytes() if path.exists() else b"step,tokens\n") == (
        whole.path.read_bytes() if whole.path.exists() else b"step,tokens\n"
    )


@pytest.mark.parametrize("resume_step", range(0, 60, 7))
def test_truncation_equals_a_run_that_ended_there(tmp_path, resume_step):
    generator = random.Random(0)
    events = []
    for step in range(1, 60):
        events.append((step, {"train/loss": generator.random(), "tokens": step * 64.0}))
        if step % 10 == 0:
            events.append((step, {"val/fvu": generator.random(), "tokens": step * 64.0}))
        if step % 25 == 0:
            events.append((step, {f"val/late_{step}": generator.random()}))
    long = MetricsCSV(tmp_path / "long.csv")
    log_all(long, events)
    MetricsCSV(long.path, resume_step=resume_step)
    short = MetricsCSV(tmp_path / "short.csv")
    log_all(short, [event for event in events if event[0] <= resume_step])
    header = b"step,tokens\n"
    assert long.path.read_bytes() == (short.path.read_bytes() if resume_step else header)


def test_rows_merge_and_columns_keep_their_order(tmp_path):
    table = MetricsCSV(tmp_path / "m.csv")
    table.log_metrics({"b": 1.0, "epoch": 0, "tokens": 20_000_001.0}, step=3)
    table.log_metrics({"a": 0.1 + 0.2}, step=3)
    table.log_metrics({"b": 1e-30}, step=7)
    table.log_metrics({"late": 4}, step=3)
    assert table.path.read_text() == (
        "step,tokens,b,a,late\n3,20000001,1.0,0.30000000000000004,4.0\n7,,1e-30,,\n"
    )


def test_every_call_is_on_disk_and_a_plain_step_appends(tmp_path, monkeypatch):
    table = MetricsCSV(tmp_path / "m.csv")
    table.log_metrics({"x": 1.0}, step=1)
    monkeypatch.setattr(table, "_rewrite", lambda: pytest.fail("rewrote the whole file"))
    for step in range(2, 50):
        table.log_metrics({"x": float(step)}, step=step)
        table.log_metrics({"x": -0.5}, step=step)  # shorter or longer than before
        with table.path.open() as file:
            *_, last = csv.reader(file)
        assert last == [str(step), "", "-0.5"]


def test_a_new_run_never_destroys_an_old_table(tmp_path):
    (tmp_path / "m.csv").write_text("step,tokens,x\n1,,2.0\n")
    with pytest.raises(ArtifactError, match="resume_step"):
        MetricsCSV(tmp_path / "m.csv")
    (tmp_path / "other.csv").write_text("name,age\nada,36\n")
    with pytest.raises(ArtifactError, match="not a table of metrics"):
        MetricsCSV(tmp_path / "other.csv", resume_step=3)
    (tmp_path / "empty.csv").write_text("")
    MetricsCSV(tmp_path / "empty.csv", resume_step=3).log_metrics({"x": 1}, step=4)
    assert (tmp_path / "empty.csv").read_text() == "step,tokens,x\n4,,1.0\n"


def test_damaged_curves_are_told_when_the_run_goes_on(tmp_path):
    """Each flip or cut is an error that names the file, or is in what is dropped anyway."""
    file, generator = tmp_path / "metrics.csv", random.Random(0)
    table = MetricsCSV(file)
    for step in range(1, 20):
        table.log_metrics({"train/loss": 1 / step, "tokens": 64 * step}, step)
    checksum, kept = table.checksum, file.read_bytes()
    table.log_metrics({"val/fvu": 0.5}, step=20)
    whole, told = file.read_bytes(), 0
    for _ in range(300):
        harmed = bytearray(whole)
        harmed[generator.randrange(len(whole))] ^= 1 << generator.randrange(8)
        file.write_bytes(harmed[: generator.choice([None, generator.randrange(len(whole))])])
        try:
            MetricsCSV(file, 19, checksum)
        except ArtifactError as error:
            assert "metrics.csv" in str(error)  # noqa: PT017
            told += 1
        else:
            assert file.read_bytes() == kept
    assert told > 250
    file.unlink()  # the remedy
    MetricsCSV(file, 19, checksum).log_metrics({"train/loss": 0.1}, step=20)
    assert file.read_text() == "step,tokens,train/loss\n20,,0.1\n"
