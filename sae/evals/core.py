"""`core`: how well an SAE reconstructs a split, and how sparsely."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import field_validator

from sae import functional
from sae.activations.counted_rows import all_rows
from sae.activations.rows import Rows
from sae.activations.store import ActivationStore
from sae.artifacts.placed import PlacedSAE
from sae.dictionaries.sae import SAE
from sae.evals.base import Measured, Resampled, estimates, register
from sae.settings import setting
from sae.types import Split


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
        from sae.metrics import OTHER_DEFINITIONS

        if any(name not in ("all", *OTHER_DEFINITIONS) for name in legacy):
            raise ValueError(f"names from {', '.join(OTHER_DEFINITIONS)}; or all")
        return legacy

    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """Measure the whole split."""
        from sae.evals.streamed import Layers, measure  # torchmetrics takes seconds
        from sae.metrics import OTHER_DEFINITIONS

        (one,) = subjects
        sae, ends, rows, store = one.sae, one.ends, one.rows(on), one.store(on)
        layers = Layers(sae, rows) if ends is not None and len(ends.writes) > 1 else None
        seen = measure(sae, rows, self.batch_rows, _rows_per_context(rows, store),
                       OTHER_DEFINITIONS if "all" in self.legacy else self.legacy,
                       layers)  # fmt: skip
        intervals = seen.reconstruction.intervals(**self.bootstrap.model_dump())
        robust = seen.robust.intervals(**self.bootstrap.model_dump())
        return Measured(
            metrics=estimates(
                seen.headline()
                | seen.latents()
                | _overlaps(sae)
                | (seen.others.compute() if seen.others else {}),
                intervals | robust,
            ),
            tokens=seen.counted_on(),
            details={
                "firing_histogram": functional.firing_histogram(seen.firing.frequencies),
                "resampled_units": seen.reconstruction.num_units(),
                "constant_dimensions": seen.reconstruction.constant_dimensions(),
                "left_out": seen.left_out(store),
                **seen.per_latent(),
                **({} if layers is None or ends is None else layers.details(ends)),
            },
        )


def _overlaps(sae: SAE) -> dict[str, float | None]:
    """Cosines of the nearest other atom and the nearest other encoder direction."""
    vectors = {"decoder": sae.W_dec, "encoder": sae.W_enc.T}
    return {
        f"{name}_max_cosine": functional.max_cosines(rows).double().mean().item()
        for name, rows in vectors.items()
    }


def _rows_per_context(rows: Rows, store: ActivationStore | None) -> int | None:
    """None where rows do not stand for the positions of whole contexts."""
    if store is None:
        return None
    contexts, ctx = store.tokens.shape
    rows_per_context = ctx if store.spec.keep_first else ctx - 1
    whole = all_rows(rows).num_rows == contexts * rows_per_context
    return rows_per_context if whole else None
