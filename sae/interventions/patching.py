"""Prompts whose latents take the values that they have on counterfactual prompts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import functional
from sae.activations.counted import Counted
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.interventions.edits import Latents, known_latents
from sae.language.lm import LanguageModel
from sae.types import Point

OfLogits = Callable[[Tensor], Tensor]
"""A number for each prompt, of the logits at its end."""


class Outcome(NamedTuple):
    """The effect of a set of patched latents, for each prompt.

    Args:
        kl: KL(target || run) in nats at the end; the target is the run on the counterfactual.
        kl_paper: KL(run || target), as arXiv 2309.08600 has it.
        difference: Logit of the right answer less that of the wrong one.
        edit: Length of the edit, mean over the positions that may be edited.
    """

    kl: Float[Tensor, " prompts"]
    kl_paper: Float[Tensor, " prompts"]
    difference: Float[Tensor, " prompts"]
    edit: Float[Tensor, " prompts"]


class Patching:
    """A batch of prompts and counterfactuals of the same length, read once.

    With f, f' the codes of prompt and counterfactual, and e, e' what the SAE misses of each, a
    patch of the latents S at all positions that count in both gives

        x + sum over j in S of (f'_j - f_j) W_dec[j]     (+ e' - e, if the error is patched too)

    so the error of the run stays (arXiv 2309.08600, section 4). Rows that do not count stay. Of the
    codes, only latents that change anywhere are kept.

    Args:
        lm: The LM.
        sae: Encodes and decodes; it reads and writes `point`.
        point: The point.
        counted: Rule for the rows that count there; None: all but position 0.
        tokens: The prompts; what stands behind their ends is not looked at.
        patch: Their counterfactuals.
        end: Position of the last token of each.
        split: True if the signs of a code are two latents: 0 to d_sae - 1 the positive sides,
            d_sae to 2 d_sae - 1 the negative ones.
    """

    def __init__(
        self, lm: LanguageModel, sae: SAE, point: Point, counted: Counted | None,
        tokens: Int[Tensor, "prompts ctx"], patch: Int[Tensor, "prompts ctx"],
        end: Int[Tensor, " prompts"], *, split: bool = False,
    ) -> None:  # fmt: skip
        if sae.d_out != sae.d_in or sae.W_skip is not None:
            raise ConfigError(
                "A transcoder's code cannot be written back into what it reads. Choose an SAE that "
                "reads and writes one point."
            )
        self.point = point
        self._run = lm.repeated(tokens, [point], end)
        with torch.no_grad():
            x, other = (lm.capture(ids, [point])[point] for ids in (tokens, patch))
            self.edited = _counts(counted, point, x, tokens) & _counts(counted, point, other, patch)
            places = torch.arange(tokens.shape[1], device=x.device)
            self.edited &= places <= end.to(x.device)[:, None]
            self.target = lm.repeated(patch, [], end)({})[:, 0].float()
            self.clean = self.logits()
            f, f_other = (sae.encode(rows).float() for rows in (x, other))
            W_dec = sae.W_dec
            if split:
                f, f_other = (torch.cat([c.relu(), (-c).relu()], -1) for c in (f, f_other))
                W_dec = torch.cat([W_dec, -W_dec])
            where = self.edited[..., None]
            change = (f_other - f) * where
            self.num_latents = change.shape[-1]
            self.latents: Int[Tensor, " changing"] = change.flatten(0, 1).any(0).nonzero()[:, 0]
            self.change: Float[Tensor, "prompts ctx changing"] = change[..., self.latents]
            self.W_dec: Float[Tensor, "changing d_in"] = W_dec[self.latents].float()
            self.whole: Float[Tensor, "prompts ctx d_in"] = (other.float() - x.float()) * where
            self.error = self.whole - self.change @ self.W_dec

    def step(
        self, share: Float[Tensor, " latents"], error: float = 0.0
    ) -> Float[Tensor, "prompts ctx d_in"]:
        """Vectors to add to the activation so that latents take a share of their change.

        Args:
            share: Share of each latent: 1 patches it, 0 leaves it.
            error: Share of the change of the SAE's error.
        """
        share = share[self.latents]
        if not share.requires_grad and len(few := share.nonzero()[:, 0]) < len(share):
            step = (self.change[..., few] * share[few]) @ self.W_dec[few]
        else:
            step = (self.change * share) @ self.W_dec
        return step + error * self.error if error else step

    def share_of(self, latents: Latents) -> Float[Tensor, " latents"]:
        """Shares for `step`: 1 for some latents, 0 for the others.

        Raises:
            ConfigError: If the SAE has fewer latents.
        """
        device = self.change.device
        share = torch.zeros(self.num_latents, device=device)
        share[known_latents(latents, self.num_latents, device)] = 1.0
        return share

    def logits(self, step: Tensor | None = None) -> Float[Tensor, "prompts vocab"]:
        """Logits at the end of the prompts, with `step` added to the activations."""
        replace = {} if step is None else {self.point: lambda x: (x.float() + step).to(x)}
        return self._run(replace)[:, 0].float()

    @torch.no_grad()
    def outcome(
        self, share: Float[Tensor, " latents"], difference: OfLogits, error: float = 0.0
    ) -> Outcome:
        """Measure a set of patched latents.

        Args:
            share: 1 for the latents of the set, else 0.
            difference: Gives the logit differences.
            error: 1 patches the error as well.
        """
        step = self.step(share, error)
        logits = self.logits(step)
        lengths = step.norm(dim=-1).sum(1) / self.edited.sum(1).clamp_min(1)
        return Outcome(
            functional.kl_divergence(self.target, logits).cpu(),
            functional.kl_divergence(logits, self.target).cpu(),
            difference(logits).cpu(), lengths.cpu(),
        )  # fmt: skip

    def gradient(self, measure: OfLogits, along: float = 0.0) -> Float[Tensor, "prompts ctx d_in"]:
        """Gradient of one number per prompt with respect to the activation.

        Args:
            measure: Computes the number of each prompt from its logits [prompts vocab].
            along: Point of the straight line at which the gradient is taken: 0 is the prompt's
                activation, 1 the counterfactual's.

        Returns:
            The gradient; 0 at positions that are not edited.
        """
        step = (along * self.whole).requires_grad_()
        (gradient,) = torch.autograd.grad(measure(self.logits(step)).sum(), step)
        return gradient * self.edited[..., None]


def _counts(
    counted: Counted | None, point: Point, x: Tensor, tokens: Tensor
) -> Bool[Tensor, "prompts ctx"]:
    """The rows that count; position 0 never does, being a sink."""
    if counted is None:
        counts = torch.ones(tokens.shape, dtype=torch.bool, device=x.device)
    else:
        counts = counted.at([point]).mask([x], tokens.to(x.device))
    counts[:, 0] = False
    return counts
