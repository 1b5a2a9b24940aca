"""Vectors and weights whose codes have a given L0, and firing frequencies like those of real SAEs.

Vectors are sums of dictionary atoms: which ones is drawn with log-normal frequencies, as latents of
trained SAEs have (a few fire often, most rarely), how much is exponential. One encoder bias, the
same for all latents, is set so that the wanted number exceeds it. A learning rate of almost zero
keeps it so while a contender is timed.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

LR = 1e-12
"""Adam does all of its work, and the codes stay what they are."""
L1 = 1e-3
FREQUENCY_SIGMA = 1.2
_ROWS_MEASURED = 1024


@dataclass(frozen=True)
class Problem:
    """Batches to train on, and the weights that every contender starts from.

    Attributes:
        x: Batches; mean of ||x||^2 is d_in.
        W: Unit rows: encoder and decoder.
        bias: The same for every latent, for ReLU codes of the wanted L0; TopK codes take 0.
        l0: Latents that fire per vector.
    """

    x: list[Float[Tensor, "batch d_in"]]
    W: Float[Tensor, "d_sae d_in"]
    bias: float
    l0: float

    @property
    def d_in(self) -> int:
        """Width of a vector."""
        return self.W.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W.shape[0]

    @property
    def batch(self) -> int:
        """Vectors in a step."""
        return len(self.x[0])


def make_problem(
    batch: int, d_in: int, d_sae: int, l0: float, *, batches: int = 4, device: str = "cpu"
) -> Problem:
    """Draw a problem; the same arguments draw the same on the same kind of device."""
    generator = torch.Generator(device).manual_seed(0)  # a large problem is drawn on a GPU alone
    drawn: Any = {"generator": generator, "device": device}
    W = torch.nn.functional.normalize(torch.randn(d_sae, d_in, **drawn), dim=1)
    weights = (FREQUENCY_SIGMA * torch.randn(d_sae, **drawn)).exp()
    frequency = (l0 * weights / weights.sum()).clamp(max=0.5)
    x = []
    for _ in range(batches):
        fires = torch.rand(batch, d_sae, **drawn) < frequency
        size = torch.empty(batch, d_sae, device=device).exponential_(generator=generator)
        x.append(size.mul_(fires) @ W)
    scale = (d_in / torch.stack([part.square().sum(1).mean() for part in x]).mean()).sqrt()
    x = [part * scale for part in x]
    pre = (x[0][:_ROWS_MEASURED] @ W.T).flatten()
    fires = max(1, round(l0 / d_sae * len(pre)))
    threshold = pre.topk(fires).values[-1].item()
    return Problem(x, W, -threshold, l0)
