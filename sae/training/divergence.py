"""Signs that a training goes wrong: numbers that are not finite, an error that grows, silence.

Everything is looked at on the steps that are logged, with one wait for the device.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from sae.errors import DivergedError
from sae.training.ranks import mean_over_ranks

log = logging.getLogger(__name__)

WORST_FVU = 10.0
"""A reconstruction is as good as none from 1 on. Right after the start and after a resampling
it may be far above that for some steps."""
PATIENCE_STEPS, PATIENCE = 100, 0.01
"""Training stops when FVU stayed above `WORST_FVU` for so many steps, or for this share of the run
if that is more, and did not fall."""
FEWEST_ROWS = 32
"""The FVU of fewer rows is chance."""


class Watch:
    """Detects that a training diverges, from the numbers of the steps that it is given.

    Args:
        steps: Optimiser steps of the run.
        dead_after_tokens: Tokens after which a latent that did not fire is dead.
        advice: Advice for the user, which ends the error.

    Attributes:
        suspect: Why the present weights should not be saved over good ones; None: they may be.
    """

    def __init__(self, steps: int, dead_after_tokens: int, advice: str) -> None:
        self.suspect: str | None = None
        self._dead_after = dead_after_tokens
        self._advice, self._patience = advice, max(PATIENCE_STEPS, PATIENCE * steps)
        self._since, self._best = 0, float("inf")
        self._warned = False

    def look(
        self, step: int, *, fvu: float, silent_tokens: int, silent_after: int, may_stop: bool
    ) -> None:
        """Judge a step whose numbers are finite.

        Args:
            step: Steps done.
            fvu: FVU of the batch; NaN where it says nothing.
            silent_tokens: Tokens since any latent fired.
            silent_after: Tokens after which that is worth a warning.
            may_stop: False while the FVU may be large for a reason.

        Raises:
            DivergedError: If FVU stayed above `WORST_FVU` and did not fall.
        """
        self.suspect = None
        if silent_tokens >= silent_after:
            dead = silent_tokens >= self._dead_after
            whom = "all latents are dead: none" if dead else "no latent"
            self.suspect = f"{whom} fired in the last {silent_tokens:,} tokens (L0 is 0)"
            if not self._warned:
                log.warning(
                    "Step %d: %s. If none fires at the end either, this run fails. %s",
                    step, self.suspect, self._advice,
                )  # fmt: skip
            self._warned = True
        if not fvu > WORST_FVU:
            self._best = float("inf")
            return
        if not may_stop:
            return
        self.suspect = f"FVU is {fvu:.3g}, where 1 is as good as the mean"
        if fvu < 0.95 * self._best:
            self._best, self._since = fvu, step
        elif step - self._since >= self._patience:
            raise self.diverged(step, f"{self.suspect}, for {step - self._since} steps")

    def check_loss(self, step: int, terms: Mapping[str, Tensor]) -> None:
        """Check the named terms of a loss.

        Raises:
            DivergedError: If their sum is not finite, in the mean over all ranks: all of them stop.
        """
        loss = torch.stack(list(terms.values())).sum()
        if not bool(torch.isfinite(mean_over_ranks(loss))):
            what = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
            raise self.diverged(step, f"the loss is not finite ({what})")

    def check_state(
        self, step: int, module: nn.Module, optimizer: torch.optim.Optimizer | None
    ) -> None:
        """Check parameters, gradients and what an optimiser keeps of them.

        Raises:
            DivergedError: If one of them is not finite.
        """
        if name := not_finite(dict(state_of(module, optimizer))):
            raise self.diverged(step, f"{name} holds NaN or infinite values")

    def diverged(self, step: int, what: str) -> DivergedError:
        """The error for what went wrong."""
        return DivergedError(f"Training diverged at step {step}: {what}. {self._advice}")


def not_finite(named: Mapping[str, Tensor]) -> str | None:
    """The first of some tensors that holds NaN or infinite values; one wait for the device.

    Example:
        >>> not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, float("nan")])})
        'b'
    """
    # the largest absolute value: NaN if there is one, and no square that could overflow
    if bool(torch.isfinite(get_total_norm(named.values(), float("inf")))):
        return None
    return next(name for name, tensor in named.items() if not bool(torch.isfinite(tensor).all()))


def state_of(
    module: nn.Module, optimizer: torch.optim.Optimizer | None
) -> Iterator[tuple[str, Tensor]]:
    """Parameters, gradients and what an optimiser keeps of them, each with its name."""
    for name, parameter in module.named_parameters():
        yield name, parameter.detach()
        if parameter.grad is not None:
            yield f"the gradient of {name}", parameter.grad
        kept: Mapping[str, Any] = optimizer.state.get(parameter, {}) if optimizer else {}
        for key, value in kept.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                yield f"the optimizer's {key} of {name}", value
