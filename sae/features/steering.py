"""Steering arms: vectors added to an activation, and the sizes at which all have the same KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import functional
from sae.artifacts.placed import PlacedSAE
from sae.features.effects import at_one_point
from sae.interventions import Intervention, Replacement

BATCH = 8
"""Texts in a pass that keeps all of its logits."""
TOLERANCE = 0.05
"""Relative distance from a target KL that counts as reached."""
_ROUNDS, _STEP, _MOST = 12, 4.0, 4.0**6


@dataclass(frozen=True)
class Arm:
    """Something that is added to the activation of every token that counts.

    Attributes:
        name: Name in tables.
        direction: Unit vector; None: a Gaussian vector of the same length, drawn anew for every
            position.
        seed: Seed of the noise.
    """

    name: str
    direction: Float[Tensor, " d"] | None = None
    seed: int = 0

    def pushed(self, sizes: float | Float[Tensor, " batch"]) -> Replacement:
        """`x + a v`, of length a.

        Args:
            sizes: a, in the LM's units; one for all texts, or one each.
        """
        size = torch.as_tensor(sizes, dtype=torch.float32).reshape(-1, 1, 1)
        if self.direction is not None:
            step = size * torch.nn.functional.normalize(self.direction.float().cpu(), dim=0)
            return lambda x: x + step.to(x)
        generator = torch.Generator().manual_seed(self.seed)

        def noisy(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=generator)
            return x + (size * torch.nn.functional.normalize(noise, dim=-1)).to(x)

        return noisy


def intervention(one: PlacedSAE, replacement: Replacement) -> Intervention:
    """A replacement at the SAE's point, at all tokens that count, new ones included.

    Raises:
        ConfigError: If the SAE does not read and write one point of an LM.
    """
    point, positions = at_one_point(one)
    return Intervention(point, replacement, one.counted, positions.keep_first)


@dataclass(frozen=True)
class Size:
    """The size of a push that a target KL asks for.

    Attributes:
        target: Target KL in nats.
        size: Length of what is added, in the LM's units.
        kl: KL measured there, in nats.
    """

    target: float
    size: float
    kl: float

    @property
    def reached(self) -> bool:
        """True if the measured KL is the target, within `TOLERANCE`."""
        return abs(self.kl - self.target) <= TOLERANCE * self.target


class Gauge:
    """Mean KL(clean || steered) of an LM's next-token predictions on fixed texts.

    All predictions count but that of position 0, which no edit reaches.

    Args:
        one: The SAE, which says where arms act and on which rows.
        texts: Tokens of texts of any lengths.
    """

    def __init__(self, one: PlacedSAE, texts: Sequence[Int[Tensor, " _"]]) -> None:
        self.one = one
        self.point, self.positions = at_one_point(one)
        lengths = sorted({len(text) for text in texts})
        self._batches = [
            batch for length in lengths
            for batch in torch.stack([t for t in texts if len(t) == length]).split(BATCH)
        ]  # fmt: skip

    @torch.no_grad()
    def kl(self, arm: Arm, sizes: Sequence[float]) -> list[float]:
        """Mean KL in nats under pushes of some sizes."""
        totals, count = [0.0] * len(sizes), 0
        for tokens in self._batches:
            tokens = tokens.to(self.one.lm.device)
            self.positions.start(tokens)
            conditions = [{self.point: self.positions.note(self.point)}]
            conditions += [{self.point: self.positions.only(arm.pushed(size))} for size in sizes]
            passes = self.one.lm.logits_under(tokens, conditions)
            clean = next(passes)[:, 1:]
            for i, steered in enumerate(passes):
                totals[i] += functional.kl_divergence(clean, steered[:, 1:]).sum().item()
            count += clean[..., 0].numel()
        return [total / count for total in totals]


def sizes_at(gauge: Gauge, arm: Arm, targets: Sequence[float], start: float) -> list[Size]:
    """The sizes at which an arm has the target KLs.

    A grid of sizes brackets the targets; then every target is closed in by turns of interpolation
    (KL is about a power of the size) and of bisection, both of logarithms. All targets that are
    open are measured in the same pass.

    Args:
        gauge: Measures KL.
        arm: The arm.
        targets: Target KLs in nats, above 0.
        start: A size to start from, above 0.

    Returns:
        A size for each target; the nearest one measured where `reached` is False.
    """
    known = dict(zip(grid := [start * 1.5**i for i in range(-4, 3)],
                     gauge.kl(arm, grid), strict=True))  # fmt: skip
    for turn in range(_ROUNDS):
        open_ = [t for t in targets if not _nearest(known, t).reached]
        asked = {_next(known, target, bisect=turn % 2 == 1) for target in open_}
        new = sorted(size for size in asked if start / _MOST <= size <= start * _MOST)
        if not (new := [size for size in new if size not in known]):
            break
        known |= zip(new, gauge.kl(arm, new), strict=True)
    return [_nearest(known, target) for target in targets]


def _nearest(known: dict[float, float], target: float) -> Size:
    size = min(known, key=lambda one: abs(known[one] - target))
    return Size(target, size, known[size])


def _next(known: dict[float, float], target: float, bisect: bool) -> float:
    """The size to try next, between the two that bracket a target, or beyond all of them."""
    above = [size for size in known if known[size] >= target]
    if not above:
        return max(known) * _STEP
    high = min(above)
    below = [size for size in known if size < high]
    if not below:
        return high / _STEP
    low = max(below)
    share = 0.5
    if not bisect and known[low] > 0:
        rise = math.log(known[high] / known[low])
        share = min(max(math.log(target / known[low]) / rise, 0.05), 0.95)
    return low * (high / low) ** share
