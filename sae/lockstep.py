"""Functions that run in lockstep, one at a time, and share what all of them read.

Each member of a lockstep is an ordinary function in a thread of its own, and exactly one of them
runs at any moment: it runs until it asks for something that the others will ask for too (the next
batch), then the next one runs. When all wait, what they wait for is made ONCE, handed to each, and
let go. So members need no locks, do not know of each other, and compute what they would alone;
in memory there is one reader, whatever their number.

    lockstep({"a": lambda: train(one), "b": lambda: train(other)})

A member asks by `sae.sharing.sharing()`, as it does where it is alone.
"""

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from sae.sharing import Sharing, Stopped, current

T = TypeVar("T")
_END, _STOP = object(), object()
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True)
class _Wish:
    """A request of a member: item `step` of the stream `make(step)`, or the value `make()`."""

    key: Hashable
    make: Callable[..., Any]
    step: int | None = None


@dataclass(frozen=True)
class _Raise:
    error: BaseException


class _Member(Sharing):
    """A function in a thread that runs while `go_on` waits for it, and at no other time."""

    def __init__(self, name: str, function: Callable[[], Any], kept: dict[Hashable, Any]):
        self.name, self._kept = name, kept
        self.wish: _Wish | None = None
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._turns: SimpleQueue[None] = SimpleQueue()
        # a daemon: one that runs on after an interrupt must not keep the process alive
        self._thread = Thread(target=self._work, args=(function,), name=name, daemon=True)

    def go_on(self, answer: Any = None) -> None:
        """Resume the member with its answer; block until it asks again or ends."""
        self.wish = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._answers.put(answer)
        self._turns.get()

    def stop(self) -> None:
        """Raise `Stopped` where the member waits, or will wait next."""
        self._answers.put(_STOP)
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE_SECONDS)

    def ask(self, wish: _Wish) -> Any:
        """Called in the member's thread: wait for what is wished for."""
        self.wish = wish
        self._turns.put(None)
        answer = self._answers.get()
        if answer is _STOP:
            raise Stopped(between=wish.step is not None)
        if isinstance(answer, _Raise):
            raise answer.error
        return answer

    def stream(
        self, key: Hashable, start: int, make: Callable[[int], Iterator[T]]
    ) -> Generator[T, None, None]:
        """Yield the items that `_served` makes once for all members."""
        step = start
        while (item := self.ask(_Wish(key, make, step))) is not _END:
            yield item
            step += 1

    def value(self, key: Hashable, make: Callable[[], T]) -> T:
        """Wait for the value that `_served` makes once for all members that ask now."""
        return self.ask(_Wish(key, make))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Make the value, or take what an earlier member made."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def _work(self, function: Callable[[], Any]) -> None:
        current.set(self)
        try:
            self.result = function()
        except BaseException as error:  # raised again by `lockstep`, in its own thread
            self.error = error
        self.ended = True
        self._turns.put(None)


class _Stream:
    """A stream of items, started again where it is asked for another step than its next one."""

    def __init__(self) -> None:
        self._items: Iterator[Any] = iter(())
        self._next: int | None = None

    def item(self, step: int, make: Callable[[int], Iterator[Any]]) -> Any:
        if step != self._next:
            self.close()
            self._items = make(step)
        self._next = step + 1
        return next(self._items, _END)

    def close(self) -> None:
        if isinstance(self._items, Generator):
            self._items.close()


def lockstep(members: Mapping[str, Callable[[], T]]) -> dict[str, T]:
    """Run functions in lockstep until all have ended; one that fails does not stop the others.

    Args:
        members: Functions by the name that bars and log lines call them.

    Returns:
        What they returned.

    Raises:
        ExceptionGroup: If functions failed: their errors, once all have ended.
        KeyboardInterrupt: After every member that waited has got a `Stopped`.

    Example:
        >>> from sae.sharing import sharing
        >>> def add(factor):
        ...     return sum(factor * n for n in sharing().stream("numbers", 0, numbers))
        >>> def numbers(start):
        ...     made.append(start)
        ...     return iter(range(start, 4))
        >>> made = []
        >>> lockstep({"once": lambda: add(1), "twice": lambda: add(2)}), made
        ({'once': 6, 'twice': 12}, [0])
    """
    kept: dict[Hashable, Any] = {}
    running = everyone = [_Member(name, call, kept) for name, call in members.items()]
    streams: dict[Hashable, _Stream] = {}
    answers: dict[_Member, Any] = dict.fromkeys(running)
    try:
        while running:
            for member in [m for m in running if m in answers]:
                member.go_on(answers.pop(member))
            running = [member for member in running if not member.ended]
            answers = _served(running, streams)
    except BaseException:
        for member in running:
            member.stop()
        raise
    finally:
        for stream in streams.values():
            stream.close()
    failed = [member.error for member in everyone if member.error is not None]
    if failed:
        raise BaseExceptionGroup("members of a lockstep failed", failed)
    return {name: member.result for name, member in zip(members, everyone, strict=True)}


def _served(waiting: Sequence[_Member], streams: dict[Hashable, _Stream]) -> dict[_Member, Any]:
    """Make what the members wait for, each thing once; who is ahead in a stream waits longer.

    Single values come first: who asks for one is in the middle of a step.
    """
    chosen = [m for m in waiting if m.wish and m.wish.step is None] or waiting
    by_key: dict[Hashable, list[tuple[_Wish, _Member]]] = {}
    for member in chosen:
        assert member.wish is not None
        by_key.setdefault(member.wish.key, []).append((member.wish, member))
    answers: dict[_Member, Any] = {}
    for key, asking in by_key.items():
        wish = min((wish for wish, _ in asking), key=lambda wish: wish.step or 0)
        try:
            if wish.step is None:
                answer = wish.make()
            else:
                answer = streams.setdefault(key, _Stream()).item(wish.step, wish.make)
        except Exception as error:
            streams.pop(key, None)
            answer = _Raise(error)
        answers |= {member: answer for other, member in asking if other.step == wish.step}
    return answers
