"""Measures of an LM's predictions: cross entropy, KL, agreement, and which ones count."""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae.functional.defined import where_defined

MIN_CE_DENOMINATOR_NATS = 0.01
"""Below this gap between ablated and clean cross entropy, "CE recovered" is undefined."""


def prediction_mask(
    document: Int[Tensor, "batch ctx"], keep_first: bool = False
) -> Bool[Tensor, "batch ctx-1"]:
    """Mask of positions with a prediction that counts; the last one of a context makes none.

    A prediction across a document boundary is noise, and position 0 is an attention sink, whose
    prediction counts only with `keep_first`.

    Args:
        document: Document id of every token; the separator belongs to the document it ends.
        keep_first: Count the predictions made at position 0.

    Example:
        >>> prediction_mask(torch.tensor([[0, 0, 0, 1, 1]]))
        tensor([[False,  True, False,  True]])
    """
    mask = document[:, :-1] == document[:, 1:]
    if not keep_first:
        mask[:, :1] = False
    return mask


def next_token_cross_entropy(
    logits: Float[Tensor, "batch ctx vocab"],
    tokens: Int[Tensor, "batch ctx"],
    mask: Bool[Tensor, "batch ctx-1"],
) -> Float[Tensor, " predictions"]:
    """Cross entropy in nats of every prediction that `mask` counts, by float32 log-softmax.

    Example:
        >>> mask = torch.tensor([[True, False]])
        >>> next_token_cross_entropy(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]), mask)
        tensor([1.3863])
    """
    return cross_entropy(logits[:, :-1][mask], tokens[:, 1:][mask])


def cross_entropy(
    logits: Float[Tensor, "predictions vocab"], targets: Int[Tensor, " predictions"]
) -> Float[Tensor, " predictions"]:
    """Cross entropy in nats of single predictions, by float32 log-softmax."""
    return _at(torch.log_softmax(logits, -1, dtype=torch.float32), targets)


def kl_divergence(
    clean: Float[Tensor, "*positions vocab"], other: Float[Tensor, "*positions vocab"]
) -> Float[Tensor, "*positions"]:
    """KL(clean || other) in nats of the distributions that two sets of logits give.

    By log-softmax in float32: the form softmax -> log is NaN at extreme logits. Rounding below 0
    is cut off.

    Example:
        >>> kl_divergence(torch.tensor([200.0, -200.0]), torch.tensor([-200.0, 200.0]))
        tensor(400.)
    """
    log_p, log_q = (torch.log_softmax(logits, -1, dtype=torch.float32) for logits in (clean, other))
    if other.requires_grad:  # `_kl` writes into what a gradient needs
        return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0)
    return _kl(log_p, log_q)


def compare_predictions(
    clean: Float[Tensor, "predictions vocab"],
    other: Float[Tensor, "predictions vocab"],
    targets: Int[Tensor, " predictions"],
) -> dict[str, Shaped[Tensor, " predictions"]]:
    """Cross entropy under both sets of logits, KL and top-1 agreement of every prediction.

    The same as `next_token_cross_entropy`, `kl_divergence` and `top1_agreement`, of one
    log-softmax each: over a vocabulary of 50,000 that decides the time.

    Returns:
        `clean` and `other` (nats), `kl` (nats) and `top1`.

    Example:
        >>> clean, other = torch.zeros(1, 2), torch.tensor([[0.0, -200.0]])
        >>> compare_predictions(clean, other, torch.tensor([1]))["other"]
        tensor([200.])
    """
    log_p = torch.log_softmax(clean, -1, dtype=torch.float32)
    log_q = torch.log_softmax(other, -1, dtype=torch.float32)
    return {
        "clean": _at(log_p, targets),
        "other": _at(log_q, targets),
        "top1": top1_agreement(log_p, log_q),
        "kl": _kl(log_p, log_q),
    }


def top1_agreement(
    clean: Float[Tensor, "*positions vocab"], other: Float[Tensor, "*positions vocab"]
) -> Bool[Tensor, "*positions"]:
    """True where both sets of logits name the same token as the most likely."""
    return clean.argmax(-1) == other.argmax(-1)


def ce_recovered(
    clean: Shaped[Tensor, "..."], sae: Shaped[Tensor, "..."], ablated: Shaped[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Share of the loss caused by an ablation that the SAE gives back.

    (ablated - sae) / (ablated - clean) of mean cross entropies in nats: 1 for a perfect SAE, 0
    for one that is as bad as the ablation; NaN where the denominator is under 0.01 nat.

    Example:
        >>> ce_recovered(torch.tensor(3.0), torch.tensor(3.5), torch.tensor(8.0)).item()
        0.8999999761581421
    """
    denominator = ablated - clean
    return where_defined(denominator >= MIN_CE_DENOMINATOR_NATS, (ablated - sae) / denominator)


def perplexity(cross_entropy: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Perplexity: exp of a mean cross entropy in nats."""
    return cross_entropy.exp()


def _at(log_p: Float[Tensor, "n vocab"], targets: Int[Tensor, " n"]) -> Float[Tensor, " n"]:
    return -log_p.gather(1, targets.long()[:, None])[:, 0]


def _kl(log_p: Float[Tensor, "*n vocab"], log_q: Float[Tensor, "*n vocab"]) -> Float[Tensor, "*n"]:
    """KL of log-probabilities, which it overwrites: fresh memory of this size is slow."""
    difference = log_q.neg_().add_(log_p)
    return log_p.exp_().mul_(difference).sum(-1).clamp_min(0)
