"""Latents that belong to a concept, and what pushing each of them does to the predictions."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae.activations.labelled import text_activations
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features.effects import at_one_point
from sae.features.steering import BATCH, Arm
from sae.language.logit_lens import direct_logits, has_direct_path
from sae.probing.codes import pool
from sae.probing.ranking import mean_difference
from sae.progress import progress
from sae.tasks.labelled import LabelledTexts

Select = Literal["output", "confidence", "activation"]
TOP_TOKENS = 20
"""Tokens that a latent promotes most, and tokens whose probabilities a confidence is of."""


class Contrast(NamedTuple):
    """Contrast of texts with a concept and others.

    Args:
        direction: Difference of the mean activations (DiffMean).
        latents: Difference of the means of each latent.
        live: Latents that fire on any of the texts.
        norm: Median length of the rows that count.
    """

    direction: Float[Tensor, " d"]
    latents: Float[Tensor, " d_sae"]
    live: Int[Tensor, " live"]
    norm: float


class Effect(NamedTuple):
    """Effect of a push of a latent on the next-token predictions, mean over prompts.

    Args:
        latent: Number of the latent.
        difference: See `Contrast.latents`.
        output_score: See `output_effects`; None where there is no logit lens.
        confidence: Change of the token confidence, without its sign, in nats.
        promoted: Ids of the tokens that its decoder row promotes most.
    """

    latent: int
    difference: float
    output_score: float | None
    confidence: float
    promoted: list[int]


@torch.no_grad()
def contrast(
    one: PlacedSAE, texts: LabelledTexts, index: Sequence[int], *, per_class: int, max_tokens: int
) -> Contrast:
    """Compare the activations of texts with and without a concept; of each text the mean counts.

    Args:
        one: The SAE.
        texts: Class 1 has the concept.
        index: Texts that may be read, in the order in which they are.
        per_class: Texts of each class.
        max_tokens: Longer texts lose their end.
    """
    point, _ = at_one_point(one)
    positive = [i for i in index if texts.labels[i] == 1][:per_class]
    negative = [i for i in index if texts.labels[i] == 0][:per_class]
    read = text_activations(
        one.lm, point, [texts.texts[i] for i in positive + negative], name=texts.name,
        which="all", max_tokens=max_tokens,
    )  # fmt: skip
    pooled = pool(one.sae, read, one.counted)
    has = torch.arange(len(pooled.x)) < len(positive)
    counts = torch.ones(len(read.x), dtype=torch.bool)
    if one.counted is not None:
        counts = one.counted.mask([read.x], None)
    return Contrast(
        mean_difference(pooled.x, has), mean_difference(pooled.f, has),
        (pooled.f != 0).any(0).nonzero()[:, 0], float(read.x[counts].float().norm(dim=-1).median()),
    )  # fmt: skip


@torch.no_grad()
def output_effects(
    one: PlacedSAE, latents: Sequence[int], found: Contrast, prompts: Sequence[Sequence[int]],
    size: float,
) -> list[Effect]:  # fmt: skip
    r"""Effects of pushing latents on the predictions at the end of prompts.

    The output score is $p\,(1 - r / |V|)$, with p and r the probability and the rank (from 0) of
    the likeliest of the tokens that the latent promotes. The token confidence is minus the mean
    log-probability of the likeliest tokens.

    Source: the output score of Arad et al. 2025 (arXiv 2505.20063), who push at the last token of
    one prompt, ten times as far as the strongest latent there. The change of token confidence is
    of Wang et al. 2025 (arXiv 2510.03659); its details here are our own (docs/guides/steering.md).

    Args:
        one: The SAE.
        latents: Indices of the latents to push.
        found: Differences between texts with and without the concept.
        prompts: Token ids.
        size: Length of the push, the same for all latents.
    """
    point, positions = at_one_point(one)
    lm, W_dec = one.lm, one.sae.W_dec[list(latents)].float()
    lens = None
    if has_direct_path(lm, point):
        lens = direct_logits(lm, W_dec, point).topk(TOP_TOKENS).indices
    scores, changes, count = torch.zeros(len(latents)), torch.zeros(len(latents)), 0
    with progress("push candidates", len(latents) * len(prompts), "passes") as advance:
        for length in sorted({len(ids) for ids in prompts}):
            group = torch.tensor([list(ids) for ids in prompts if len(ids) == length])
            for tokens in group.to(lm.device).split(BATCH):
                positions.start(tokens)
                run = lm.repeated(tokens, [point], torch.full((len(tokens),), length - 1))
                clean = _confidence(run({point: positions.note(point)})[:, 0].float())
                for i, row in enumerate(W_dec):
                    pushed = positions.only(Arm("", row).pushed(size))
                    logits = run({point: pushed})[:, 0].float()
                    changes[i] += (_confidence(logits) - clean).abs().sum().cpu()
                    if lens is not None:
                        scores[i] += _output_score(logits, lens[i]).sum().cpu()
                    advance(len(tokens))
                count += len(tokens)
    return [
        Effect(
            latent, float(found.latents[latent]),
            None if lens is None else float(scores[i]) / count, float(changes[i]) / count,
            [] if lens is None else lens[i].tolist(),
        )
        for i, latent in enumerate(latents)
    ]  # fmt: skip


def strongest(effects: Sequence[Effect], select: Select, count: int) -> list[Effect]:
    """The latents of largest effect.

    Raises:
        ConfigError: If the output score is asked for where there is no logit lens.
    """
    if select == "output" and any(one.output_score is None for one in effects):
        raise ConfigError(
            "The output score needs a direct path from the SAE's point to the logits, which is not "
            "there. Set eval.steer.select=confidence."
        )
    keys = {"output": "output_score", "confidence": "confidence", "activation": "difference"}
    return sorted(effects, key=lambda one: -getattr(one, keys[select]))[:count]


def _confidence(logits: Float[Tensor, "n vocab"]) -> Float[Tensor, " n"]:
    top = torch.log_softmax(logits, -1).topk(min(TOP_TOKENS, logits.shape[-1])).values
    return -top.mean(-1)


def _output_score(
    logits: Float[Tensor, "n vocab"], promoted: Int[Tensor, " top"]
) -> Float[Tensor, " n"]:
    best = logits[:, promoted].amax(-1)
    rank = (logits > best[:, None]).sum(-1)
    probability = (best - logits.logsumexp(-1)).exp()
    return probability * (1 - rank / logits.shape[-1])
