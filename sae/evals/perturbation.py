"""What `tpp` and `scr` share: probes on pooled activations, effects of latents, ablations.

Formulas and constants of SAEBench 0.6.0 (Karvonen et al. 2025, arXiv 2503.09532; the tasks are of
Karvonen et al. 2024, arXiv 2411.18895). A probe reads the mean of a text's activations. Decoding is
linear, so the mean of the activations without some latents is the mean activation less the mean of
those latents' contributions: nothing is encoded twice, and the SAE's error stays in.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.labelled import TextActivations
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.evals.base import EvalContext

THRESHOLDS = (2, 5, 10, 20, 50, 100, 500)
_BATCH, _EPOCHS, _LR, _L1 = 16, 20, 1e-3, 1e-3


class Pooled(NamedTuple):
    """Means over the tokens of each text.

    Args:
        x: Of the activations.
        f: Of the latents.
    """

    x: Float[Tensor, "texts d_in"]
    f: Float[Tensor, "texts d_sae"]

    def of(self, texts: Tensor) -> "Pooled":
        """Some of the texts."""
        return Pooled(self.x[texts], self.f[texts])


class Probe(NamedTuple):
    """A linear classifier; 1 where `x @ weight + bias` is positive."""

    weight: Float[Tensor, " d_in"]
    bias: Float[Tensor, ""]

    def right(
        self, x: Float[Tensor, "texts d_in"], labels: Int[Tensor, " texts"]
    ) -> Float[Tensor, " texts"]:
        """1 where the probe is right, else 0."""
        return ((x @ self.weight + self.bias > 0).long() == labels).double()


def check(context: EvalContext, word: str) -> None:
    """Refuse an SAE whose output stands at another place than its input."""
    if context.sae.config.d_out not in (None, context.sae.d_in) or context.sae.W_skip is not None:
        raise ConfigError(
            f"eval={word} takes latents out of the activation that the SAE reads; a transcoder "
            "writes to another one. Choose other evaluations."
        )


@torch.no_grad()
def pool(
    sae: SAE,
    activations: TextActivations,
    counted: Counted | None = None,
    batch_rows: int = 1024,
) -> Pooled:
    """Encode every token that counts, keep the means of each text; on the CPU.

    A massive activation would decide the mean of its text, and an ablation leaves it as it is. A
    text none of whose tokens count is all zeros. (SAEBench leaves special tokens out; these texts
    have none.)
    """
    text = torch.repeat_interleave(activations.lengths)
    num_texts = len(activations.lengths)
    x_sum, f_sum = torch.zeros(num_texts, sae.d_in), torch.zeros(num_texts, sae.d_sae)
    count = torch.zeros(num_texts, 1)
    for rows, owner in zip(activations.x.split(batch_rows), text.split(batch_rows), strict=True):
        if counted is not None:
            counts = counted.mask([rows], None)
            rows, owner = rows[counts], owner[counts]
        x = rows.float()
        x_sum.index_add_(0, owner, x)
        f_sum.index_add_(0, owner, sae.encode(x.to(sae.device)).float().cpu())
        count.index_add_(0, owner, torch.ones(len(owner), 1))
    return Pooled(x_sum / count.clamp_min(1), f_sum / count.clamp_min(1))


def train_probe(x: Float[Tensor, "texts d_in"], labels: Int[Tensor, " texts"], seed: int) -> Probe:
    """AdamW (rate 1e-3), batches of 16, 20 epochs, cross entropy + 1e-3 * sum |weight|.

    SAEBench keeps the epoch with the best test accuracy; this one keeps the last.
    """
    generator = torch.Generator().manual_seed(seed)
    bound = x.shape[1] ** -0.5
    weight = torch.empty(x.shape[1]).uniform_(-bound, bound, generator=generator).requires_grad_()
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.AdamW([weight, bias], lr=_LR)
    with torch.enable_grad():
        for _ in range(_EPOCHS):
            for batch in torch.randperm(len(x), generator=generator).split(_BATCH):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    x[batch] @ weight + bias, labels[batch].float()
                )
                optimizer.zero_grad()
                (loss + _L1 * weight.abs().sum()).backward()
                optimizer.step()
    return Probe(weight.detach(), bias.detach())


def effects(
    f: Float[Tensor, "texts d_sae"],
    labels: Int[Tensor, " texts"],
    probe: Probe,
    W_dec: Float[Tensor, "d_sae d_in"],
    only_more: bool,
) -> Float[Tensor, " d_sae"]:
    r"""$(\bar f_j^+ - \bar f_j^-)\;(w \cdot d_j)$: what a latent adds to the probe's logit.

    Args:
        f: Latents, means over each text.
        labels: 1 or 0.
        probe: Tells the labels apart.
        W_dec: Decoder.
        only_more: Latents that are lower on 1 have none.
    """
    difference = f[labels == 1].mean(0) - f[labels == 0].mean(0)
    return (difference.clamp_min(0) if only_more else difference) * (W_dec.float() @ probe.weight)


def strongest(effect: Float[Tensor, " d_sae"], n: int) -> Bool[Tensor, " d_sae"]:
    """The n latents of largest effect, of those that have one.

    Example:
        >>> strongest(torch.tensor([0.5, 0.0, 2.0, 1.0]), 2).tolist()
        [False, False, True, True]
    """
    chosen = torch.zeros_like(effect, dtype=torch.bool)
    chosen[effect.topk(min(n, int((effect != 0).sum()))).indices] = True
    return chosen


def balanced(
    labels: Int[Tensor, " texts"], positive: int, num_classes: int, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Texts of a class and as many of the others, about evenly; their labels, 1 and 0.

    Source: SAEBench, `prepare_probe_data`; the draw is made once here, not for each ablation.
    """
    own = torch.where(labels == positive)[0]
    share = -(-len(own) // (num_classes - 1))
    others = []
    for label in range(num_classes):
        if label != positive:
            members = torch.where(labels == label)[0]
            others.append(members[torch.randperm(len(members), generator=generator)[:share]])
    drawn = torch.cat(others)
    drawn = drawn[torch.randperm(len(drawn), generator=generator)[: len(own)]]
    return torch.cat([own, drawn]), torch.cat([torch.ones_like(own), torch.zeros_like(drawn)])
