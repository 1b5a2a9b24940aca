"""Effects of the latents of a lower SAE on a number that the LM computes above it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.features.effects import Contexts, at_one_point
from sae.features.record import Record
from sae.language.lm import LanguageModel
from sae.tasks.task import Task
from sae.types import Point

_ADDED = ("resid", "mlp_out", "attn_out")
"""Sites whose activations are in the residual stream."""


@dataclass(frozen=True)
class Target:
    """A number that an LM computes at the last token of contexts.

    Args:
        contexts: Token ids, each context cut after the token at which the number is read.
        end: Point where it is read; None: the logits.
        values: The number, from the number of the context and from what stands at `end` on the
            last token of n variants of it.
    """

    contexts: Sequence[Int[Tensor, " _"]]
    end: Point | None
    values: Callable[[int, Float[Tensor, "n d"]], Float[Tensor, " n"]]


def activation_of(
    one: PlacedSAE, latent: int, contexts: Sequence[Int[Tensor, " _"]], sign: int = 1
) -> Target:
    """The activation of a latent on the last token of contexts; 0 where it does not fire."""
    point, _ = at_one_point(one)

    def values(_: int, x: Tensor) -> Tensor:
        return (sign * one.sae.encode(x)[:, latent].float()).relu()

    return Target(contexts, point, values)


def difference_of(task: Task) -> Target:
    """The logit of the right answer less that of the wrong one, after each prompt of a task."""

    def values(i: int, logits: Tensor) -> Tensor:
        prompt = task.prompts[i]
        return (logits[:, prompt.right] - logits[:, prompt.wrong]).float()

    return Target([torch.tensor(prompt.tokens) for prompt in task.prompts], None, values)


class FirstOrder(NamedTuple):
    """First-order estimates, from one backward pass for each context.

    Args:
        clean: The number with nothing edited.
        estimate: Fall of the number if a latent were set to zero, to first order.
        fires: True where the latent fires in the context, on a row that counts.
    """

    clean: Float[Tensor, " contexts"]
    estimate: Float[Tensor, "contexts d_sae"]
    fires: Bool[Tensor, "contexts d_sae"]


class _Context(NamedTuple):
    """A context at the lower point.

    Args:
        x: Activations.
        counts: Mask of those that count.
        run: Runs the LM from there (`LanguageModel.variants`).
    """

    x: Float[Tensor, "ctx d_in"]
    counts: Bool[Tensor, " ctx"]
    run: Callable[[Tensor], Tensor]


class Upstream:
    """Latents of a lower SAE, and the effect of each on a target above, context by context.

    A latent is set to zero at all positions that count, and the error of the SAE is kept. The LM
    runs once up to the lower point; each edit runs only what lies between there and the target.

    Args:
        lm: The LM.
        target: The number above.
        below: The lower SAE; it reads and writes one point.
        batch_tokens: Tokens in a pass; decides memory.
    """

    def __init__(
        self, lm: LanguageModel, target: Target, below: PlacedSAE, batch_tokens: int = 1024
    ):
        self.target, self.sae, self.batch_tokens = target, below.sae, batch_tokens
        point, positions = at_one_point(below)
        self._contexts: list[_Context] = []
        for context in target.contexts:
            tokens = context[None]
            positions.start(tokens)
            x, run = lm.variants(tokens, point, target.end)
            positions.note(point)(x)
            self._contexts.append(_Context(x[0], positions.replaced()[0].to(x.device), run))

    def __len__(self) -> int:
        return len(self._contexts)

    def code(self, i: int) -> Float[Tensor, "ctx d_sae"]:
        """Activations of the latents in a context; 0 on rows that do not count."""
        context = self._contexts[i]
        return self.sae.encode(context.x).float() * context.counts[:, None]

    def first_order(self) -> FirstOrder:
        r"""Estimate every effect by gradient times activation.

        The estimate of latent j is $\sum_p f_j(p)\,\langle \nabla_{x(p)} a, d_j\rangle$ over the
        positions that count, a the target and $d_j$ the atom: what zeroing it takes from a, if a
        were linear.
        """
        clean, estimates, fires = [], [], []
        for i, context in enumerate(self._contexts):
            x = context.x[None].detach().clone().requires_grad_()
            with torch.enable_grad():
                value = self._values(i, x)
                (gradient,) = torch.autograd.grad(value.sum(), x)
            f = self.code(i)
            along = gradient[0].float() @ self.sae.W_dec.float().T
            clean.append(value.detach().cpu().double())
            estimates.append((along * f).sum(0).cpu().double())
            fires.append((f != 0).any(0).cpu())
        return FirstOrder(torch.cat(clean), torch.stack(estimates), torch.stack(fires))

    @torch.no_grad()
    def effects(
        self,
        latents: Sequence[int],
        directions: Float[Tensor, "n d_in"] | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> Float[Tensor, "contexts n"]:
        """Fall of the target when a latent is set to zero, latent by latent; negative: it rises.

        Args:
            latents: The latents.
            directions: Unit vectors along which the steps go instead of along the atoms, for a
                control: their lengths stay.
            advance: Called after each context with the number of latents.
        """
        if directions is None:
            directions = self.sae.W_dec[list(latents)]
        found = torch.zeros(len(self), len(latents), dtype=torch.float64)
        for i, context in enumerate(self._contexts):
            f = self.code(i)[:, list(latents)]
            clean = self._values(i, context.x[None])
            active = (f != 0).any(0).nonzero()[:, 0]  # a silent one has no effect
            size = max(1, self.batch_tokens // len(context.x))
            for start in range(0, len(active), size):
                part = active[start : start + size]
                steps = f[:, part].T[..., None] * directions[part].float()[:, None]
                edited = self._values(i, context.x - steps.to(context.x))
                found[i, part.cpu()] = (clean - edited).cpu().double()
            advance(len(latents))
        return found

    def _values(self, i: int, variants: Float[Tensor, "n ctx d_in"]) -> Float[Tensor, " n"]:
        return self.target.values(i, self._contexts[i].run(variants)[:, -1])


class Feed(NamedTuple):
    """A latent of a lower SAE, and its effect on a latent above.

    Args:
        latent: Number of the latent.
        activation: Its mean activation at the peak of the latent above.
        product: Mean activation times the product of its atom and the encoder direction above: the
            straight path through the residual stream.
        change: Mean change of the latent above at its peak when this one is set to zero at all
            positions: the straight path and all that attention and MLPs make of it.
    """

    latent: int
    activation: float
    product: float
    change: float


@torch.no_grad()
def feeding(
    one: PlacedSAE, below: PlacedSAE, lm: LanguageModel, record: Record, contexts: Contexts,
    count: int = 10,
) -> list[Feed]:  # fmt: skip
    """Latents of a lower SAE that a latent depends on, the strongest effect first.

    Latents with the largest products are ablated exactly.

    Args:
        one: The SAE of the latent.
        below: An SAE that reads and writes a lower point of the same LM.
        lm: The LM.
        record: The latent's record.
        contexts: Its contexts.
        count: Number of latents to ablate.

    Raises:
        ConfigError: If `below` is not lower, not of the residual stream, or of another LM.
    """
    upper, lower = at_one_point(one)[0], at_one_point(below)[0]
    if lower.layer >= upper.layer or lower.site not in _ADDED or upper.site != "resid":
        raise ConfigError(
            f"below={below.name or 'the given run'} is at {lower}, the latent at {upper}. What "
            f"feeds a latent is measured from {', '.join(_ADDED)} to resid of a higher layer."
        )
    lms = [placed.source.specs["test"].lm for placed in (one, below)]
    if lms[0] != lms[1]:
        raise ConfigError(f"below={below.name or 'the given run'} is an SAE of another LM.")
    latent, sign = record.latent, record.sign
    ends = (contexts.peak + 1).tolist()
    cut = [tokens[:end] for tokens, end in zip(contexts.tokens, ends, strict=True)]
    upstream = Upstream(lm, activation_of(one, latent, cut, sign), below)
    f_lower = torch.stack([upstream.code(i)[-1] for i in range(len(upstream))]).mean(0)
    straight = sign * (below.sae.W_dec.float() @ one.sae.W_enc[:, latent].float())
    products = f_lower * straight
    chosen = products.abs().topk(min(count, len(products))).indices.tolist()
    changes = -upstream.effects(chosen).mean(0)
    found = [
        Feed(feeder, float(f_lower[feeder]), float(products[feeder]), float(change))
        for feeder, change in zip(chosen, changes, strict=True)
    ]
    return sorted(found, key=lambda feed: -abs(feed.change))
