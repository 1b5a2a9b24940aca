"""Edits of activations that apply to forward passes, captures and generation of an LM."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.activations.counted import Counted
from sae.errors import ConfigError
from sae.language.hooks import OnPass, Pass
from sae.language.lm import LanguageModel, Replacement
from sae.types import Point


@dataclass(frozen=True)
class Intervention:
    """A replacement of the activation at a point, at some positions.

    Rows that do not count are never edited: position 0, special tokens, massive rows. Tokens that
    the LM writes are edited like others.

    Attributes:
        point: The point.
        replacement: Makes the new activation [batch ctx d] of the old one, row by row.
        counted: Rule for the rows that count there; None: all but position 0.
        keep_first: True if position 0 counts like the others.
        positions: Positions of the first pass that are edited; None: all. Later tokens are.
        lm: Identity of the LM that it is meant for; None: any.
    """

    point: Point
    replacement: Replacement
    counted: Counted | None = None
    keep_first: bool = False
    positions: Bool[Tensor, "batch ctx"] | None = None
    lm: Mapping[str, object] | None = None

    def __call__(self, x: Float[Tensor, "batch new d"], now: Pass) -> Float[Tensor, "batch new d"]:
        """The activation, edited where it is to be."""
        return torch.where(self._edited(x, now)[..., None], self.replacement(x).to(x), x)

    def _edited(self, x: Tensor, now: Pass) -> Bool[Tensor, "batch new"]:
        edited = torch.ones(now.tokens.shape, dtype=torch.bool, device=x.device)
        if self.counted is not None:
            tokens = now.tokens.to(x.device)
            edited &= self.counted.at([self.point]).mask([x], tokens)
        if not self.keep_first and now.start == 0:
            edited[:, 0] = False
        if self.positions is not None:
            chosen = self.positions.to(x.device)[:, now.start : now.start + edited.shape[1]]
            edited[:, : chosen.shape[1]] &= chosen
        return edited


@contextmanager
def intervene(lm: LanguageModel, *edits: Intervention) -> Iterator[LanguageModel]:
    """Edit activations in everything that the LM does inside.

    Where several edit one point, each sees what those before it made. A lower point is edited
    before a higher one is computed.

    Args:
        lm: The LM.
        edits: Edits to apply: `one.intervention(set_to([123], 8.0))` of an SAE at its place, or
            an `Intervention`.

    Raises:
        ConfigError: If an edit is meant for another LM.
        SiteError: If the LM has no such point.

    Example:
        >>> from sae.language import LMSource
        >>> lm = LMSource.from_config({"kind": "random", "name": "tiny", "family": "gpt2"}).load()
        >>> point, tokens = Point("resid", 0), torch.arange(8).reshape(2, 4)
        >>> with intervene(lm, Intervention(point, torch.zeros_like)):
        ...     lm.capture(tokens, [point])[point][:, 1:].abs().max().item()
        0.0
    """
    for edit in edits:
        if edit.lm is not None and dict(edit.lm) != dict(lm.identity):
            raise ConfigError(
                f"The edit at {edit.point} is of an SAE of another LM than {lm.name}. Edit the LM "
                "that the SAE was trained on."
            )
    with ExitStack() as stack:
        for edit in edits:
            function: OnPass = edit
            stack.enter_context(lm.hooked({edit.point: function}))
        yield lm
