"""`core`: how well an SAE reconstructs a split, and how sparsely."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from sae import functional
from sae.activations.rows import Rows, parts_of
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.evals.base import Bootstrap, EvalContext, EvalResult, describe, estimates, register
from sae.metrics import Firing, Reconstruction
from sae.progress import progress
from sae.types import Ends


@register
@dataclass(frozen=True)
class CoreEval:
    """FVU, MSE, cosine, L2 ratio, relative bias, L0, silent and dense share, firing histogram.

    Streams the split chunk by chunk; all numbers are in the LM's own units and over all rows.

    Args:
        batch_rows: Vectors encoded at once; decides memory, not results.
        bootstrap: How intervals over documents are made. `silent` and `dense` have none.
    """

    name: ClassVar[str] = "core"
    needs: ClassVar[frozenset[str]] = frozenset()
    joined: ClassVar[bool] = True
    batch_rows: int = 4096
    bootstrap: Bootstrap = Bootstrap()

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ConfigError(f"batch_rows={self.batch_rows} must be at least 1.")

    def run(self, context: EvalContext) -> EvalResult:
        """Measure the whole split."""
        sae, ends = context.sae, context.ends
        layers = _Layers(sae, context.rows) if ends is not None and len(ends.writes) > 1 else None
        reconstruction, firing = measure(sae, context.rows, self.batch_rows, layers)
        fired = firing.compute()
        frequencies = fired["frequencies"]
        assert isinstance(frequencies, torch.Tensor)
        shares = {name: float(fired[name]) for name in ("silent", "dense")}
        intervals = reconstruction.intervals(**asdict(self.bootstrap))
        return EvalResult(
            eval=self.name,
            metrics=estimates(reconstruction.compute() | shares, intervals),
            tokens={"vectors": reconstruction.num_rows()},
            details={
                "firing_histogram": functional.firing_histogram(frequencies),
                "resampled_units": reconstruction.num_units(),
                **({} if layers is None or ends is None else layers.details(ends)),
            },
            settings=asdict(self),
            provenance=describe(context),
        )


@torch.no_grad()
def measure(
    sae: SAE, rows: Rows, batch_rows: int, layers: "_Layers | None" = None
) -> tuple[Reconstruction, Firing]:
    """Stream all rows through the SAE, never holding more than a chunk."""
    reconstruction = Reconstruction(sae.d_out).to(sae.device)
    firing = Firing(sae.d_sae).to(sae.device)
    with progress("evaluate reconstruction", rows.num_rows, "vectors") as advance:
        for chunk in range(rows.num_chunks):
            stored = rows.read(chunk)
            known = rows.documents(chunk)
            documents = None if known is None else torch.as_tensor(known).long()
            for start in range(0, len(stored), batch_rows):
                part = slice(start, start + batch_rows)
                batch = stored[part].to(sae.device)
                x, target = functional.input_and_target(batch, sae.d_in)
                f = sae.encode(x)
                x_hat = sae.reconstruct(f, x)
                l0, counts = functional.firing(f)
                document = None if documents is None else documents[part]
                reconstruction.update(target, x_hat, l0, document)
                if layers is not None:
                    layers.update(target, x_hat, l0)
                firing.update(counts, len(x))
                advance(len(x))
    return reconstruction, firing


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
