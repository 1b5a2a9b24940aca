"""Values that trainings in one process share; a single training computes everything itself.

Code that may run beside others asks `sharing()`, and needs no second path for either case.
`sae.lockstep` answers it for several trainings; nobody else knows of that.
"""

from collections.abc import Callable, Generator, Hashable, Iterator
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


class Stopped(BaseException):
    """Raised in every training, where it waits, when all of them are interrupted.

    Args:
        between: True if it waits for the next item of a stream: its last step is done.
    """

    def __init__(self, between: bool) -> None:
        super().__init__()
        self.between = between


class Sharing:
    """A training that is alone.

    Attributes:
        name: Tells a training from those beside it; None: there are none.
    """

    name: str | None = None

    def stream(
        self, key: Hashable, start: int, make: Callable[[int], Iterator[T]]
    ) -> Generator[T, None, None]:
        """Yield items `start`, `start + 1`, … of a stream that all read at the same time.

        Those that start at different items (runs that continue from different checkpoints) wait
        for the one that is furthest behind. Items are shared: nobody may write into them.

        Args:
            key: Tells this stream from others.
            start: First item.
            make: Iterates over the stream from a given item on.
        """
        yield from make(start)

    def value(self, key: Hashable, make: Callable[[], T]) -> T:
        """A value made once for all that ask for it between two items of their streams.

        It is not kept, and nobody may write into it.
        """
        return make()

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """A value made by the first that asks, and kept until all have ended."""
        return make()

    def meet(self) -> None:
        """Wait until all trainings wait here, so that none measures while another trains."""
        self.value("meeting", lambda: None)


current: ContextVar[Sharing] = ContextVar("current", default=Sharing())  # noqa: B039
"""The answer of `sharing`; set by `sae.lockstep` in the threads of its members."""


def sharing() -> Sharing:
    """The object that shares values between the trainings of this process."""
    return current.get()
