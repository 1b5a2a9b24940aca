"""`exact_codes`: what the encoder loses against exact sparse inference on the same dictionary."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae.activations.rows import Rows
from sae.activations.superposition import SuperpositionRows
from sae.artifacts.placed import PlacedSAE
from sae.errors import ConfigError
from sae.evals.base import Measured, Resampled, estimates, register
from sae.evals.recovery import SIGNED, partners
from sae.functional import firing
from sae.inference import codes_at_l0, duality_gap, fista
from sae.settings import setting
from sae.types import Split


@register
class ExactCodesEval(Resampled):
    """FVU of the encoder's codes, and of exact codes on the same atoms at the same mean L0.

    The exact codes solve the L1 problem by FISTA (`sae.inference`), with the coefficient at which
    as many fire (where fewer explain all, fewer do: see `l0_exact`); `refit` takes their support
    and solves again without the penalty, which shrinks.
    In a synthetic world also the error of the codes themselves.
    """

    name: ClassVar[str] = "exact_codes"
    num_tokens: int = setting(
        1024, ge=2, help="vectors, the first of the split; each costs some thousand encodes"
    )
    max_steps: int = setting(300, ge=1, help="steps of FISTA at most")

    @torch.no_grad()
    def measure(self, subjects: Sequence[PlacedSAE], on: Split) -> Measured:
        """FVU and L0 of the encoder's, exact and refitted codes, on the split's first vectors."""
        (one,) = subjects
        sae = one.sae
        if sae.d_out != sae.d_in or sae.W_skip is not None or sae.config.activation in SIGNED:
            raise ConfigError(
                "exact_codes reconstructs the input from codes that are not negative, which "
                f"architecture={sae.config.architecture} does not. Leave exact_codes out."
            )
        x, documents, true = _first(one.rows(on), self.num_tokens)
        x = x.to(sae.W_dec)
        own = sae.encode(x)
        l0 = firing(own)[0].double().mean().item()
        centred = x - sae.b_dec
        exact, l1 = codes_at_l0(centred, sae.W_dec, l0, max_steps=self.max_steps)
        refit = fista(
            centred, sae.W_dec, 0.0, allowed=exact != 0, start=exact, max_steps=self.max_steps
        )
        from sae.metrics import Reconstruction  # torchmetrics takes seconds

        metrics = {}
        codes = {"encoder": own, "exact": exact, "refit": refit}
        for word, f in codes.items():
            measured = Reconstruction(sae.d_in).to(sae.device)
            measured.update(x, sae.decode(f), firing(f)[0], documents)
            found = estimates(measured.compute(), measured.intervals(**self.bootstrap.model_dump()))
            metrics |= {f"{name}_{word}": found[name] for name in ("fvu", "l0")}
        if true is not None and one.world is not None:
            atom = partners(one.world, sae)
            errors = {f"code_error_{word}": _code_error(true, f, atom) for word, f in codes.items()}
            metrics |= estimates(errors, {})
        gap = duality_gap(centred, sae.W_dec, exact, l1) / centred.square().sum(1).clamp_min(1e-30)
        return Measured(
            metrics=metrics,
            tokens={"vectors": len(x)},
            details={"l1": l1, "largest_relative_duality_gap": 2 * gap.max().item()},
        )


def _first(rows: Rows, count: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The first vectors, their documents and, where known, the true coefficients in them."""
    x, documents, true = [], [], []
    for chunk in range(rows.num_chunks):
        missing = count - sum(map(len, x))
        if missing <= 0:
            break
        if isinstance(rows, SuperpositionRows):
            sample = rows.sample(chunk)
            x.append(sample.x[:missing])
            true.append(sample.expressed[:missing])
        else:
            x.append(rows.read(chunk)[:missing])
        known = rows.documents(chunk)
        if known is not None:
            documents.append(torch.as_tensor(known).long()[:missing])
    return (
        torch.cat(x).float(), torch.cat(documents) if documents else None,
        torch.cat(true) if true else None,
    )  # fmt: skip


def _code_error(
    true: Float[Tensor, "batch num_features"], f: Float[Tensor, "batch d_sae"], atom: Tensor
) -> float | None:
    """Squared error of the true coefficients, as a share of their squares.

    `f` of the atom that is matched to a feature is its estimate; a feature without one has 0.
    """
    found = f.cpu()[:, atom.clamp_min(0)] * (atom >= 0)
    total = true.square().sum()
    return ((true - found).square().sum() / total).item() if total > 0 else None
