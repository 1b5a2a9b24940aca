"""Optimisers by name: Adam, and Adam as the code of the paper's authors really ran it."""

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from sae.settings import Settings, Span, setting

LONG_RUN_STEPS = 10_000
"""From here on a run starts and steps as published: short moments, fast biases, a sparse start,
clipped gradients and short encoder rows help a run of some hundred or thousand steps, and cost a
longer one features (docs/adr/0019)."""


class OptimizerSettings(Settings):
    """Settings of the optimiser and of the learning-rate schedule."""

    where = "optimizer."

    name: Literal["adam", "authors_adam"] = setting(
        "adam", help="Adam, or Adam as the authors ran it"
    )
    lr: float = setting(1e-3, gt=0, help="peak learning rate")
    beta1: float | None = setting(
        None, ge=0, lt=1, help="decay of the first moment; null: what suits what is trained"
    )
    beta2: float | None = setting(
        None, ge=0, lt=1, help="decay of the second moment; null: what suits what is trained"
    )
    eps: float = setting(6.25e-10, gt=0, lt=1, help="added to the root of the second moment")
    bias_rate: float | None = setting(
        None,
        gt=0,
        help="learning rate of encoder biases, times lr; null: what suits what is trained",
    )
    warmup_tokens: Span = setting("5%", help="linear rise of the learning rate")
    decay_tokens: Span = setting("20%", help="linear fall to zero at the end")

    def for_run(self, steps: int) -> "OptimizerSettings":
        """Settings left open: Adam as it is written in a long run, else what suits the dictionary.

        Args:
            steps: Optimiser steps of the run.
        """
        if steps < LONG_RUN_STEPS:
            return self
        usual = {"beta1": 0.9, "beta2": 0.999, "bias_rate": 1.0}
        return self.model_copy(update={k: v for k, v in usual.items() if getattr(self, k) is None})

    def build(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> torch.optim.Optimizer:
        """The optimiser over `parameters`, or over groups of them with rates of their own.

        Args:
            parameters: Parameters to train.
            betas: Values for a `beta1` or `beta2` that is None: `Dictionary.betas`.
        """
        kind: Any = AuthorsAdam if self.name == "authors_adam" else torch.optim.Adam
        own = (self.beta1, self.beta2)
        both = tuple(b if a is None else a for a, b in zip(own, betas, strict=True))
        extra = {} if self.name == "authors_adam" else {"fused": True}
        return kind(parameters, lr=self.lr, betas=both, eps=self.eps, **extra)


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
