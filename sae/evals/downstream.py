"""`downstream`: what is left of the LM's predictions when the SAE stands in its way."""

import json
import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.store import ActivationStore
from sae.errors import ConfigError
from sae.evals.base import (
    Bootstrap,
    EvalContext,
    EvalResult,
    SplicedLM,
    describe,
    estimates,
    register,
)
from sae.metrics.next_token import ABLATIONS, NextToken
from sae.progress import progress
from sae.provenance import content_key, write_json
from sae.types import Point

log = logging.getLogger(__name__)


@register
@dataclass(frozen=True)
class DownstreamEval:
    """Cross entropy clean, spliced, zero- and mean-ablated; CE recovered, KL, perplexity, top 1.

    Reads the first contexts of the split. Position 0's activation is replaced under no condition
    unless the store was made with `keep_first`.

    Args:
        num_tokens: Upper limit to the tokens read, whole contexts.
        batch_contexts: Contexts in one forward pass; decides memory and speed.
        bootstrap: How intervals over documents are made.
    """

    name: ClassVar[str] = "downstream"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    num_tokens: int = 32_768
    batch_contexts: int = 8
    bootstrap: Bootstrap = Bootstrap()

    def __post_init__(self) -> None:
        if self.num_tokens < 1 or self.batch_contexts < 1:
            raise ConfigError(
                f"num_tokens={self.num_tokens} and batch_contexts={self.batch_contexts} must be "
                "at least 1."
            )

    def check_ctx(self, ctx: int) -> None:
        """Refuse settings that contexts of `ctx` tokens cannot serve."""
        contexts_in(self.num_tokens, ctx)

    def run(self, context: EvalContext) -> EvalResult:
        """Measure on the first contexts of the split."""
        if context.store is None or context.point is None:
            raise ConfigError(
                "eval=downstream needs the tokens behind the activations; a folder of activations "
                "has none. Use activations harvested from an LM, or eval=core."
            )
        metric = measure(
            context.lm,
            context.store,
            context.point,
            context.sae,
            torch.as_tensor(context.rows.stats.mean).float(),
            num_tokens=self.num_tokens,
            batch_contexts=self.batch_contexts,
        )
        contexts, ctx = context.store.tokens.shape
        return EvalResult(
            eval=self.name,
            metrics=estimates(metric.compute(), metric.intervals(**asdict(self.bootstrap))),
            tokens={
                "tokens": min(contexts, contexts_in(self.num_tokens, ctx)) * ctx,
                "predictions": metric.num_rows(),
            },
            details={"resampled_units": metric.num_units()},
            settings=asdict(self),
            provenance=describe(context),
        )


def contexts_in(num_tokens: int, ctx: int) -> int:
    """Whole contexts in so many tokens.

    Raises:
        ConfigError: If there is none.
    """
    if num_tokens < ctx:
        raise ConfigError(
            f"num_tokens={num_tokens} is less than one context of {ctx} tokens. Raise it."
        )
    return num_tokens // ctx


@torch.no_grad()
def measure(
    lm: SplicedLM,
    store: ActivationStore,
    point: Point,
    splice: Callable[[Tensor], Tensor],
    mean: Float[Tensor, " d_in"],
    *,
    num_tokens: int,
    batch_contexts: int,
    quiet: bool = False,
) -> NextToken:
    """One forward pass for each condition and batch, the clean one included.

    Zero and mean ablation do not depend on the SAE: their sums are kept in the store's folder, so
    that the next SAE at the same point pays for two passes instead of four.

    Args:
        lm: The LM.
        store: Tokens and documents.
        point: Where activations are replaced.
        splice: Makes, of the activations [batch ctx d_in], what takes their place.
        mean: Mean activation of the split, for mean ablation.
        num_tokens: Upper limit to the tokens read: the store's first contexts, whole ones.
        batch_contexts: Contexts in one forward pass.
        quiet: Show no progress.

    Raises:
        ConfigError: If `num_tokens` hold no context.
    """
    num_contexts = min(len(store.tokens), contexts_in(num_tokens, store.tokens.shape[1]))
    keep_first = store.spec.keep_first
    metric = NextToken(keep_first=keep_first).to(lm.device)
    identity = {
        "lm": dict(lm.identity), "dtype": str(lm.dtype), "device": lm.device.type,
        "contexts": num_contexts, "keep_first": keep_first, "groups": metric.num_groups,
        "mean": mean.tolist(),
    }  # fmt: skip
    kept = store.folder / "ablations" / f"{point}.{content_key(identity)}.json"
    known = _restore(metric, kept)
    replacements = {
        "sae": splice,
        "zero": torch.zeros_like,
        "mean": lambda activation: mean.to(activation).expand_as(activation),
    }
    conditions = {name: fn for name, fn in replacements.items() if name not in known}
    if not keep_first:
        conditions = {name: _sparing_first(fn) for name, fn in conditions.items()}

    ctx = store.tokens.shape[1]
    shown = progress("evaluate predictions", num_contexts * ctx, "tokens")
    with nullcontext(lambda n: None) if quiet else shown as advance:
        for start in range(0, num_contexts, batch_contexts):
            part = slice(start, min(start + batch_contexts, num_contexts))
            tokens = torch.as_tensor(store.tokens[part], device=lm.device).long()
            document = torch.as_tensor(store.document[part], device=lm.device).long()
            logits = {"clean": lm.logits(tokens)}
            for name, replacement in conditions.items():
                logits[name] = lm.logits(tokens, replace={point: replacement})
            metric.update(tokens, document, logits)
            advance(tokens.numel())
    if not known:
        _keep(metric, kept)
    return metric


def _sparing_first(replacement: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def spared(activation: Tensor) -> Tensor:
        first, others = activation[:, :1], activation[:, 1:]
        return torch.cat([first, replacement(others).to(others)], dim=1)

    return spared


def _restore(metric: NextToken, file: Path) -> tuple[str, ...]:
    """Fill in the sums of the ablations from an earlier run; say which there were."""
    if not file.is_file():
        return ()
    try:
        sums = json.loads(file.read_text())
        for name in ABLATIONS:
            metric.set_ablation(name, torch.tensor(sums[name], dtype=torch.float64))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        log.warning("Measuring the ablations again: %s cannot be read (%s).", file, error)
        metric.reset()
        return ()
    return ABLATIONS


def _keep(metric: NextToken, file: Path) -> None:
    try:
        write_json(file, {name: metric.ablation(name).tolist() for name in ABLATIONS})
    except OSError as error:  # a cache that others own may be read-only
        log.warning("The sums of the ablations were not kept for the next SAE: %s.", error)
