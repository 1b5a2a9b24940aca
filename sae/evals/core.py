"""`core`: how well an SAE reconstructs a split, and how sparsely."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from sae import functional
from sae.activations.rows import Rows, parts_of
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.evals.base import Bootstrap, EvalContext, EvalResult, describe, estimates, register
from sae.metrics import (
    OTHER_DEFINITIONS,
    FeatureActivations,
    Firing,
    OtherDefinitions,
    Reconstruction,
)
from sae.progress import progress
from sae.types import Ends

PER_LATENT_LIMIT = 1024
"""Dictionaries up to this size have their latents' numbers listed one by one."""


@register
@dataclass(frozen=True)
class CoreEval:
    """FVU, MSE, cosine, L2 ratio, relative bias, L0, L1, how latents fire, how atoms overlap.

    Streams the split chunk by chunk; all numbers are in the LM's own units and over all rows.

    Args:
        batch_rows: Vectors encoded at once; decides memory and, with `legacy`, what a batch is.
        legacy: Definitions of other libraries that are given, too: names of
            `metrics.OTHER_DEFINITIONS`, or `all`.
        bootstrap: How intervals over documents are made. What counts latents has none.
    """

    name: ClassVar[str] = "core"
    needs: ClassVar[frozenset[str]] = frozenset()
    joined: ClassVar[bool] = True
    batch_rows: int = 4096
    legacy: tuple[str, ...] = ()
    bootstrap: Bootstrap = Bootstrap()

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ConfigError(f"batch_rows={self.batch_rows} must be at least 1.")
        if unknown := [name for name in self.legacy if name not in ("all", *OTHER_DEFINITIONS)]:
            raise ConfigError(
                f"eval.core.legacy={unknown[0]} is not known. Choose of "
                f"{', '.join(OTHER_DEFINITIONS)}; or all."
            )

    def run(self, context: EvalContext) -> EvalResult:
        """Measure the whole split."""
        sae, ends = context.sae, context.ends
        layers = _Layers(sae, context.rows) if ends is not None and len(ends.writes) > 1 else None
        seen = measure(sae, context.rows, self.batch_rows, _rows_per_context(context),
                       OTHER_DEFINITIONS if "all" in self.legacy else self.legacy,
                       layers)  # fmt: skip
        intervals = seen.reconstruction.intervals(**asdict(self.bootstrap))
        return EvalResult(
            eval=self.name,
            metrics=estimates(
                seen.reconstruction.compute()
                | _latents(seen)
                | _overlaps(context.sae)
                | (seen.others.compute() if seen.others else {}),
                intervals,
            ),
            tokens={"vectors": seen.reconstruction.num_rows()},
            details={
                "firing_histogram": functional.firing_histogram(seen.firing.frequencies),
                "resampled_units": seen.reconstruction.num_units(),
                "constant_dimensions": seen.reconstruction.constant_dimensions(),
                "left_out": _left_out(context),
                **_per_latent(seen),
                **({} if layers is None or ends is None else layers.details(ends)),
            },
            settings=asdict(self) | {"legacy": list(self.legacy)},
            provenance=describe(context),
        )


@dataclass
class Seen:
    """What a stream of rows leaves behind."""

    reconstruction: Reconstruction
    firing: Firing
    activations: FeatureActivations
    others: OtherDefinitions | None


@torch.no_grad()
def measure(
    sae: SAE,
    rows: Rows,
    batch_rows: int,
    rows_per_context: int | None = None,
    legacy: Sequence[str] = (),
    layers: "_Layers | None" = None,
) -> Seen:
    """Stream all rows through the SAE, never holding more than a chunk."""
    seen = Seen(
        Reconstruction(sae.d_out, full=True).to(sae.device),
        Firing(sae.d_sae).to(sae.device),
        FeatureActivations(sae.d_sae).to(sae.device),
        OtherDefinitions(sae.d_sae, legacy).to(sae.device) if legacy else None,
    )
    with progress("evaluate reconstruction", rows.num_rows, "vectors") as advance:
        for chunk in range(rows.num_chunks):
            stored = rows.read(chunk)
            known = rows.documents(chunk)
            documents = None if known is None else torch.as_tensor(known).long()
            contexts = None
            if rows_per_context:
                contexts = torch.arange(*rows.chunk_bounds(chunk)) // rows_per_context
            for start in range(0, len(stored), batch_rows):
                part = slice(start, start + batch_rows)
                batch = stored[part].to(sae.device)
                x, target = functional.input_and_target(batch, sae.d_in)
                f = sae.encode(x)
                x_hat = sae.reconstruct(f, x)
                l0, counts = functional.firing(f)
                document = None if documents is None else documents[part]
                seen.reconstruction.update(target, x_hat, l0, document, f.abs().sum(-1))
                seen.firing.update(counts, len(x))
                seen.activations.update(f, None if contexts is None else contexts[part])
                if seen.others is not None:
                    seen.others.update(target, x_hat, f)
                if layers is not None:
                    layers.update(target, x_hat, l0)
                advance(len(x))
    return seen


def _latents(seen: Seen) -> dict[str, float | None]:
    fired = seen.firing.compute()
    shares: dict[str, Any] = {name: fired[name] for name in ("silent", "rare", "dense")}
    for percent in (1, 10):
        latents, firings = seen.firing.shares_over(percent / 100)
        shares[f"freq_over_{percent}_percent"] = latents
        shares[f"normalized_freq_over_{percent}_percent"] = firings
    if seen.activations.contexts.any():
        consistency = seen.activations.consistency().nanmean().item()
        shares["consistent_activation"] = consistency
    return shares | seen.activations.summary()


def _overlaps(sae: SAE) -> dict[str, float | None]:
    """How close the nearest other atom, and the nearest other encoder direction, are."""
    vectors = {"decoder": sae.W_dec, "encoder": sae.W_enc.T}
    return {
        f"{name}_max_cosine": functional.max_cosines(rows).double().mean().item()
        for name, rows in vectors.items()
    }


def _per_latent(seen: Seen) -> dict[str, Any]:
    activations = seen.activations
    if len(activations.firings) > PER_LATENT_LIMIT:
        return {}
    moments = {
        name: [value if math.isfinite(value) else None for value in values.tolist()]
        for name, values in activations.moments().items()
    }
    return {"latents": {"firings": activations.firings.tolist(), **moments}}


def _rows_per_context(context: EvalContext) -> int | None:
    """None where rows do not stand for the positions of whole contexts."""
    if context.store is None:
        return None
    contexts, ctx = context.store.tokens.shape
    rows_per_context = ctx if context.store.spec.keep_first else ctx - 1
    return rows_per_context if context.rows.num_rows == contexts * rows_per_context else None


def _left_out(context: EvalContext) -> dict[str, int]:
    if context.store is None or context.store.spec.keep_first:
        return {"position_0": 0}
    return {"position_0": len(context.store.tokens)}


class _Layers:
    """What a crosscoder does for each of its layers."""

    def __init__(self, sae: SAE, rows: Rows):
        self.parts = parts_of(rows)
        self.widths = [part.d_in for part in self.parts]
        self.metrics = [Reconstruction(width, 1).to(sae.device) for width in self.widths]
        self.atoms = sae.W_dec.float().split(self.widths, dim=1)

    def update(self, x: torch.Tensor, x_hat: torch.Tensor, l0: torch.Tensor) -> None:
        sides = zip(self.metrics, x.split(self.widths, 1), x_hat.split(self.widths, 1), strict=True)
        for metric, part, part_hat in sides:
            metric.update(part, part_hat, l0)

    def details(self, ends: Ends) -> dict[str, Any]:
        """FVU of each layer, and the share of it in the decoder norms of each latent.

        The norms are those in the layer's own scale: a layer of large activations is no more.
        """
        norms = torch.stack([
            part.stats.scale * atoms.norm(dim=1)
            for part, atoms in zip(self.parts, self.atoms, strict=True)
        ])  # fmt: skip
        shares = (norms / norms.sum(0)).cpu()
        return {
            "layers": {
                str(point): {
                    "fvu": metric.compute()["fvu"],
                    "norm_share": [round(share, 4) for share in shares[i].tolist()],
                }
                for i, (point, metric) in enumerate(zip(ends.writes, self.metrics, strict=True))
            }
        }
