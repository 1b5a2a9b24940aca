"""Effects of a latent on the LM's predictions, by ablation."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae import functional
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features.record import Record
from sae.interventions import Positions, edited
from sae.language.lm import LanguageModel, Replacement
from sae.types import Point

BATCH_CONTEXTS = 4
"""Contexts in a pass; their logits are the largest thing in memory."""


class Effect(NamedTuple):
    """A latent set to zero where it fires, with the error of the SAE kept.

    Args:
        logits: Mean change of each token's logit over those positions.
        kl: Mean KL(clean || ablated) there, in nats.
        kl_random: KL after an equally long step in a random direction.
        positions: Number of positions.
    """

    logits: Float[Tensor, " vocab"]
    kl: float
    kl_random: float
    positions: int


class Contexts(NamedTuple):
    """Contexts of a latent.

    Args:
        tokens: Token ids.
        fires: Mask of the positions where it fires.
        peak: Position of its maximum in each.
    """

    tokens: Int[Tensor, "contexts ctx"]
    fires: Bool[Tensor, "contexts ctx"]
    peak: Int[Tensor, " contexts"]


def strongest(record: Record, count: int) -> Contexts:
    """The contexts of largest maximum of a record."""
    text = record.text
    assert text is not None
    shown = [one for one in record.contexts if one.group == "top"][:count]
    fires = np.zeros((len(shown), text.tokens.shape[1]), dtype=bool)
    for row, one in zip(fires, shown, strict=True):
        row[one.positions] = True
    tokens = text.tokens[[one.context for one in shown]].astype(np.int64)
    peak = torch.tensor([one.peak for one in shown])
    return Contexts(torch.from_numpy(tokens), torch.from_numpy(fires), peak)


@torch.no_grad()
def ablate(one: PlacedSAE, lm: LanguageModel, record: Record, contexts: Contexts) -> Effect:
    """Mean change of the logits where a latent fires, when it does not.

    Source: arXiv 2309.08600, section 5.1 ("less than rank one" ablation).

    Args:
        one: The SAE; it reads and writes one point.
        lm: Its LM.
        record: The latent's record.
        contexts: Its contexts.
    """
    point, positions = at_one_point(one)
    sae, latent = one.sae, record.latent
    generator = torch.Generator().manual_seed(0)
    random = torch.nn.functional.normalize(torch.randn(sae.d_in, generator=generator), dim=0)

    def off(f: Tensor) -> Tensor:
        changed = f.clone()
        changed[..., latent] -= record.sign * (record.sign * f[..., latent]).relu()
        return changed

    def away(x: Tensor) -> Tensor:
        f = (record.sign * sae.encode(x)[..., latent, None]).relu()
        return x - f.to(x) * random.to(x)

    edits: list[Replacement] = [edited(sae, off), away]
    total = torch.zeros(lm.vocab_size, dtype=torch.float64)
    kl, count = [0.0, 0.0], 0
    for start in range(0, len(contexts.tokens), BATCH_CONTEXTS):
        part = slice(start, start + BATCH_CONTEXTS)
        tokens, fires = contexts.tokens[part].to(lm.device), contexts.fires[part]
        positions.start(tokens)
        conditions = [{point: positions.note(point)}]
        conditions += [{point: positions.only(edit)} for edit in edits]
        clean = None
        for i, logits in enumerate(lm.logits_under(tokens, conditions)):
            there = logits[fires.to(logits.device)].float()
            if clean is None:
                clean = there
                continue
            kl[i - 1] += functional.kl_divergence(clean, there).sum().item()
            if i == 1:
                total += (there - clean).sum(0).cpu().double()
        count += int(fires.sum())
    return Effect((total / count).float(), kl[0] / count, kl[1] / count, count)


@torch.no_grad()
def on_last_token(
    one: PlacedSAE, lm: LanguageModel, text: str, count: int = 10
) -> list[tuple[int, float]]:
    """Latents on the last token of a text, the strongest first.

    The document separator stands before the text, whose first token would else be a sink. Of
    signed codes the positive sides are looked at.

    Args:
        one: The SAE.
        lm: Its LM.
        text: The text.
        count: Number of latents.
    """
    point, _ = at_one_point(one)
    x = lm.capture(lm.tokens(text), [point])[point][0, -1]
    strongest = one.sae.encode(x).float().topk(min(count, one.sae.d_sae))
    pairs = zip(strongest.indices.tolist(), strongest.values.tolist(), strict=True)
    return [(latent, value) for latent, value in pairs if value > 0]


def at_one_point(one: PlacedSAE) -> tuple[Point, Positions]:
    """The point that an SAE reads and writes, and the positions that edits touch there.

    Raises:
        ConfigError: If it reads and writes several.
    """
    if one.point is None or one.ends is None:
        raise ConfigError(
            "Effects need an SAE that reads and writes one point. Transcoders and crosscoders do "
            "not. Choose another SAE."
        )
    keep_first = one.source.specs["test"].keep_first
    return one.point, Positions(one.ends, one.counted, keep_first)
