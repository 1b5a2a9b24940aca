"""`core`: how well an SAE reconstructs a split, and how sparsely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import field_validator

from sae import functional
from sae.activations.counted import within
from sae.activations.counted_rows import CountedRows, all_rows
from sae.activations.rows import Rows, parts_of
from sae.activations.stats import Stats
from sae.activations.store import ActivationStore
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE
from sae.evals.base import Measured, Resampled, estimates, register
from sae.metrics import (
    LIGHT_MEDIANS,
    OTHER_DEFINITIONS,
    FeatureActivations,
    Firing,
    OtherDefinitions,
    Reconstruction,
    RobustReconstruction,
)
from sae.progress import progress
from sae.settings import setting
from sae.types import Ends, Split

PER_LATENT_LIMIT = 1024
"""Dictionaries up to this size have their latents' numbers listed one by one."""
_DIRECTION_ROWS, _DIRECTION_ENTRIES = 65_536, 2**28  # of the first principal direction: 1 GB


@register
class CoreEval(Resampled):
    """FVU, MSE, cosine, L2 ratio, relative bias, L0, L1, how latents fire, how atoms overlap.

    Streams the split chunk by chunk; all numbers are in the LM's own units and over the rows that
    count (`sae.activations.counted`), but for `fvu_all_rows` and `left_out`.
    """

    name: ClassVar[str] = "core"
    joined: ClassVar[bool] = True
    batch_rows: int = setting(
        4096, ge=1, help="vectors encoded at once; decides memory and, with legacy, a batch"
    )
    legacy: tuple[str, ...] = setting(
        (), help="also the definitions of other libraries: names of them, or all"
    )

    @field_validator("legacy", mode="before")
    @classmethod
    def _switch(cls, legacy: Any) -> Any:
        return () if legacy is False else legacy  # runs saved when it was a switch

    @field_validator("legacy")
    @classmethod
    def _known(cls, legacy: tuple[str, ...]) -> tuple[str, ...]:
        if any(name not in ("all", *OTHER_DEFINITIONS) for name in legacy):
            raise ValueError(f"names from {', '.join(OTHER_DEFINITIONS)}; or all")
        return legacy

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure the whole split."""
        (one,) = subjects
        sae, ends, rows, store = one.sae, one.ends, one.rows(on), one.store(on)
        layers = _Layers(sae, rows) if ends is not None and len(ends.writes) > 1 else None
        seen = measure(sae, rows, self.batch_rows, _rows_per_context(rows, store),
                       OTHER_DEFINITIONS if "all" in self.legacy else self.legacy,
                       layers)  # fmt: skip
        intervals = seen.reconstruction.intervals(**self.bootstrap.model_dump())
        robust = seen.robust.intervals(**self.bootstrap.model_dump())
        return Measured(
            metrics=estimates(
                _headline(seen)
                | _latents(seen)
                | _overlaps(sae)
                | (seen.others.compute() if seen.others else {}),
                intervals | robust,
            ),
            tokens=seen.counted_on(),
            details={
                "firing_histogram": functional.firing_histogram(seen.firing.frequencies),
                "resampled_units": seen.reconstruction.num_units(),
                "constant_dimensions": seen.reconstruction.constant_dimensions(),
                "left_out": _left_out(store, seen),
                **_per_latent(seen),
                **({} if layers is None or ends is None else layers.details(ends)),
            },
        )


@dataclass
class Seen:
    """Metrics of `core` after a stream of rows, each ready to compute."""

    reconstruction: Reconstruction
    robust: RobustReconstruction
    firing: Firing
    activations: FeatureActivations
    others: OtherDefinitions | None
    direction_share: float = math.nan
    documents: int = 0

    def counted_on(self) -> dict[str, int]:
        """Vectors that count and their documents, where these are known."""
        documents = {"documents": self.documents} if self.documents else {}
        return {"vectors": self.reconstruction.num_rows()} | documents


@torch.no_grad()
def measure(
    sae: SAE,
    rows: Rows,
    batch_rows: int,
    rows_per_context: int | None = None,
    legacy: Sequence[str] = (),
    layers: "_Layers | None" = None,
) -> Seen:
    """Stream all rows through the SAE, never holding more than a chunk and a sample of rows."""
    everything, mean = all_rows(rows), torch.as_tensor(rows.stats.mean)[-sae.d_out :]
    seen = Seen(
        Reconstruction(sae.d_out, full=True).to(sae.device),
        RobustReconstruction(mean).to(sae.device),
        Firing(sae.d_sae).to(sae.device),
        FeatureActivations(sae.d_sae).to(sae.device),
        OtherDefinitions(sae.d_sae, legacy).to(sae.device) if legacy else None,
    )
    widths = [part.d_in for part in parts_of(rows)]
    long = [LIGHT_MEDIANS * _median(part.stats) for part in parts_of(rows)]
    sample = _Sample(rows)
    documents_seen: set[int] = set()
    with progress("evaluate reconstruction", everything.num_rows, "vectors") as advance:
        for chunk in range(everything.num_chunks):
            stored = everything.read(chunk)
            counted = torch.ones(len(stored), dtype=torch.bool)
            if isinstance(rows, CountedRows):
                counted = rows.mask(chunk, stored)
            sample.add(chunk, stored[counted])
            known = everything.documents(chunk)
            documents = None if known is None else torch.as_tensor(known).long()
            if documents is not None:
                documents_seen.update(documents[counted].unique().tolist())
            contexts = None
            if rows_per_context:
                contexts = torch.arange(*everything.chunk_bounds(chunk)) // rows_per_context
            short = within(stored.split(widths, dim=1), long)
            for start in range(0, len(stored), batch_rows):
                part = slice(start, start + batch_rows)
                batch, kept = stored[part].to(sae.device), counted[part].to(sae.device)
                x, target = functional.input_and_target(batch, sae.d_in)
                f = sae.encode(x)
                x_hat = sae.reconstruct(f, x)
                document = None if documents is None else documents[part]
                seen.robust.update(
                    target, x_hat, counted=kept, short=short[part].to(kept.device),
                    document=document,
                )  # fmt: skip
                advance(len(x))
                if not kept.any():
                    continue
                target, x_hat, f = target[kept], x_hat[kept], f[kept]
                document = None if document is None else document[counted[part]]
                l0, counts = functional.firing(f)
                seen.reconstruction.update(target, x_hat, l0, document, f.abs().sum(-1))
                seen.firing.update(counts, len(f))
                context = None if contexts is None else contexts[part][counted[part]]
                seen.activations.update(f, context)
                if seen.others is not None:
                    seen.others.update(target, x_hat, f)
                if layers is not None:
                    layers.update(target, x_hat, l0)
    seen.direction_share = sample.direction_share(sae.d_out)
    seen.documents = len(documents_seen)
    return seen


class _Sample:
    """Rows of evenly spaced chunks, for what needs them at once."""

    def __init__(self, rows: Rows):
        self.most = max(1, min(_DIRECTION_ROWS, _DIRECTION_ENTRIES // rows.d_in))
        self.every = max(1, -(-rows.num_rows // self.most))
        self.parts: list[torch.Tensor] = []

    def add(self, chunk: int, rows: torch.Tensor) -> None:
        if chunk % self.every == 0:
            self.parts.append(rows)

    def direction_share(self, d_out: int) -> float:
        """Share of the variance of what is reconstructed in its first principal direction."""
        return functional.first_direction_share(torch.cat(self.parts)[: self.most, -d_out:])


def _median(stats: Stats) -> float:
    """Infinite where norms are not known, or most rows are zero."""
    return stats.norm_quantiles.get("0.5", 0.0) or math.inf


def _headline(seen: Seen) -> dict[str, float | None]:
    """Reconstruction metrics: FVU first, then what shows whether few rows decide it."""
    values = seen.reconstruction.compute()
    beside = seen.robust.compute() | {"first_direction": seen.direction_share}
    return {"fvu": values.pop("fvu")} | beside | values


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
    """Cosines of the nearest other atom and the nearest other encoder direction."""
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


def _rows_per_context(rows: Rows, store: ActivationStore | None) -> int | None:
    """None where rows do not stand for the positions of whole contexts."""
    if store is None:
        return None
    contexts, ctx = store.tokens.shape
    rows_per_context = ctx if store.spec.keep_first else ctx - 1
    whole = all_rows(rows).num_rows == contexts * rows_per_context
    return rows_per_context if whole else None


def _left_out(store: ActivationStore | None, seen: Seen) -> dict[str, int]:
    """Positions that no metric but `fvu_all_rows` reads."""
    first = store is not None and not store.spec.keep_first
    return {
        "position_0": len(store.tokens) if store is not None and first else 0,
        "not_counted": seen.robust.num_rows() - seen.reconstruction.num_rows(),
    }


class _Layers:
    """Metrics of a crosscoder at each of its layers."""

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
