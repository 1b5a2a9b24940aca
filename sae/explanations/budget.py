"""Budget of the tokens that an LM reads and writes."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Budget:
    """Tokens that may be spent. Nobody begins new work once they are; begun work is finished.

    Args:
        tokens: Their number; by default there is no end to them.

    Example:
        >>> budget = Budget(100)
        >>> budget.spend(20)
        >>> with budget.part(0.25):
        ...     budget.left
        20
        >>> budget.left
        80
    """

    def __init__(self, tokens: int = sys.maxsize):
        self.spent = 0
        """Tokens that were read and written, or found in the cache."""
        self.advance: Callable[[int], object] = lambda _: None
        """Gets the number of tokens of each piece of work."""
        self._end = tokens

    @property
    def left(self) -> int:
        """Tokens that may still be spent."""
        return max(0, self._end - self.spent)

    def spend(self, tokens: int) -> None:
        """Count tokens."""
        self.spent += tokens
        self.advance(tokens)

    @contextmanager
    def part(self, share: float) -> Iterator[None]:
        """Allow what runs inside a share of what is left."""
        whole, self._end = self._end, self.spent + int(share * self.left)
        try:
            yield
        finally:
            self._end = whole
