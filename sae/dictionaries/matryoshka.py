"""Matryoshka dictionary: BatchTopK whose first latents must do without the later ones."""

from itertools import pairwise

from jaxtyping import Float
from pydantic import field_validator
from torch import Tensor

from sae.dictionaries.base import register
from sae.dictionaries.batch_topk import BatchTopK
from sae.dictionaries.codes import Code, SparseCode
from sae.dictionaries.shape import Init, Shape
from sae.dictionaries.step import Encoding, StepState
from sae.settings import setting


@register("matryoshka")
class Matryoshka(BatchTopK):
    """BatchTopK with the sum of the squared errors of several prefixes of the dictionary as loss.

    The code is selected once, over all latents; each prefix reconstructs with its share of it and
    b_dec. The saved SAE is that of BatchTopK; its first latents are the general ones.

    Source: Bussmann et al. 2025 (arXiv 2503.17547), section 3; prefixes as there, each with twice
    as many new latents as the one before.
    """

    class Config(BatchTopK.Config):
        """Settings."""

        prefixes: list[float] = setting(
            [1 / 32, 3 / 32, 7 / 32, 15 / 32, 1.0],
            help="sizes of the prefixes as rising shares of d_sae; the last is 1",
        )

        @field_validator("prefixes")
        @classmethod
        def _rising(cls, prefixes: list[float]) -> list[float]:
            rising = all(0 < a < b for a, b in pairwise([*prefixes, 2.0]))
            if not prefixes or not rising or prefixes[-1] != 1:
                raise ValueError("rising shares above 0 whose last is 1, for example [0.25,0.5,1]")
            return prefixes

    def __init__(self, config: Config, shape: Shape, init: Init) -> None:
        super().__init__(config, shape, init)
        self.ends = sorted({max(1, round(share * shape.d_sae)) for share in config.prefixes})

    def loss_rows(self, found: Encoding, state: StepState) -> dict[str, Tensor]:
        """AuxK, and the errors of all prefixes but the whole, summed."""
        terms = super().loss_rows(found, state)
        if len(self.ends) == 1:
            return terms
        so_far, errors = self.base(found.x), found.x.new_zeros(len(found.x))
        for start, end in pairwise([0, *self.ends[:-1]]):
            so_far = so_far + self._part(found.code, start, end)
            errors = errors + (found.target - so_far.to(found.x.dtype)).square().mean(dim=1)
        return terms | {"prefixes": errors}

    def _part(self, code: Code, start: int, end: int) -> Float[Tensor, "batch d_out"]:
        """Part of the reconstruction that the latents of a range add."""
        if isinstance(code, SparseCode):
            kept = (code.pattern.latents >= start) & (code.pattern.latents < end)
            some = SparseCode(code.pattern.only(kept), code.values[kept])
            return some.atoms_sum(self.W_dec)
        return code.dense()[:, start:end] @ self.W_dec[start:end]
