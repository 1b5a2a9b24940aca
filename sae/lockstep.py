"""Functions that run in lockstep, one at a time, and share what all of them read.

Each member of a lockstep is an ordinary function in a thread of its own, and exactly one of them
runs at any moment: it runs until it asks for something that the others will ask for too (the next
batch), then the next one runs. When all wait, what they wait for is made ONCE, handed to each, and
let go. So members need no locks, do not know of each other, and compute what they would alone;
in memory there is one reader, whatever their number.

    lockstep({"a": lambda: train(one), "b": lambda: train(other)})

Outside of a lockstep `broadcast`, `shared`, `once` and `meet` do what their arguments do alone, so
that code which may run in one needs no second path.
"""

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")
_END, _STOP = object(), object()
_PATIENCE_SECONDS = 10.0


class Stopped(BaseException):
    """Raised in every member, where it waits, when the whole lockstep is interrupted.

    Args:
        between: Whether the member waits for the next item of a stream: its last step is done.
    """

    def __init__(self, between: bool) -> None:
        super().__init__()
        self.between = between


@dataclass(frozen=True)
class _Wish:
    """What a member waits for: item `step` of the stream `make(step)`, or the value `make()`."""

    key: Hashable
    make: Callable[..., Any]
    step: int | None = None


@dataclass(frozen=True)
class _Raise:
    error: BaseException


class _Member:
    """A function in a thread that runs while `go_on` waits for it, and at no other time."""

    def __init__(self, name: str, function: Callable[[], Any], kept: dict[Hashable, Any]):
        self.name, self.kept = name, kept
        self.wish: _Wish | None = None
        self.ended = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._turns: SimpleQueue[None] = SimpleQueue()
        # a daemon: one that runs on after an interrupt must not keep the process alive
        self._thread = Thread(target=self._work, args=(function,), name=name, daemon=True)

    def go_on(self, answer: Any = None) -> None:
        """Hand over what was wished for, and wait for the next wish or the end."""
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

    def _work(self, function: Callable[[], Any]) -> None:
        _member.set(self)
        try:
            self.result = function()
        except BaseException as error:  # raised again by `lockstep`, in its own thread
            self.error = error
        self.ended = True
        self._turns.put(None)


_member: ContextVar[_Member | None] = ContextVar("_member", default=None)


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
        ExceptionGroup: With what the failed ones raised, when all have ended.
        KeyboardInterrupt: After every member that waited has got a `Stopped`.

    Example:
        >>> def add(factor):
        ...     return sum(factor * item for item in broadcast("numbers", 0, numbers))
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
    return {member.name: member.result for member in everyone}


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


def broadcast(
    key: Hashable, start: int, make: Callable[[int], Iterator[T]]
) -> Generator[T, None, None]:
    """Yield items `start`, `start + 1`, … of a stream that all members read at the same time.

    Members that start at different items (runs that continue from different checkpoints) wait for
    the one that is furthest behind. The items are shared: nobody may write into them.

    Args:
        key: What tells this stream from others.
        start: First item.
        make: Iterates over the stream from a given item on.
    """
    member = _member.get()
    if member is None:
        yield from make(start)
        return
    step = start
    while (item := member.ask(_Wish(key, make, step))) is not _END:
        yield item
        step += 1


def shared(key: Hashable, make: Callable[[], T]) -> T:
    """A value made once for all members that ask for it between two items of their streams.

    It is not kept, and nobody may write into it.
    """
    member = _member.get()
    return make() if member is None else member.ask(_Wish(key, make))


def once(key: Hashable, make: Callable[[], T]) -> T:
    """A value made by the first member that asks, and kept until the lockstep ends."""
    member = _member.get()
    if member is None:
        return make()
    if key not in member.kept:
        member.kept[key] = make()
    return member.kept[key]


def meet() -> None:
    """Wait until every member waits."""
    shared("meeting", lambda: None)


def member_name() -> str | None:
    """Name of the member that runs; None outside of a lockstep."""
    member = _member.get()
    return None if member is None else member.name
