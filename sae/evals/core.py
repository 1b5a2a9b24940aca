"""`core`: how well an SAE reconstructs a split, and how sparsely."""

from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from sae import functional
from sae.activations.rows import Rows
from sae.dictionaries.sae import SAE
from sae.errors import ConfigError
from sae.evals.base import Bootstrap, EvalContext, EvalResult, describe, estimates, register
from sae.metrics import Firing, Reconstruction
from sae.progress import progress


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
    batch_rows: int = 4096
    bootstrap: Bootstrap = Bootstrap()

    def __post_init__(self) -> None:
        if self.batch_rows < 1:
            raise ConfigError(f"batch_rows={self.batch_rows} must be at least 1.")

    def run(self, context: EvalContext) -> EvalResult:
        """Measure the whole split."""
        reconstruction, firing = measure(context.sae, context.rows, self.batch_rows)
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
            },
            settings=asdict(self),
            provenance=describe(context),
        )


@torch.no_grad()
def measure(sae: SAE, rows: Rows, batch_rows: int) -> tuple[Reconstruction, Firing]:
    """Stream all rows through the SAE, never holding more than a chunk."""
    reconstruction = Reconstruction(sae.d_in).to(sae.device)
    firing = Firing(sae.d_sae).to(sae.device)
    with progress("evaluate reconstruction", rows.num_rows, "vectors") as advance:
        for chunk in range(rows.num_chunks):
            stored = rows.read(chunk)
            known = rows.documents(chunk)
            documents = None if known is None else torch.as_tensor(known).long()
            for start in range(0, len(stored), batch_rows):
                part = slice(start, start + batch_rows)
                x = stored[part].to(sae.device)
                f = sae.encode(x)
                l0, counts = functional.firing(f)
                document = None if documents is None else documents[part]
                reconstruction.update(x, sae.decode(f), l0, document)
                firing.update(counts, len(x))
                advance(len(x))
    return reconstruction, firing
