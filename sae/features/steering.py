"""Steering arms: vectors added to an activation, and the sizes at which all have the same KL."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae import functional
from sae.artifacts.placed import PlacedSAE
from sae.features.effects import at_one_point
from sae.interventions import Intervention, Replacement

Text = tuple[int, int]
"""Number of the draw and of the prompt of a text."""
BATCH = 8
"""Texts in a pass that keeps all of its logits."""
TOLERANCE = 0.05
"""Relative distance from a target KL that counts as reached."""
_ROUNDS, _MOST = 16, 4.0**6
_LEAST_STEP, _STEP = 1.05, 4.0


@dataclass(frozen=True)
class Arm:
    """Something that is added to the activation of every token that counts.

    Attributes:
        name: Name in tables.
        direction: A vector, or one for each prompt, whose length does not count; None: a Gaussian
            vector of the same length, drawn anew for every position.
        seed: Seed of the noise.
    """

    name: str
    direction: Float[Tensor, " d"] | Float[Tensor, "prompts d"] | None = None
    seed: int = 0

    def pushed(
        self, sizes: float | Float[Tensor, " batch"], texts: Sequence[Text] | None = None
    ) -> Replacement:
        """`x + a v`, of length a.

        Args:
            sizes: a, in the LM's units; one for all texts, or one each.
            texts: Texts of the batch, which decide the noise and which prompt's direction is
                added; None: the first draw of the first prompts.
        """
        size = torch.as_tensor(sizes, dtype=torch.float32).reshape(-1, 1, 1)
        if self.direction is None:
            return self._noise(size, texts)
        unit = torch.nn.functional.normalize(torch.atleast_2d(self.direction.float().cpu()), dim=-1)

        def replace(x: Tensor) -> Tensor:
            prompts = torch.tensor([prompt for _, prompt in _named(texts, len(x))])
            return x + (size * unit[prompts % len(unit)][:, None]).to(x)

        return replace

    def _noise(self, size: Tensor, texts: Sequence[Text] | None) -> Replacement:
        """Noise of which each text has its own, whatever else is in the batch."""
        generators: list[torch.Generator] = []

        def replace(x: Tensor) -> Tensor:
            for name in _named(texts, len(x))[len(generators) :]:
                state = np.random.SeedSequence((self.seed, *name)).generate_state(1)
                generators.append(torch.Generator().manual_seed(int(state[0])))
            noise = torch.stack([
                torch.randn(x.shape[1:], generator=own) for own in generators[: len(x)]
            ])  # fmt: skip
            return x + (size * torch.nn.functional.normalize(noise, dim=-1)).to(x)

        return replace


def _named(texts: Sequence[Text] | None, count: int) -> Sequence[Text]:
    return [(0, prompt) for prompt in range(count)] if texts is None else texts


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

    All predictions count but that of position 0, which no edit reaches. The clean logits of the
    texts are kept, so that a push takes one pass.

    Args:
        one: The SAE, which says where arms act and on which rows.
        texts: Tokens of a text of each prompt, of any lengths.
    """

    def __init__(self, one: PlacedSAE, texts: Sequence[Int[Tensor, " _"]]) -> None:
        lengths = [len(text) for text in texts]
        self._batches = [
            _Batch(one, torch.stack([texts[i] for i in part.tolist()]), part.tolist())
            for length in sorted(set(lengths))
            for part in torch.tensor(
                [i for i, own in enumerate(lengths) if own == length]
            ).split(BATCH)
        ]  # fmt: skip

    @torch.no_grad()
    def kl(self, arm: Arm, sizes: Sequence[float]) -> list[float]:
        """Mean KL in nats under pushes of some sizes."""
        totals, count = [0.0] * len(sizes), 0
        for batch in self._batches:
            for i, size in enumerate(sizes):
                steered = batch.steered(arm.pushed(size, batch.names))
                totals[i] += functional.kl_divergence(batch.clean, steered).sum().item()
            count += batch.clean[..., 0].numel()
        return [total / count for total in totals]


class _Batch:
    """Texts of one length; the blocks below the point run once for all pushes.

    Args:
        one: The SAE.
        tokens: Their tokens.
        prompts: Their numbers.
    """

    @torch.no_grad()
    def __init__(self, one: PlacedSAE, tokens: Int[Tensor, "texts ctx"], prompts: Sequence[int]):
        self.names = [(0, i) for i in prompts]
        self._point, self._positions = at_one_point(one)
        self._run = one.lm.repeated(tokens, [self._point])
        self._positions.start(tokens.to(one.lm.device))
        self.clean = self._run({self._point: self._positions.note(self._point)})[:, 1:]
        """Clean logits, without those of position 0."""

    def steered(self, replacement: Replacement) -> Float[Tensor, "texts predictions vocab"]:
        """Logits under a push, without those of position 0."""
        return self._run({self._point: self._positions.only(replacement)})[:, 1:]


def sizes_at(gauge: Gauge, arm: Arm, targets: Sequence[float], start: float) -> list[Size]:
    """The sizes at which an arm has the target KLs.

    Sizes beyond all that are known are extrapolated, as KL is about the square of the size.
    Between two of them every target is closed in by turns of interpolation and of bisection, both
    of logarithms. All targets that are open are measured in the same pass.

    Args:
        gauge: Measures KL.
        arm: The arm.
        targets: Target KLs in nats, above 0.
        start: A size to start from, above 0.

    Returns:
        A size for each target; the nearest one measured where `reached` is False.
    """
    known = _measured(gauge, arm, [start])
    for turn in range(_ROUNDS):
        open_ = [t for t in targets if not _nearest(known, t).reached]
        asked = {_next(known, target, bisect=turn % 2 == 1) for target in open_}
        new = sorted(size for size in asked if start / _MOST <= size <= start * _MOST)
        if not (new := [size for size in new if size not in known]):
            break
        known |= _measured(gauge, arm, new)
    return [_nearest(known, target) for target in targets]


def _measured(gauge: Gauge, arm: Arm, sizes: Sequence[float]) -> dict[float, float]:
    """KLs by size; infinite where the LM's numbers overflow, as the push is too large then."""
    found = zip(sizes, gauge.kl(arm, sizes), strict=True)
    return {size: math.inf if math.isnan(kl) else kl for size, kl in found}


def _nearest(known: dict[float, float], target: float) -> Size:
    size = min(known, key=lambda one: abs(known[one] - target))
    return Size(target, size, known[size])


def _next(known: dict[float, float], target: float, bisect: bool) -> float:
    """The size to try next, between the two that bracket a target, or beyond all of them."""
    above = [size for size in known if known[size] >= target]
    if not above:
        return max(known) * _factor(target, known[max(known)])
    high = min(above)
    below = [size for size in known if size < high]
    if not below:
        return high / _factor(known[high], target)
    low = max(below)
    share = 0.5
    if not bisect and known[low] > 0:
        rise = math.log(known[high] / known[low])
        share = min(max(math.log(target / known[low]) / rise, 0.05), 0.95)
    return low * (high / low) ** share


def _factor(more: float, less: float) -> float:
    """Ratio of two sizes that the ratio of their KLs suggests, within limits."""
    return min(max(math.sqrt(more / less), _LEAST_STEP), _STEP) if less > 0 else _STEP
