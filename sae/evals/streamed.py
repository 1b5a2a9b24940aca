"""One stream of rows through an SAE, and the metrics of `core` over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sae import functional
from sae.activations.counted import within
from sae.activations.counted_rows import CountedRows, all_rows
from sae.activations.rows import Rows, parts_of
from sae.activations.stats import Stats
from sae.activations.store import ActivationStore
from sae.dictionaries.sae import SAE
from sae.metrics import (
    LIGHT_MEDIANS,
    FeatureActivations,
    Firing,
    OtherDefinitions,
    Reconstruction,
    RobustReconstruction,
)
from sae.progress import progress
from sae.types import Ends

PER_LATENT_LIMIT = 1024
"""Dictionaries up to this size have their latents' numbers listed one by one."""
_DIRECTION_ROWS, _DIRECTION_ENTRIES = 65_536, 2**28  # of the first principal direction: 1 GB


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

    def headline(self) -> dict[str, float | None]:
        """Reconstruction metrics: FVU first, then what shows whether few rows decide it."""
        values = self.reconstruction.compute()
        beside = self.robust.compute() | {"first_direction": self.direction_share}
        return {"fvu": values.pop("fvu")} | beside | values

    def latents(self) -> dict[str, float | None]:
        """Shares of latents by how often they fire, and means over those that fire."""
        fired = self.firing.compute()
        shares: dict[str, Any] = {name: fired[name] for name in ("silent", "rare", "dense")}
        for percent in (1, 10):
            latents, firings = self.firing.shares_over(percent / 100)
            shares[f"freq_over_{percent}_percent"] = latents
            shares[f"normalized_freq_over_{percent}_percent"] = firings
        if self.activations.contexts.any():
            consistency = self.activations.consistency().nanmean().item()
            shares["consistent_activation"] = consistency
        return shares | self.activations.summary()

    def per_latent(self) -> dict[str, Any]:
        """Firings and moments of each latent of a small dictionary."""
        activations = self.activations
        if len(activations.firings) > PER_LATENT_LIMIT:
            return {}
        moments = {
            name: [value if math.isfinite(value) else None for value in values.tolist()]
            for name, values in activations.moments().items()
        }
        return {"latents": {"firings": activations.firings.tolist(), **moments}}

    def left_out(self, store: ActivationStore | None) -> dict[str, int]:
        """Positions that no metric but `fvu_all_rows` reads."""
        first = store is not None and not store.spec.keep_first
        return {
            "position_0": len(store.tokens) if store is not None and first else 0,
            "not_counted": self.robust.num_rows() - self.reconstruction.num_rows(),
        }

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
    layers: "Layers | None" = None,
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


class Layers:
    """Metrics of a crosscoder at each of its layers."""

    def __init__(self, sae: SAE, rows: Rows):
        self.parts = parts_of(rows)
        self.widths = [part.d_in for part in self.parts]
        self.metrics = [Reconstruction(width, 1).to(sae.device) for width in self.widths]
        self.atoms = sae.W_dec.float().split(self.widths, dim=1)

    def update(self, x: torch.Tensor, x_hat: torch.Tensor, l0: torch.Tensor) -> None:
        """Take in rows, all layers side by side, with their reconstructions and their L0."""
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
