"""One way to put other values in place of activations while an LM runs."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.counted import Counted
from sae.interventions.edits import at
from sae.language.lm import Replacement
from sae.types import Ends, Point

Replacements = Mapping[Point, Replacement]
"""By point, the function from the activation there to the value that replaces it."""


def note(point: Point, seen: dict[Point, Tensor]) -> Replacement:
    """A replacement that changes nothing and stores the activation in `seen`."""

    def noted(activation: Tensor) -> Tensor:
        seen[point] = activation
        return activation

    return noted


class Spliced(NamedTuple):
    """An SAE, or any other function, in place of the activations at its ends.

    Args:
        ends: Points where it reads and writes.
        splice: Makes, of the activations [batch ctx d_in] that are read, what is written.
        mean: Mean vector at all points of the ends, for mean ablation.
        counted: The rows that count there; the others stay as they are. None: all count.
    """

    ends: Ends
    splice: Replacement
    mean: Float[Tensor, " width"]
    counted: Counted | None = None


def splice_conditions(
    spliced: Spliced,
) -> tuple[dict[Point, Replacement], dict[str, dict[Point, Replacement]]]:
    """Replacements of the clean pass, and of the conditions `sae`, `zero` and `mean`.

    An SAE at one point replaces the activation that arrives there. Transcoders and crosscoders
    replace what they write by what they make of the activations of the clean pass, which must
    come first, at the points they read.
    """
    ends, splice, mean, _ = spliced
    conditions: dict[str, dict[Point, Replacement]] = {
        "zero": dict.fromkeys(ends.writes, torch.zeros_like),
        "mean": dict(zip(ends.writes, _constants(mean, len(ends.writes)), strict=True)),
    }
    if ends.point is not None:
        return {}, {"sae": {ends.point: splice}, **conditions}
    seen: dict[Point, Tensor] = {}
    made: list[Tensor] = []

    def start(point: Point) -> Replacement:
        noting = note(point, seen)

        def noted(activation: Tensor) -> Tensor:
            made.clear()
            return noting(activation)

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
    return {point: start(point) for point in ends.reads}, {"sae": of_sae, **conditions}


def _constants(mean: Float[Tensor, " width"], count: int) -> list[Replacement]:
    """The part of the mean vector that belongs to each of the points written to."""

    def constant(part: Tensor) -> Replacement:
        # in the vectors of a transcoder, the target comes last
        return lambda activation: part[-activation.shape[-1] :].to(activation).expand_as(activation)

    return [constant(part) for part in mean.chunk(count)]  # layers are equally wide


class Positions:
    """The positions of a batch whose activations are replaced; the others stay as they are.

    The clean pass, which must come first, decides: position 0 stays (unless `keep_first`), and so
    does every row that does not count at some point of the ends.

    Args:
        ends: Points where an SAE reads and writes.
        counted: Rule for the rows that count there; None: all.
        keep_first: True if position 0 counts like the others.
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

    def note(self, point: Point, then: Replacement | None = None) -> Replacement:
        """Replacement of the clean pass at a point: finds the rows that count, calls `then`."""

        def noted(activation: Tensor) -> Tensor:
            if self.counted is not None:
                counts = self.counted.at([point]).mask([activation], None)
                self._replaced &= counts.to(self._replaced.device)
            return activation if then is None else then(activation)

        return noted

    def replaced(self) -> Bool[Tensor, "batch ctx"]:
        """Positions that are replaced; known once the clean pass has run."""
        return self._replaced

    def only(self, replacement: Replacement) -> Replacement:
        """Limit a replacement to these positions."""
        return lambda activation: at(self._replaced, replacement)(activation)

    def rows(self, x: Float[Tensor, "rows width"]) -> Replacement:
        """A replacement by one row for each of these positions, in their order."""

        def put(activation: Tensor) -> Tensor:
            mask = self._replaced[..., None].to(activation.device)
            return activation.masked_scatter(mask, x.to(activation))

        return put
