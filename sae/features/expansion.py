"""Latents below a number that drive it: ranked by a first-order estimate, ablated exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from scipy.stats import spearmanr
from torch import Tensor

from sae.features.upstream import Upstream
from sae.metrics.bootstrap import Bootstrap, multinomial_weights
from sae.progress import progress
from sae.settings import Settings, setting

LEAST_CONTEXTS = 5
"""Contexts without which a latent is not expanded."""
SAME_DIRECTION = 0.9
"""Cosine of two atoms above which an edge says no more than that a direction stays."""


class Search(Settings):
    """Settings of the search for a circuit."""

    contexts: int = setting(
        20, ge=LEAST_CONTEXTS, le=200,
        help="contexts of each latent, drawn where it fires with at least half its maximum",
    )  # fmt: skip
    exact: int = setting(50, ge=1, help="latents of the layer below that are ablated, by estimate")
    random: int = setting(50, ge=0, help="others that fire there and are ablated, drawn at random")
    children: int = setting(5, ge=1, help="strongest latents below that are followed further down")
    min_share: float = setting(
        0.01, ge=0, help="effects under this share of the activation above are not followed"
    )
    text: Literal["auto", "train", "test"] = setting("test", help="as eval.dashboard.text")
    num_tokens: int = setting(1_000_000, ge=1, help="as eval.dashboard.num_tokens")
    seed: int = setting(0, ge=0, help="of the contexts and of what is drawn at random")
    batch_tokens: int = setting(1024, ge=1, help="tokens in a pass; decides memory, not results")


class Edge(NamedTuple):
    """A latent of the layer below, and its effect on a node.

    Args:
        latent: The latent.
        estimate: First-order estimate of `effect`.
        effect: Mean over contexts of the target less the target with the latent set to zero;
            negative: the latent inhibits.
        low: Lower end of its interval over contexts.
        high: Upper end.
        share: `effect` as a share of the mean of the target.
        ranked: True if the estimate chose it; else it was drawn at random.
        fires: Contexts in which it fires.
        cosine: Cosine of its atom and that of the latent above; None for a logit difference.
        listed: True if it is in the circuit.
        step: `effect` of steps of equal length in a random direction; None where not listed.
    """

    latent: int
    estimate: float
    effect: float
    low: float
    high: float
    share: float
    ranked: bool
    fires: int
    cosine: float | None
    listed: bool
    step: float | None = None

    @property
    def identity(self) -> bool:
        """True where both latents have about the same direction."""
        return self.cosine is not None and self.cosine > SAME_DIRECTION


@dataclass(frozen=True)
class Expansion:
    """The latents below a node that were ablated.

    Attributes:
        contexts: Number of contexts.
        clean: Mean of the target with nothing edited.
        live: Latents below that fire in these contexts; all others have no effect.
        spearman: Rank correlation of estimates and effects, over all that were ablated.
        edges: The strongest effect first.
    """

    contexts: int
    clean: float
    live: int
    spearman: float | None
    edges: Sequence[Edge]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Expansion":
        """Undo `to_json`."""
        return cls(**{**content, "edges": [Edge(*edge) for edge in content["edges"]]})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def missed(self) -> Edge | None:
        """The latent of largest effect among those drawn at random."""
        return next((edge for edge in self.edges if not edge.ranked), None)


def expand(
    upstream: Upstream, atom: Tensor | None, how: Search, bootstrap: Bootstrap, words: str
) -> Expansion:
    """Rank the latents below by their estimates, and ablate the largest and some others.

    The strongest are listed, of those that are large enough and whose intervals exclude 0; steps of
    equal length in random directions are measured beside them.

    Args:
        upstream: The number, and the SAE below.
        atom: Atom of the latent above; None for a logit difference.
        how: The settings.
        bootstrap: Settings of the intervals over contexts.
        words: The number in words, for the progress bar.
    """
    generator, sae = torch.Generator().manual_seed(how.seed), upstream.sae
    first = upstream.first_order()
    estimate, live = first.estimate.mean(0), first.fires.any(0)
    order = estimate.abs().masked_fill(~live, -1).argsort(descending=True, stable=True)
    order = order[: int(live.sum())]
    others = order[how.exact :]
    others = others[torch.randperm(len(others), generator=generator)[: how.random]]
    chosen = torch.cat([order[: how.exact], others])
    total = len(upstream) * (len(chosen) + how.children)
    with progress(f"latents below {words}", total, "edits") as advance:
        effects = upstream.effects(chosen.tolist(), advance=advance)
        effect, (low, high) = effects.mean(0), _intervals(effects, bootstrap)
        falling = effect.abs().argsort(descending=True, stable=True).tolist()
        least = how.min_share * abs(float(first.clean.mean()))
        sure = (effect.abs() > least) & ((low > 0) | (high < 0))
        listed = [i for i in falling if sure[i]][: how.children]
        directions = torch.randn(len(listed), sae.d_in, generator=generator)
        directions = torch.nn.functional.normalize(directions, dim=1).to(sae.device)
        steps = upstream.effects(chosen[listed].tolist(), directions, advance).mean(0).tolist()
        advance(len(upstream) * (how.children - len(listed)))
    clean, cosine = float(first.clean.mean()), None
    if atom is not None:
        cosine = (sae.W_dec[chosen.to(sae.device)].float() @ atom.float()).tolist()
    estimates, fires = estimate[chosen].tolist(), first.fires[:, chosen].sum(0).tolist()
    step = dict(zip(listed, steps, strict=True))
    edges = [
        Edge(
            latent=int(chosen[i]), estimate=estimates[i], effect=float(effect[i]),
            low=float(low[i]), high=float(high[i]), share=float(effect[i]) / (clean or 1.0),
            ranked=i < how.exact, fires=fires[i], cosine=None if cosine is None else cosine[i],
            listed=i in step, step=step.get(i),
        )
        for i in falling
    ]  # fmt: skip
    agreement = rank_correlation(estimates, effect.tolist())
    return Expansion(len(upstream), clean, int(live.sum()), agreement, edges)


def _intervals(effects: Tensor, bootstrap: Bootstrap) -> tuple[Tensor, Tensor]:
    """Percentile intervals of the means over contexts [contexts n], both ends [n]."""
    if not effects.shape[1]:  # no latent fires
        return effects.mean(0), effects.mean(0)
    weights = multinomial_weights(len(effects), bootstrap.num_resamples, bootstrap.seed)
    tails = torch.tensor([(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2]).double()
    low, high = (weights @ effects / len(effects)).quantile(tails, dim=0)
    return low, high


def rank_correlation(estimates: Sequence[float], effects: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where one of both does not vary.

    Example:
        >>> rank_correlation([1.0, 2.0, 3.0], [1.0, 4.0, 9.0]), rank_correlation([1.0], [1.0])
        (1.0, None)
    """
    if len(set(estimates)) < 2 or len(set(effects)) < 2:
        return None
    found: Any = spearmanr(estimates, effects)
    return float(found.statistic)
