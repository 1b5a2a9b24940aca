"""Texts that an LM writes while a latent is pushed, at one KL for all latents."""

from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae.artifacts.placed import PlacedSAE
from sae.cached import cached
from sae.checksums import sha256_of
from sae.dictionaries.sae import SAE
from sae.features.steering import Arm, Gauge, sizes_at
from sae.features.written import Pen
from sae.language.lm import LanguageModel
from sae.language.logit_lens import direct_logits
from sae.language.reads import reads
from sae.provenance import content_key
from sae.tasks.concept import read_openings
from sae.types import Ends, Point

TARGET = 1.0
"""Mean KL(clean || pushed) of the next-token predictions, in nats (delphi's)."""
OPENINGS, NEW_TOKENS, TEMPERATURE = 8, 32, 0.7
_START = 0.5
"""Size that searches start from, in lengths of the median row."""
_RIDGE = 0.01
"""Share of the mean variance that is added, so that C can be inverted."""
_PUSHES = 4
"""Sizes that a search measures, about."""
TOKENS = 2 * OPENINGS * (_PUSHES + 1) * (NEW_TOKENS + 5)
"""Tokens that are read and written for a latent and a random direction, about."""
Direction = Callable[[str], Float[Tensor, " d"]]
"""The direction of a latent, by its name."""


class Pushed(NamedTuple):
    """Token ids of texts, openings and separators included.

    Args:
        own: Written while the latent is pushed; None where no push has the target KL.
        random: The same of a random direction.
        tokens: Tokens that the LM read for them; 0 if they were asked for before.
    """

    own: list[list[int]] | None
    random: list[list[int]] | None
    tokens: int = 0


class Writing:
    """Neutral openings, and what an LM writes after them by itself and under pushes.

    Args:
        one: Says where directions are pushed and on which rows.
    """

    def __init__(self, one: PlacedSAE):
        assert one.point is not None, "directions are pushed at one point"
        self._one, self.point = one, one.point

    @cached_property
    def _pen(self) -> Pen:
        return Pen(
            self._one, read_openings(None, OPENINGS), draws=1, new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE, seed=0, batch_texts=OPENINGS,
        )  # fmt: skip

    @cached_property
    def clean(self) -> list[list[int]]:
        """Texts that the LM writes by itself."""
        return [one.tolist() for one in self._pen.tokens(None, [0.0])[0][0]]

    @cached_property
    def _gauge(self) -> Gauge:
        return Gauge(self._one, [torch.tensor(one) for one in self.clean])

    @cached_property
    def start(self) -> float:
        """Half the median norm of the rows of clean texts."""
        norms = [
            self._one.lm.capture(torch.tensor([one]), [self.point])[self.point][0, 1:]
            for one in self.clean
        ]
        return _START * float(torch.cat(norms).float().norm(dim=-1).median())

    def prepared(self) -> int:
        """Write and read the clean texts, if that is not done; tokens that it took."""
        with reads(self._one.lm.model) as read:
            _ = self.clean, self.start, self._gauge
        return read.tokens

    def under(self, arm: Arm) -> tuple[list[list[int]] | None, int]:
        """Texts under a push of the target KL, None if it is not reached; and the tokens read."""
        one = self._one
        assert arm.direction is not None
        identity: dict[str, Any] = {
            "lm": dict(one.lm.identity), "dtype": str(one.lm.dtype), "point": str(one.point),
            "counted": one.counted and one.counted.to_json(), "clean": self.clean,
            "keep_first": one.source.specs["test"].keep_first,
            "direction": sha256_of({"direction": arm.direction.contiguous()}),
            "target": TARGET, "temperature": TEMPERATURE, "facts": ["reached", "tokens"],
        }  # fmt: skip

        def make():
            with reads(one.lm.model) as read:
                (size,) = sizes_at(self._gauge, arm, [TARGET], self.start)
                written = self._pen.tokens(arm, [size.size])[0][0] if size.reached else self.clean
            ids = torch.stack([torch.as_tensor(text)[-NEW_TOKENS:] for text in written])
            return {"ids": ids}, {"reached": size.reached, "tokens": read.tokens}

        found, facts = cached("pushed/", {"key": content_key(identity)}, make)
        if not facts["reached"]:
            return None, facts["tokens"]
        return [
            [*before[:-NEW_TOKENS], *new]
            for before, new in zip(self.clean, found["ids"].tolist(), strict=True)
        ], facts["tokens"]


class Pushes:
    """Pushes of the latents of one dictionary; what was written is kept.

    Args:
        writing: Writes under a push.
        direction: Gives the direction of each latent.
    """

    def __init__(self, writing: Writing, direction: Direction):
        self.writing, self._direction = writing, direction
        self._known: dict[str, Pushed] = {}

    def texts(self, name: str) -> Pushed:
        """The texts of a latent, and those of a random direction of its own."""
        if name in self._known:
            return self._known[name]._replace(tokens=0)
        own = self._direction(name).float().cpu()
        random = torch.from_numpy(
            np.random.default_rng(list(name.encode())).normal(size=len(own))
        ).float()
        tokens = self.writing.prepared()
        (ours, read), (theirs, more) = (
            self.writing.under(Arm(name, direction)) for direction in (own, random)
        )
        self._known[name] = Pushed(ours, theirs, tokens + read + more)
        return self._known[name]


class _Elsewhere:
    """Another point of an SAE's LM: where directions are pushed, and nothing is read."""

    counted = None

    def __init__(self, one: PlacedSAE, point: Point):
        self.ends, self.specs, self._lm = Ends.at(point), one.source.specs, one.lm

    def load_lm(self, device: str) -> LanguageModel:
        """The same LM."""
        return self._lm


def of_latents(writing: Writing, sae: SAE) -> Pushes:
    """Pushes of a dictionary's decoder rows; a latent with a sign is pushed the other way.

    Args:
        writing: Writes at the point of the dictionary.
        sae: The dictionary.
    """

    def row(name: str) -> Tensor:
        return sae.W_dec[int(name.removeprefix("-"))] * (-1.0 if name[0] == "-" else 1.0)

    return Pushes(writing, row)


def of_classes(one: PlacedSAE, tokens: dict[str, Bool[np.ndarray, " vocab"]]) -> Pushes:
    """Pushes behind the last block, where what a direction does to the text is known.

    The direction of a class of tokens is C^-1 (m - m_all): m the mean of what the direct path adds
    to their logits, C the covariance over all tokens. It raises their logits above those of all
    others; m - m_all itself raises frequent tokens, whatever the class.

    Args:
        one: Its LM is pushed.
        tokens: Mask over the vocabulary by the name of the class.
    """
    point = Point("resid", one.lm.num_layers - 1)
    elsewhere: Any = _Elsewhere(one, point)
    last = PlacedSAE(one.sae, lambda _: elsewhere)
    logits = direct_logits(one.lm, torch.eye(one.lm.d_model), point).cpu()
    mean, spread = logits.mean(1), torch.cov(logits)
    spread += _RIDGE * spread.trace() / len(spread) * torch.eye(len(spread))

    def contrast(name: str) -> Tensor:
        own = torch.from_numpy(np.flatnonzero(tokens[name]))
        return torch.linalg.solve(spread, logits[:, own].mean(1) - mean)

    return Pushes(Writing(last), contrast)
