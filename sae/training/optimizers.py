"""Optimisers by word: Adam, and Adam as the authors of the paper really ran it."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from sae.errors import ConfigError

NAMES = ("adam", "authors_adam")
LONG_RUN_STEPS = 10_000
"""From here on a run starts and steps as published: short moments, fast biases, a sparse start,
clipped gradients and short encoder rows help a run of some hundred or thousand steps, and cost a
longer one features (docs/adr/0019)."""


@dataclass(frozen=True)
class OptimizerSettings:
    """Settings of the optimiser and of the learning-rate schedule.

    Attributes:
        name: `adam` or `authors_adam`.
        lr: Peak learning rate.
        beta1: Decay of the first moment; None: what suits what is trained.
        beta2: Decay of the second moment; None: likewise.
        eps: Added to the root of the second moment.
        bias_rate: Learning rate of encoder biases, as a multiple of lr; None: what suits what is
            trained.
        warmup_tokens: Linear rise of the learning rate; tokens or a share of the run ("1%").
        decay_tokens: Linear fall to zero at the end; tokens or a share of the run ("20%").
    """

    name: str = "adam"
    lr: float = 1e-3
    beta1: float | None = None
    beta2: float | None = None
    eps: float = 6.25e-10
    bias_rate: float | None = None
    warmup_tokens: int | float | str = 0
    decay_tokens: int | float | str = 0

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(f"optimizer={self.name!r} must be one of {', '.join(NAMES)}.")
        for name, high in (("lr", float("inf")), ("eps", 1), ("bias_rate", float("inf"))):
            value = getattr(self, name)
            if value is not None and not 0 < value < high:
                raise ConfigError(f"optimizer.{name}={value!r} must be above 0 and below {high}.")
        for name in ("beta1", "beta2"):
            beta = getattr(self, name)
            if beta is not None and not 0 <= beta < 1:
                raise ConfigError(f"optimizer.{name}={beta!r} must be in [0, 1).")

    def for_run(self, steps: int) -> "OptimizerSettings":
        """What is left open: Adam as it is written in a long run, else what suits what is trained.

        Args:
            steps: Optimiser steps of the run.
        """
        if steps < LONG_RUN_STEPS:
            return self
        usual = {"beta1": 0.9, "beta2": 0.999, "bias_rate": 1.0}
        return replace(self, **{k: v for k, v in usual.items() if getattr(self, k) is None})

    def build(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> torch.optim.Optimizer:
        """The optimiser over `parameters`, or over groups of them with rates of their own.

        Args:
            parameters: What is trained.
            betas: What stands for a `beta1` or `beta2` that is None: `Dictionary.betas`.
        """
        kind: Any = AuthorsAdam if self.name == "authors_adam" else torch.optim.Adam
        own = (self.beta1, self.beta2)
        both = tuple(b if a is None else a for a, b in zip(own, betas, strict=True))
        extra = {} if self.name == "authors_adam" else {"fused": True}
        return kind(parameters, lr=self.lr, betas=both, eps=self.eps, **extra)


def renew(
    saved: Sequence[dict[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    settings: OptimizerSettings,
    names: Collection[str],
) -> None:
    """Put some settings into the parameter groups of a saved optimiser.

    What is not named stays as it was saved: a short run that goes on as a long one keeps its
    moments and rates.

    Args:
        saved: Of the checkpoint; changed in place.
        groups: What the settings make of the same parameters, in the same order.
        settings: The settings.
        names: Which of them are new.
    """
    ratio = settings.lr / saved[0]["initial_lr"]
    betas = {"beta1": settings.beta1, "beta2": settings.beta2}
    for old, new in zip(saved, groups, strict=True):
        if "bias_rate" in names or ("lr" in names and old is saved[0]):
            old["initial_lr"] = new["lr"]
        elif "lr" in names:
            old["initial_lr"] *= ratio
        if "eps" in names:
            old["eps"] = settings.eps
        old["betas"] = tuple(
            then if beta is None or name not in names else beta
            for then, (name, beta) in zip(old["betas"], betas.items(), strict=True)
        )


class AuthorsAdam(torch.optim.Optimizer):
    r"""Adam whose step count never advances, as in the authors' ensemble code.

    Their training loop clones every leaf of the optimiser state before writing the new value, so
    the moments persist but the count stays 0: bias correction is always that of the first step,
    $\hat m = m / (1 - \beta_1)$, $\hat v = v / (1 - \beta_2)$. With a constant gradient the step is
    lr at step 1, 2.06 lr at step 10, and tends to 0.316 lr. Use `adam` for the paper's text, this
    for the paper's numbers.

    Source: HoagyC/sparse_coding `autoencoders/ensemble.py`, `step_batch` (torchopt Adam).
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; `closure` recomputes the loss, as for any torch optimiser."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                m = state["exp_avg"].lerp_(grad, 1 - beta1)
                v = state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
                denominator = (v / (1 - beta2)).sqrt_().add_(group["eps"])
                parameter.addcdiv_(m, denominator, value=-group["lr"] / (1 - beta1))
        return loss
