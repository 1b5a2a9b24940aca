"""Members take turns, share one reader, and do not harm each other."""

import threading
from functools import partial

import pytest
import torch

from sae.activations.datamodule import ActivationDataModule
from sae.activations.folder import TensorActivations
from sae.lockstep import lockstep
from sae.sharing import Stopped, sharing
from sae.training.baselines import fit_baseline

STOP = 6


class Reader:
    """A stream of the numbers up to STOP; notes where it is started and what it made."""

    def __init__(self, fails_at=None, error=OSError):
        self.starts, self.made, self.closed = [], [], 0
        self.fails_at, self.error = fails_at, error

    def __call__(self, start):
        self.starts.append(start)
        try:
            for item in range(start, STOP):
                if item == self.fails_at:
                    raise self.error("bad item")
                self.made.append(item)
                yield item
        finally:
            self.closed += 1


def collect(reader, start=0, events=None, until=STOP):
    seen = []
    for item in sharing().stream("items", start, reader):
        seen.append(item)
        if events is not None:
            events.append((sharing().name, item))
        if item == until:
            raise ValueError("gave up")
    return seen


def test_all_see_every_item_of_one_reader_and_take_turns():
    reader, events = Reader(), []
    seen = lockstep({name: partial(collect, reader, events=events) for name in "abc"})
    assert seen == dict.fromkeys("abc", list(range(STOP)))
    assert reader.starts == [0]
    assert reader.made == list(range(STOP))
    assert events == [(name, item) for item in range(STOP) for name in "abc"]


def test_exactly_one_runs_at_any_time():
    inside, most = [], []

    def member():
        for _ in sharing().stream("items", 0, Reader()):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.001)
            inside.pop()

    lockstep({name: member for name in "abcd"})
    assert set(most) == {1}
    assert len(most) == 4 * STOP


def test_who_is_ahead_waits_for_who_is_behind():
    reader, events = Reader(), []
    starts = {"late": 0, "ahead": 4, "between": 2}
    seen = lockstep({n: partial(collect, reader, s, events) for n, s in starts.items()})
    assert seen == {name: list(range(start, STOP)) for name, start in starts.items()}
    assert reader.starts == [0]
    assert [item for _, item in events] == sorted(item for _, item in events)


def test_early_ends_and_errors_leave_the_others_alone():
    reader, results = Reader(), {}

    def whole():
        results["whole"] = collect(reader)

    def finished():
        return "nothing to do"

    with pytest.raises(ExceptionGroup, match="members of a lockstep") as caught:
        lockstep({"failing": partial(collect, reader, until=2), "f": finished, "w": whole})
    assert [str(error) for error in caught.value.exceptions] == ["gave up"]
    assert results["whole"] == list(range(STOP))
    assert reader.starts == [0]


def test_an_error_of_the_reader_reaches_every_member():
    with pytest.raises(ExceptionGroup) as caught:
        lockstep({name: partial(collect, Reader(fails_at=3)) for name in "ab"})
    assert [type(error) for error in caught.value.exceptions] == [OSError, OSError]


def test_an_interrupt_stops_all_members_where_they_wait():
    threads, reader, stopped = (
        threading.active_count(),
        Reader(fails_at=3, error=KeyboardInterrupt),
        [],
    )

    def member():
        try:
            collect(reader)
        except Stopped as error:
            stopped.append((sharing().name, error.between))
            raise

    with pytest.raises(KeyboardInterrupt):
        lockstep({"a": member, "b": member})
    assert stopped == [("a", True), ("b", True)]
    assert threading.active_count() == threads
    assert reader.closed == 1


def test_single_values_are_made_once_for_those_who_ask_in_the_same_turn():
    made, kept, reader = [], [], Reader()

    def note(where, item):
        where.append(item)
        return [item]

    def member(asks_at):
        got = []
        for item in sharing().stream("items", 0, reader):
            sharing().once("kept", partial(note, kept, item))
            if item in asks_at:
                got.append(sharing().value(("sample", item), partial(note, made, item)))
        return got

    got = lockstep({"a": lambda: member({1, 3}), "b": lambda: member({3}), "c": lambda: member({})})
    assert got == {"a": [[1], [3]], "b": [[3]], "c": []}
    assert got["a"][1] is got["b"][0]
    assert made == [1, 3]
    assert kept == [0]
    assert reader.starts == [0]


def test_meeting_waits_for_all():
    events = []

    def member():
        for _ in sharing().stream("items", 0, Reader()):
            events.append("item")
        sharing().meet()
        events.append("after")

    lockstep({name: member for name in "abc"})
    assert events == ["item"] * 3 * STOP + ["after"] * 3


def test_streams_of_other_keys_are_apart():
    readers = {"a": Reader(), "b": Reader()}
    seen = lockstep(
        {name: lambda name=name: list(sharing().stream(name, 2, readers[name])) for name in readers}
    )
    assert seen == dict.fromkeys("ab", list(range(2, STOP)))
    assert [reader.starts for reader in readers.values()] == [[2], [2]]


def test_alone_everything_is_what_it_would_be_without():
    reader = Reader()
    assert list(sharing().stream("items", 3, reader)) == [3, 4, 5]
    assert [sharing().once("x", partial(int, text)) for text in "01"] == [0, 1]
    assert sharing().value("x", lambda: 7) == 7
    assert sharing().meet() is None
    assert sharing().name is None
    assert reader.closed == 1


def test_two_members_that_want_the_same_costly_fit_share_it(cache):
    """The second one waits for a lock; the first one must not wait for the second one."""
    x = torch.randn(600, 4, generator=torch.Generator().manual_seed(0)).exp()
    data = ActivationDataModule(TensorActivations(x), batch_size=64)
    results = {}

    def fit(k):
        return fit_baseline({"sae": {"architecture": "ica", "k": k}}, data)[0].config.k

    def both():
        results.update(lockstep({f"k={k}": partial(fit, k) for k in (1, 2)}))

    running = threading.Thread(target=both, daemon=True)
    running.start()
    running.join(60)
    assert results == {"k=1": 1, "k=2": 2}
