"""Predictions of an LM with SAEs spliced in and under ablations, streamed over a text."""

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from sae.activations.store import ActivationStore
from sae.checksums import read_unsealed, seal
from sae.errors import ConfigError, SourceError
from sae.interventions import Positions, Replacement, Spliced, splice_conditions
from sae.language import LanguageModel
from sae.metrics.next_token import ABLATIONS, NextToken
from sae.progress import progress
from sae.provenance import content_key, write_json
from sae.types import Point

log = logging.getLogger(__name__)


def contexts_in(num_tokens: int, ctx: int) -> int:
    """Number of whole contexts in a number of tokens.

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
    lm: LanguageModel,
    store: ActivationStore,
    spliced: Sequence[Spliced],
    *,
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
        spliced: SAEs that are spliced in at once, each at other points. A lower point is replaced
            before a higher one is computed.
        num_tokens: Upper limit to the tokens read: the store's first contexts, whole ones.
        batch_contexts: Contexts in one forward pass.
        quiet: Show no progress.

    Raises:
        ConfigError: If `num_tokens` hold no context.
    """
    where = "+".join(str(one.ends) for one in spliced)
    mean = [entry for one in spliced for entry in one.mean.tolist()]
    spared = [Positions(one.ends, one.counted, store.spec.keep_first) for one in spliced]
    notes: dict[Point, Replacement] = {}
    replaced: dict[str, dict[Point, Replacement]] = {}
    for looked, those in map(splice_conditions, spliced):
        notes |= looked
        for name in ("sae", *ABLATIONS):
            replaced.setdefault(name, {}).update(those[name])
    num_contexts = min(len(store.tokens), contexts_in(num_tokens, store.tokens.shape[1]))
    keep_first = store.spec.keep_first
    metric = NextToken(keep_first=keep_first).to(lm.device)
    identity = {
        "lm": dict(lm.identity), "dtype": str(lm.dtype), "device": lm.device.type,
        "contexts": num_contexts, "keep_first": keep_first, "groups": metric.num_groups, "sums": 3,
        "mean": mean, "counted": [one.counted and one.counted.to_json() for one in spared],
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
