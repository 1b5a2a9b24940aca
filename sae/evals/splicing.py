"""What takes the place of activations while an LM runs: reconstructions and ablations."""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

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
            if not made:  # position 0 may be left out
                parts = [seen[point][:, -activation.shape[1] :] for point in ends.reads]
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


def sparing_first(replacement: Replacement) -> Replacement:
    """The same, with position 0 left as it is."""

    def spared(activation: Tensor) -> Tensor:
        first, others = activation[:, :1], activation[:, 1:]
        return torch.cat([first, replacement(others).to(others)], dim=1)

    return spared
