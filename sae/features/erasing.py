"""Edits that take a concept out of activations: latents of an SAE, closed forms, and controls."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.sae import SAE
from sae.interventions import Replacement, edited, projected_out, set_to
from sae.probing import erasers, fresh
from sae.probing.ranking import effects

FORMS = ("projection", "delta", "zeroing")
"""Edits of latents: their directions are projected out of x; x less what they add to the
reconstruction, so that the SAE's error stays; the reconstruction without them in place of x."""


class Erasure(NamedTuple):
    """An edit.

    Args:
        method: Name in tables.
        latents: Number of latents or directions that it takes out; 0 for closed forms.
        replacement: Makes the edited rows.
    """

    method: str
    latents: int
    replacement: Replacement


class Ranked(NamedTuple):
    """Latents by what they tell about a concept, the most first.

    Args:
        latents: Their numbers.
        effect: Difference of class means times what the latent adds to a linear probe's logit.
        fires: Numbers of all latents that fire on 1 % of the rows or more.
    """

    latents: Int[Tensor, " latents"]
    effect: Float[Tensor, " latents"]
    fires: Int[Tensor, " alive"]


@torch.no_grad()
def ranked(
    sae: SAE, x: Float[Tensor, "n d"], z: Int[Tensor, " n"], seed: int, batch_rows: int = 1024
) -> Ranked:
    """Rank latents by their effect on a linear probe of a concept of two classes.

    Args:
        sae: The SAE.
        x: Training rows.
        z: 1 or 0.
        seed: Seed of the probe.
        batch_rows: Rows encoded at once.
    """
    sums, fires = torch.zeros(2, sae.d_sae), torch.zeros(sae.d_sae)
    for rows, labels in zip(x.split(batch_rows), z.split(batch_rows), strict=True):
        f = sae.encode(rows.to(sae.device)).float().cpu()
        sums.index_add_(0, labels, f)
        fires += (f != 0).sum(0)
    means = sums / torch.bincount(z, minlength=2)[:, None]
    probe = fresh.by_column(x.float(), z, seed)
    effect = effects(means, torch.arange(2), probe, sae.W_dec.cpu(), only_more=False).abs()
    order = effect.argsort(descending=True)
    return Ranked(order, effect[order], (fires >= 0.01 * len(x)).nonzero()[:, 0])


def of_latents(sae: SAE, latents: Sequence[int], form: str) -> Replacement:
    """An edit that takes out latents, in one of `FORMS`."""
    if form == "projection":
        return projected_out(sae.W_dec[list(latents)])
    kept = "kept" if form == "delta" else "dropped"
    return edited(sae, set_to(list(latents), 0.0), kept)


def latent_edits(sae: SAE, latents: Sequence[int], ks: Sequence[int]) -> list[Erasure]:
    """The first k latents for each k, in every form; and the reconstruction with all of them."""
    found = [
        Erasure(form, k, of_latents(sae, latents[:k], form)) for form in FORMS for k in ks
    ]  # fmt: skip
    return [Erasure("reconstruction", 0, lambda x: sae(x).to(x)), *found]


def closed_forms(
    x: Float[Tensor, "n d"], z: Int[Tensor, " n"], keep: Int[Tensor, " n"] | None = None
) -> list[Erasure]:
    """LEACE, projection of class means with and without the mean row, and SPLINCE.

    Args:
        x: The rows that are edited, of training texts.
        z: Classes of the concept.
        keep: A label that SPLINCE keeps; None: no SPLINCE.

    Raises:
        ConfigError: If the rows are too few, or SPLINCE cannot keep the label.
    """
    moments = erasers.moments(x, z)
    found = {
        "LEACE": erasers.leace(moments),
        "mean difference": erasers.mean_projection(moments),
        "mean-affine": erasers.mean_affine(moments),
    }
    if keep is not None:
        label = erasers.covariance(x, keep[:, None].double())
        found["SPLINCE"] = erasers.splince(moments, label)
    return [Erasure(name, 0, eraser) for name, eraser in found.items()]


def controls(sae: SAE, found: Ranked, ks: Sequence[int], seed: int) -> list[Erasure]:
    """Random latents that fire, none of them chosen, and random directions, for each k."""
    generator = torch.Generator().manual_seed(seed)
    others = found.fires[~torch.isin(found.fires, found.latents[: max(ks)])]
    shuffled = others[torch.randperm(len(others), generator=generator)]
    directions = torch.randn(max(ks), sae.d_in, generator=generator)
    return [
        *(Erasure("random latents", k, of_latents(sae, shuffled[:k].tolist(), "projection"))
          for k in ks if k <= len(shuffled)),
        *(Erasure("random directions", k, projected_out(directions[:k])) for k in ks),
    ]  # fmt: skip
