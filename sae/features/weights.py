"""Statistics of latents from the weights of an SAE; no text is read."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.dictionaries.sae import SAE, SIGNED
from sae.features.record import Listed
from sae.language.lm import LanguageModel
from sae.language.logit_lens import direct_logits, has_direct_path
from sae.types import Ends, Point

NEAREST, NEURONS, LOGITS = 10, 3, 10
"""Entries of each list."""
_BLOCK = 256


@torch.no_grad()
def weight_statistics(
    sae: SAE,
    lm: LanguageModel | None,
    point: Point | None,
    others: Sequence[SAE] = (),
    latents: Int[Tensor, " latents"] | None = None,
) -> dict[str, Tensor]:
    """Lists and numbers of every latent.

    Args:
        sae: The SAE.
        lm: LM that gives the logits; None leaves them out.
        point: Point where the SAE writes; None leaves the logits out.
        others: SAEs of other seeds, for the stability.
        latents: Indices of the latents; None: all.

    Returns:
        For each of them `nearest` and `cosine` [latents 10]: latents with the most similar atoms,
        of signed codes (`SIGNED`) by the size of the cosine, as for the stability;
        `neuron` and `entry` [latents 3]: the largest entries of the atom by size;
        `encoder_cosine` [latents] with the atom (of transcoders none); `top`, `top_value`,
        `bottom`, `bottom_value` [latents 10]: `direct_logits` of the atom; with `others`,
        `stability` and `stability_random` [latents]: the mean over them of the largest cosine with
        an atom, and the same with as many random atoms as each of them has.
    """
    W_dec = sae.W_dec.float()
    k, signed = min(NEAREST, sae.d_sae - 1), sae.config.activation in SIGNED
    dictionaries = [other.W_dec.to(W_dec) for other in others]
    random = {n: _random_atoms(n, sae.d_out).to(W_dec) for n in {len(one) for one in dictionaries}}
    found: dict[str, list[Tensor]] = {}

    def keep(**values: Tensor) -> None:
        for name, value in values.items():
            found.setdefault(name, []).append(value.cpu())

    latents = torch.arange(sae.d_sae) if latents is None else latents
    for block in latents.to(W_dec.device).split(_BLOCK):
        atoms = W_dec[block]
        cosines = atoms @ W_dec.T
        order = cosines.abs() if signed else cosines.clone()
        order[torch.arange(len(block)), block] = -torch.inf
        nearest = order.topk(k, dim=1).indices
        neuron = atoms.abs().topk(min(NEURONS, sae.d_out), dim=1).indices
        keep(nearest=nearest, cosine=cosines.gather(1, nearest),
             neuron=neuron, entry=atoms.gather(1, neuron))  # fmt: skip
        if sae.config.d_out is None:
            encoder = torch.nn.functional.normalize(sae.W_enc[:, block].T.float(), dim=1)
            keep(encoder_cosine=(encoder * atoms).sum(1))
        if lm is not None and point is not None and has_direct_path(lm, point):
            logits = direct_logits(lm, atoms, point)
            top = logits.topk(LOGITS, dim=1)
            bottom = logits.topk(LOGITS, dim=1, largest=False)
            keep(top=top.indices, top_value=top.values,
                 bottom=bottom.indices, bottom_value=bottom.values)  # fmt: skip
        if others:
            largest = [_largest(atoms @ one.T, signed) for one in dictionaries]
            by_chance = {n: _largest(atoms @ one.T, signed) for n, one in random.items()}
            keep(
                stability=torch.stack(largest).mean(0),
                stability_random=torch.stack([by_chance[len(one)] for one in dictionaries]).mean(0),
            )
    return {name: torch.cat(parts) for name, parts in found.items()}


def written_at(ends: Ends | None) -> Point | None:
    """The point where an SAE writes, if it is one."""
    points = [] if ends is None else list(ends.writes)
    return points[0] if len(points) == 1 else None


def _largest(cosines: Float[Tensor, "n atoms"], signed: bool) -> Float[Tensor, " n"]:
    return (cosines.abs() if signed else cosines).amax(1)


def _random_atoms(count: int, width: int) -> Float[Tensor, "count width"]:
    atoms = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(atoms, dim=1)


def of_latent(statistics: dict[str, Any], latent: int, sign: int) -> dict[str, Any]:
    """The fields of `Record` for one latent; the negative side has the opposite atom."""

    def listed(ids: str, values: str, factor: int = 1) -> Listed:
        return Listed(statistics[ids][latent], factor * statistics[values][latent])

    found: dict[str, Any] = {
        "nearest": listed("nearest", "cosine", sign), "neurons": listed("neuron", "entry", sign),
    }  # fmt: skip
    if "encoder_cosine" in statistics:
        found["encoder_cosine"] = float(statistics["encoder_cosine"][latent])
    if "top" in statistics:
        sides = [listed("top", "top_value", sign), listed("bottom", "bottom_value", sign)]
        found["top_logits"], found["bottom_logits"] = sides[::sign]
    if "stability" in statistics:
        found["stability"] = float(statistics["stability"][latent])
    return found
