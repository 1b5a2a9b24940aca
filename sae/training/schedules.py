"""Schedules as pure functions. A span is given in tokens or as a share of the run."""

from dataclasses import dataclass

from sae.errors import ConfigError


@dataclass(frozen=True)
class RunLength:
    """Length of a run: the schedules are shares of it.

    Attributes:
        steps: Optimiser steps.
        batch_size: Vectors per step, over all ranks; a vector is an LM token.
    """

    steps: int
    batch_size: int

    @property
    def tokens(self) -> int:
        """Vectors seen in the whole run."""
        return self.steps * self.batch_size

    def part(self, span: int | float | str, name: str) -> int:
        """Steps in a span (`span_tokens`)."""
        return round(span_tokens(span, self.tokens, name) / self.batch_size)


def span_tokens(span: int | float | str, total_tokens: int, name: str = "span") -> int:
    """Number of tokens that `span` means in a run over `total_tokens`.

    Args:
        span: A number of tokens (integral floats such as 2e6 are fine), or a share such as `"5%"`.
        total_tokens: Vectors seen in the whole run (rows times epochs).
        name: Name of the setting, for the error.

    Raises:
        ConfigError: If `span` is neither, or negative.

    Example:
        >>> span_tokens("5%", 2_000_000), span_tokens(1e6, 2_000_000)
        (100000, 1000000)
    """
    try:
        if isinstance(span, str) and span.strip().endswith("%"):
            tokens = float(span.strip()[:-1]) / 100 * total_tokens
        else:
            tokens = float(span)
    except (TypeError, ValueError):
        tokens = -1.0
    if isinstance(span, bool) or not 0 <= tokens < float("inf"):
        raise ConfigError(
            f"{name}={span!r} must be a number of tokens (200000, 2e6) or a share ('5%')."
        )
    return round(tokens)


def warmup(step: int, steps: int) -> float:
    """Linear rise from 0 (before the first step) to 1 over `steps`; step counts from 0.

    Example:
        >>> [warmup(step, 4) for step in range(5)], warmup(0, 0)
        ([0.25, 0.5, 0.75, 1.0, 1.0], 1.0)
    """
    return min(1.0, (step + 1) / steps) if steps > 0 else 1.0


def linear_decay(step: int, total_steps: int, decay_steps: int) -> float:
    """1 until the last `decay_steps`, then a linear fall that would reach 0 after the last step.

    Example:
        >>> [linear_decay(step, 6, 2) for step in range(6)]
        [1.0, 1.0, 1.0, 1.0, 1.0, 0.5]
    """
    return min(1.0, (total_steps - step) / decay_steps) if decay_steps > 0 else 1.0
