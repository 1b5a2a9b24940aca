"""`downstream`: what is left of the LM's predictions when the SAE stands in its way."""

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.counted import Counted
from sae.activations.store import ActivationStore
from sae.checksums import read_unsealed, seal
from sae.errors import ConfigError, SourceError
from sae.evals.base import (
    EvalContext,
    EvalResult,
    Resampled,
    SplicedLM,
    describe,
    estimates,
    register,
)
from sae.interventions import Positions, Replacement, Replacements, splice_conditions
from sae.metrics.next_token import ABLATIONS, NextToken
from sae.progress import progress
from sae.provenance import content_key, write_json
from sae.settings import setting
from sae.types import Ends, Point

log = logging.getLogger(__name__)


@register
class DownstreamEval(Resampled):
    """Cross entropy clean, spliced, zero- and mean-ablated; CE recovered, KL, perplexity, top 1.

    Reads the first contexts of the split. Under no condition replaced are the activations of
    position 0, unless the store was made with `keep_first`, and those of rows that do not count;
    predictions made there do not count either.
    """

    name: ClassVar[str] = "downstream"
    needs: ClassVar[frozenset[str]] = frozenset({"tokens"})
    joined: ClassVar[bool] = True
    num_tokens: int = setting(
        16_384, ge=1, help="upper limit to the tokens read; each costs up to four LM passes"
    )
    batch_contexts: int = setting(
        16, ge=1, help="contexts in one forward pass; decides memory and speed"
    )

    def check_ctx(self, ctx: int) -> None:
        """Refuse settings that contexts of `ctx` tokens cannot serve."""
        contexts_in(self.num_tokens, ctx)

    def run(self, context: EvalContext) -> EvalResult:
        """Measure on the first contexts of the split."""
        return self.run_together([context])

    def run_together(self, contexts: Sequence[EvalContext]) -> EvalResult:
        """Measure with several SAEs spliced in at once, each at its own point of the same text."""
        first = contexts[0]
        store, ends = first.store, [context.ends for context in contexts]
        if store is None or None in ends:
            raise ConfigError(
                "eval=downstream needs the tokens behind the activations; a folder of activations "
                "has none. Use activations harvested from an LM, or eval=core."
            )
        size: dict[str, Any] = {
            "num_tokens": self.num_tokens, "batch_contexts": self.batch_contexts
        }  # fmt: skip
        if len(contexts) == 1 and first.ends is not None:
            metric = measure(
                first.lm, store, first.ends, first.sae, _mean(first), counted=first.counted, **size
            )
        else:
            metric = measure_together(
                first.lm,
                store,
                {context.point: context.sae for context in contexts if context.point},
                {context.point: _mean(context) for context in contexts if context.point},
                counted={c.point: c.counted for c in contexts if c.point and c.counted},
                **size,
            )
        num_contexts = min(len(store.tokens), contexts_in(self.num_tokens, store.tokens.shape[1]))
        tokens, made = num_contexts * store.tokens.shape[1], metric.num_rows()
        documents = len(np.unique(store.document[:num_contexts]))
        eligible = metric.num_eligible()
        first_positions = 0 if store.spec.keep_first else num_contexts
        spliced = [describe(context) for context in contexts]
        together = {"together": [{key: one[key] for key in ("point", "sae")} for one in spliced]}
        return EvalResult(
            eval=self.name,
            metrics=estimates(metric.compute(), metric.intervals(**self.bootstrap.model_dump())),
            tokens={"tokens": tokens, "predictions": made, "documents": documents},
            details={
                "resampled_units": metric.num_units(),
                "left_out": {
                    "position_0": first_positions,
                    "context_end": num_contexts,
                    "document_border": tokens - eligible - num_contexts - first_positions,
                    "not_counted": eligible - made,
                },
            },
            settings=self.model_dump(),
            provenance=spliced[0] | (together if len(contexts) > 1 else {}),
        )


def _mean(context: EvalContext) -> Tensor:
    return torch.as_tensor(context.rows.stats.mean).float()


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


def measure(
    lm: SplicedLM,
    store: ActivationStore,
    where: Point | Ends,
    splice: Replacement,
    mean: Float[Tensor, " width"],
    *,
    counted: Counted | None = None,
    num_tokens: int,
    batch_contexts: int,
    quiet: bool = False,
) -> NextToken:
    """One SAE, whatever it reads and writes; see `measure_together`.

    Args:
        lm: The LM.
        store: Tokens and documents.
        where: Where activations are replaced, or the ends of a transcoder or crosscoder.
        splice: Makes, of the activations [batch ctx d_in] that are read, what is written.
        mean: Mean vector of the split at all points of the ends, for mean ablation.
        counted: Which rows count; the others stay as they are. None: all count.
        num_tokens: Upper limit to the tokens read: the store's first contexts, whole ones.
        batch_contexts: Contexts in one forward pass.
        quiet: Show no progress.
    """
    ends = Ends.at(where) if isinstance(where, Point) else where
    notes, conditions = splice_conditions(ends, splice, mean)
    return _measure(
        lm, store, str(ends), notes, conditions, mean.tolist(),
        [Positions(ends, counted, store.spec.keep_first)],
        num_tokens=num_tokens, batch_contexts=batch_contexts, quiet=quiet,
    )  # fmt: skip


def measure_together(
    lm: SplicedLM,
    store: ActivationStore,
    splices: Replacements,
    means: Mapping[Point, Float[Tensor, " d_in"]],
    *,
    counted: Mapping[Point, Counted] | None = None,
    num_tokens: int,
    batch_contexts: int,
    quiet: bool = False,
) -> NextToken:
    """A forward pass for each condition and batch; what lies below all points runs once a batch.

    Zero and mean ablation do not depend on the SAE: their sums are kept in the store's folder, so
    that the next SAE at the same point pays for two passes instead of four.

    Args:
        lm: The LM.
        store: Tokens and documents.
        splices: By point, what makes of its activations [batch ctx d_in] what takes their place.
            A lower point is replaced before a higher one is computed.
        means: Mean activation of the split at the same points, for mean ablation.
        counted: Which rows count at each point; the others stay as they are. None: all count.
        num_tokens: Upper limit to the tokens read: the store's first contexts, whole ones.
        batch_contexts: Contexts in one forward pass.
        quiet: Show no progress.

    Raises:
        ConfigError: If `num_tokens` hold no context.
    """
    ablated = [splice_conditions(Ends.at(p), splices[p], mean)[1] for p, mean in means.items()]
    conditions: dict[str, dict[Point, Replacement]] = {"sae": dict(splices)}
    for name in ABLATIONS:
        conditions[name] = {p: fn for one in ablated for p, fn in one[name].items()}
    identity = [entry for mean in means.values() for entry in mean.tolist()]
    spared = [
        Positions(Ends.at(point), (counted or {}).get(point), store.spec.keep_first)
        for point in splices
    ]
    return _measure(
        lm, store, "+".join(map(str, splices)), {}, conditions, identity, spared,
        num_tokens=num_tokens, batch_contexts=batch_contexts, quiet=quiet,
    )  # fmt: skip


@torch.no_grad()
def _measure(
    lm: SplicedLM,
    store: ActivationStore,
    where: str,
    notes: Replacements,
    replaced: Mapping[str, Replacements],
    mean: Sequence[float],
    spared: Sequence[Positions],
    *,
    num_tokens: int,
    batch_contexts: int,
    quiet: bool,
) -> NextToken:
    """The clean pass, with `notes`, and one under each of the conditions `replaced`.

    Each of `spared` looks after the points of its own ends.
    """
    num_contexts = min(len(store.tokens), contexts_in(num_tokens, store.tokens.shape[1]))
    keep_first = store.spec.keep_first
    metric = NextToken(keep_first=keep_first).to(lm.device)
    identity = {
        "lm": dict(lm.identity), "dtype": str(lm.dtype), "device": lm.device.type,
        "contexts": num_contexts, "keep_first": keep_first, "groups": metric.num_groups, "sums": 3,
        "mean": list(mean), "counted": [one.counted and one.counted.to_json() for one in spared],
    }  # fmt: skip
    kept = store.folder / "ablations" / f"{where}.{content_key(identity)}.json"
    known = _restore(metric, kept)
    of_point = {point: one for one in spared for point in one.ends.points}
    conditions = {
        name: {point: of_point[point].only(fn) for point, fn in those.items()}
        for name, those in replaced.items()
        if name not in known
    }
    looks = {point: one.note(point, notes.get(point)) for point, one in of_point.items()}
    ctx = store.tokens.shape[1]
    shown = progress("evaluate predictions", num_contexts * ctx, "tokens")
    with nullcontext(lambda n: None) if quiet else shown as advance:
        for start in range(0, num_contexts, batch_contexts):
            part = slice(start, min(start + batch_contexts, num_contexts))
            tokens = torch.as_tensor(store.tokens[part], device=lm.device).long()
            document = torch.as_tensor(store.document[part], device=lm.device).long()
            # Logits are large: no more than two sets of them are held at any time.
            for one in spared:
                one.start(tokens)
            passes = lm.logits_under(tokens, [looks, *conditions.values()])
            clean = next(passes)
            counts = torch.stack([one.replaced() for one in spared]).all(0)
            metric.update(tokens, document, {"clean": clean, "sae": next(passes)}, counts)
            for name, logits in zip(list(conditions)[1:], passes, strict=True):
                metric.update_ablation(name, tokens, document, clean, logits, counts)
                del logits
            advance(tokens.numel())
    if metric.compute()["ce_clean"] is None:
        raise SourceError(
            f"The LM's own predictions are NaN or infinite in {str(lm.dtype).rpartition('.')[2]}. "
            "Use lm.dtype=float32 or bfloat16, or check its weights."
        )
    if not known:
        _keep(metric, kept)
    return metric


def _restore(metric: NextToken, file: Path) -> tuple[str, ...]:
    """Fill in the sums of the ablations from an earlier run; say which there were."""
    if not os.path.lexists(file):
        return ()
    try:
        sums = read_unsealed(file)
        for name in ABLATIONS:
            metric.set_ablation(name, torch.tensor(sums[name], dtype=torch.float64))
    except (ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        log.warning("Measuring the ablations again: %s cannot be read (%s).", file, error)
        metric.reset()
        return ()
    return ABLATIONS


def _keep(metric: NextToken, file: Path) -> None:
    sums = {name: metric.ablation(name) for name in ABLATIONS}
    if not all(bool(values.isfinite().all()) for values in sums.values()):
        return  # float16 may overflow under an ablation alone, which is then null
    try:
        write_json(file, seal({name: values.tolist() for name, values in sums.items()}))
    except OSError as error:  # a cache that others own may be read-only
        log.warning("The sums of the ablations were not kept for the next SAE: %s.", error)
