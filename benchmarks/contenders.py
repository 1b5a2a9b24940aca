"""Training steps that are compared: this project's, plain autograd, and a dense step by hand.

A step is all of forward, loss, backward, optimiser, constraints and firing counters, and no
trainer around it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.common import has_bf16
from benchmarks.problem import L1, LR, Problem
from sae.dictionaries import ARCHITECTURES, Dictionary
from sae.dictionaries.from_config import settings_of
from sae.dictionaries.shape import Init, Shape
from sae.functional import firing
from sae.training.optimizers import OptimizerSettings

Step = Callable[[Float[Tensor, "batch d_in"]], object]


@dataclass(frozen=True)
class Contender:
    """A training step with a name.

    Attributes:
        name: For tables.
        library: `ours`, `by hand`, or the name of the peer.
        step: Trains on one batch.
        encode: Feature activations, dense: what L0 is measured by.
        bf16: Whether its matrix products run in bfloat16.
    """

    name: str
    library: str
    step: Step
    encode: Callable[[Tensor], Tensor]
    bf16: bool


def configured(problem: Problem, architecture: str) -> dict[str, Any]:
    """The configuration of an architecture on a problem.

    AuxK costs what the dead share costs: nothing, in the steady state that is timed.
    """
    given = {"k": round(problem.l0), "l1": L1, "l0_coefficient": L1}
    known = ARCHITECTURES[architecture].Config.model_fields
    return {
        "architecture": architecture,
        "dict_ratio": problem.d_sae / problem.d_in,
        **{name: value for name, value in given.items() if name in known},
    }


def ours(problem: Problem, architecture: str, forms: Sequence[str], device: str) -> list[Contender]:
    """The step of `SAEModule` with `trainer.kernels` of each form, without Lightning.

    The forms train one dictionary in turn: it hardly moves, and on a GPU there may be room for one.
    """
    made: Any
    made, settings = settings_of(configured(problem, architecture))
    init = Init(generator=torch.Generator(device).manual_seed(0))
    with torch.device(device):  # a large one is made on a GPU alone
        dictionary: Dictionary = made(settings, Shape(problem.d_in, problem.d_sae), init)
    with torch.no_grad():
        for name, parameter in dictionary.named_parameters():
            if name in ("W", "W_dec", "encoder_rows"):
                parameter.copy_(problem.W)
    if "k" in configured(problem, architecture):
        _set_biases(dictionary, 0.0)
    else:
        _reach(problem, dictionary)
    step = OurStep(dictionary, device)

    def contender(kernels: str) -> Contender:
        def in_form(called: Step) -> Any:
            def turn(x: Tensor) -> Any:
                dictionary.kernels = kernels
                return called(x)

            return turn

        name = f"{architecture}, {kernels}"
        return Contender(name, "ours", in_form(step), in_form(step.encode), step.bf16)

    return [contender(kernels) for kernels in forms]


@torch.no_grad()
def _reach(problem: Problem, dictionary: Dictionary) -> None:
    """Set the biases for the wanted L0, whatever thresholds an architecture has of its own."""
    x = problem.x[0][:512]
    low, high = -50.0, 50.0  # of the scaled space, where activations have about unit entries
    for _ in range(24):
        bias = (low + high) / 2
        _set_biases(dictionary, bias)
        fires = dictionary.training_output(x).code.firing_counts().sum().item()
        low, high = (bias, high) if fires < problem.l0 * len(x) else (low, bias)


def _set_biases(dictionary: Dictionary, bias: float) -> None:
    for name, parameter in dictionary.named_parameters():
        if name in ("b_enc", "b_mag"):  # b_mag: magnitudes as the gates
            parameter.data.fill_(bias)


class OurStep:
    """A step as `sae/training/module.py` makes it.

    Args:
        dictionary: What is trained.
        device: Where it is.
    """

    def __init__(self, dictionary: Dictionary, device: str) -> None:
        self.dictionary, self.device, self.bf16 = dictionary, device, has_bf16(device)
        self.optimizer = OptimizerSettings(lr=LR).build(dictionary.parameters(), dictionary.betas)
        self.since_fired = torch.zeros(dictionary.d_sae, dtype=torch.long, device=device)

    def __call__(self, x: Tensor) -> None:
        """Train on one batch."""
        with self._autocast():
            output = self.dictionary.training_output(x)
            loss = torch.stack(list(output.terms.values())).sum()
            counts = output.code.firing_counts()
        self.optimizer.zero_grad()
        loss.backward()
        self.dictionary.before_step()
        self.optimizer.step()
        self.dictionary.after_step()
        self.since_fired += len(x)
        self.since_fired[counts > 0] = 0

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Feature activations in training."""
        with self._autocast():
            return self.dictionary.training_output(x).code.dense()

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.bf16)


class ByHand:
    """A dense step of the untied L1 SAE without autograd: what a dense step costs at best.

    Weights, moments and loss are float32; every product is in `dtype`, and every matrix of size
    [batch d_sae] is read and written as rarely as dense products allow.

    Args:
        problem: Start values.
        dtype: What is multiplied.
        device: Where.
    """

    def __init__(self, problem: Problem, dtype: torch.dtype, device: str) -> None:
        self.dtype = dtype
        self.W_enc, self.W_dec = problem.W.clone(), problem.W.clone()  # both [d_sae d_in]
        self.b_enc = torch.full((problem.d_sae,), problem.bias, device=device)
        self.b_dec = torch.zeros(problem.d_in, device=device)
        parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
        self.since_fired = torch.zeros(problem.d_sae, dtype=torch.long, device=device)
        self.loss = torch.zeros(())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> None:
        """Train on one batch."""
        batch, dtype = len(x), self.dtype
        W_enc, W_dec = self.W_enc.to(dtype), self.W_dec.to(dtype)
        centred = (x - self.b_dec).to(dtype)
        f = torch.addmm(self.b_enc.to(dtype), centred, W_enc.T).relu_()
        error = (f @ W_dec) + (self.b_dec - x)
        self.loss = error.square().mean() + L1 / batch * f.sum(dtype=torch.float32)
        counts = firing(f)[1]

        g = error.mul_(2 / error.numel()).to(dtype)
        penalty = torch.full((f.shape[1],), L1 / batch, dtype=dtype, device=x.device)
        self.W_dec.grad = (f.T @ g).float()
        df = torch.ops.aten.threshold_backward(torch.addmm(penalty, g, W_dec.T), f, 0)
        self.W_enc.grad = (df.T @ centred).float()
        self.b_enc.grad = df_sum = df.sum(0, dtype=torch.float32)
        self.b_dec.grad = g.sum(0, dtype=torch.float32) - df_sum @ self.W_enc

        along = torch.linalg.vecdot(self.W_dec.grad, self.W_dec).unsqueeze(1)
        self.W_dec.grad.addcmul_(along, self.W_dec, value=-1)
        self.optimizer.step()
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
        self.since_fired += batch
        self.since_fired[counts > 0] = 0

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations."""
        W_enc = self.W_enc.to(self.dtype)
        return torch.addmm(
            self.b_enc.to(self.dtype), (x - self.b_dec).to(self.dtype), W_enc.T
        ).relu_()


class Plain:
    """The same step as one would write it with autograd, in float32.

    Args:
        problem: Start values.
        device: Where.
    """

    def __init__(self, problem: Problem, device: str) -> None:
        self.W_enc = problem.W.T.clone().requires_grad_()
        self.W_dec = problem.W.clone().requires_grad_()
        self.b_enc = torch.full((problem.d_sae,), problem.bias, device=device, requires_grad=True)
        self.b_dec = torch.zeros(problem.d_in, device=device, requires_grad=True)
        parameters = [self.W_enc, self.W_dec, self.b_enc, self.b_dec]
        self.optimizer = torch.optim.Adam(parameters, lr=LR, fused=True)
        self.since_fired = torch.zeros(problem.d_sae, dtype=torch.long, device=device)

    def __call__(self, x: Tensor) -> None:
        """Train on one batch."""
        f = self.encode(x)
        x_hat = f @ self.W_dec + self.b_dec
        loss = (x - x_hat).square().mean() + L1 * f.sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            grad = self.W_dec.grad
            assert grad is not None
            grad -= (grad * self.W_dec).sum(1, keepdim=True) * self.W_dec
            self.optimizer.step()
            self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)
            self.since_fired += len(x)
            self.since_fired[(f > 0).any(0)] = 0

    def encode(self, x: Tensor) -> Tensor:
        """Feature activations."""
        return torch.relu((x - self.b_dec) @ self.W_enc + self.b_enc)


Maker = Callable[[], list[Contender] | str]
"""Makes contenders that share their memory, or says why it cannot."""


def dense_steps(problem: Problem, device: str) -> dict[str, Maker]:
    """By name, dense steps of the untied L1 SAE that no library is needed for."""

    def contender(name: str, kind: Callable[[], ByHand | Plain]) -> list[Contender]:
        step = kind()
        return [Contender(name, "by hand", step, step.encode, "bf16" in name)]

    kinds: dict[str, Callable[[], ByHand | Plain]] = {
        "dense bf16 by hand": partial(ByHand, problem, torch.bfloat16, device),
        "dense float32 by hand": partial(ByHand, problem, torch.float32, device),
        "plain autograd float32": partial(Plain, problem, device),
    }
    if not has_bf16(device):
        del kinds["dense bf16 by hand"]
    return {name: partial(contender, name, kind) for name, kind in kinds.items()}
