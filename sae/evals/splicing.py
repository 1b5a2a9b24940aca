"""What takes the place of activations while an LM runs: reconstructions and ablations."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.counted import Counted
from sae.types import Ends, Point

Replacement = Callable[[Tensor], Tensor]
Replacements = Mapping[Point, Replacement]
"""By point, what makes of the activation there what takes its place."""


def replacements(
    ends: Ends, splice: Replacement, mean: Float[Tensor, " width"]
) -> tuple[dict[Point, Replacement], dict[str, dict[Point, Replacement]]]:
    """What is done at which point: in the clean pass, and under `sae`, `zero` and `mean`.

    An SAE at one point makes its output of what comes there. Transcoders and crosscoders make
    theirs of what the clean pass, which must come first, has shown where they read.
    """
    conditions: dict[str, dict[Point, Replacement]] = {
        "zero": dict.fromkeys(ends.writes, torch.zeros_like),
        "mean": dict(zip(ends.writes, _constants(mean, len(ends.writes)), strict=True)),
    }
    if ends.point is not None:
        return {}, {"sae": {ends.point: splice}, **conditions}
    seen: dict[Point, Tensor] = {}
    made: list[Tensor] = []

    def note(point: Point) -> Replacement:
        def noted(activation: Tensor) -> Tensor:
            made.clear()
            seen[point] = activation
            return activation

        return noted

    def write(i: int) -> Replacement:
        def written(activation: Tensor) -> Tensor:
            if not made:
                parts = [seen[point] for point in ends.reads]
                x_hat = splice(torch.cat(parts, dim=-1))
                widths = [x_hat.shape[-1]] if ends.pair else [part.shape[-1] for part in parts]
                made.extend(x_hat.split(widths, dim=-1))
            return made[i]

        return written

    of_sae = {point: write(i) for i, point in enumerate(ends.writes)}
    return {point: note(point) for point in ends.reads}, {"sae": of_sae, **conditions}


def _constants(mean: Float[Tensor, " width"], count: int) -> list[Replacement]:
    """The part of the mean vector that belongs to each of the points written to."""

    def constant(part: Tensor) -> Replacement:
        # of a transcoder's vectors the target is the end
        return lambda activation: part[-activation.shape[-1] :].to(activation).expand_as(activation)

    return [constant(part) for part in mean.chunk(count)]  # layers are equally wide


class Spared:
    """The positions of a batch whose activations stay as they are under every condition.

    The clean pass, which must come first, decides: position 0 (unless `keep_first`) and the rows
    that do not count at some point of the ends.

    Args:
        ends: Where an SAE reads and writes.
        counted: Which rows count there; None: all.
        keep_first: Whether position 0 counts like the others.
    """

    def __init__(self, ends: Ends, counted: Counted | None, keep_first: bool):
        self.ends, self.keep_first = ends, keep_first
        self.counted = None if counted is None else counted.at(ends.points)
        self._replaced = torch.ones(0, 0, dtype=torch.bool)

    def start(self, tokens: Int[Tensor, "batch ctx"]) -> None:
        """Forget the batch before."""
        self._replaced = torch.ones_like(tokens, dtype=torch.bool)
        if self.counted is not None:
            self._replaced &= self.counted.ordinary(tokens)
        if not self.keep_first:
            self._replaced[:, 0] = False

    def note(self, point: Point) -> Replacement:
        """What the clean pass does at a point: it looks."""

        def noted(activation: Tensor) -> Tensor:
            if self.counted is not None:
                counts = self.counted.at([point]).mask([activation], None)
                self._replaced &= counts.to(self._replaced.device)
            return activation

        return noted

    def replaced(self) -> Bool[Tensor, "batch ctx"]:
        """Positions that are replaced; known once the clean pass has run."""
        return self._replaced

    def sparing(self, replacement: Replacement) -> Replacement:
        """The same replacement, of these positions alone."""

        def spared(activation: Tensor) -> Tensor:
            mask = self._replaced[..., None].to(activation.device)
            return torch.where(mask, replacement(activation).to(activation), activation)

        return spared
