"""Non-negative parts, by scikit-learn's NMF."""

import logging
from typing import Any, ClassVar

import torch

from sae.dictionaries.baselines.base import (
    Baseline,
    Learned,
    Vectors,
    check_sample,
    converges,
    register,
    unit_rows_and_norms,
)
from sae.dictionaries.baselines.pca import check_components
from sae.dictionaries.sae import SAE, SAEConfig
from sae.settings import setting

log = logging.getLogger(__name__)


@register("nmf")
class NMF(Baseline):
    r"""$x - m \approx f H$ with f and H at least 0, where m is the smallest value of a coordinate.

    m is that of the sample; other vectors may lie below it, and what does is not reconstructed.
    NMF's own code of a vector is a non-negative least squares problem, which no linear encoder
    solves. With `k` the encoder is the pseudo-inverse of H, and the k largest positive entries
    stay. Without, `steps` steps of projected gradient solve the problem to that extent (activation
    `lista`): $f \leftarrow relu(f + \eta (x - m - f H) H^T)$, $1/\eta$ the largest eigenvalue of
    $H H^T$, rows of H of length 1.
    """

    free: ClassVar[frozenset[str]] = frozenset({"k", "steps"})
    costly: ClassVar[bool] = True

    components: int | None = setting(None, ge=1, help="rows of H; null: as many as coordinates")
    steps: int = setting(20, ge=1, le=100, help="steps of projected gradient, with k=null only")
    sample_vectors: int = setting(16_384, ge=1, help="training vectors that it is fitted to")
    max_iter: int = setting(200, ge=1, help="most iterations of the fit")
    seed: int = setting(0, ge=0, help="seed of the sample and of the start")

    def latents(self, d_in: int) -> int:
        """One for each row of H."""
        return self.components or d_in

    def check(self, d_in: int) -> None:
        """Refuse more components than coordinates."""
        check_components(self.word, self.components, d_in)
        super().check(d_in)

    def learn(self, x: Vectors) -> Learned:
        """Shift a copy of the sample to 0 and up, then factorise."""
        from sklearn import decomposition

        sample = x.sample(self.sample_vectors, self.seed)
        check_sample(self.word, len(sample), self.latents(x.d_in))
        shift = sample.amin(dim=0)
        options: dict[str, Any] = {"n_components": self.latents(x.d_in)}
        nmf = decomposition.NMF(random_state=self.seed, max_iter=self.max_iter, **options)
        log.info("NMF of %d vectors, at most %d iterations", len(sample), self.max_iter)
        converged = converges(nmf, (sample - shift).numpy())
        return Learned(
            {"rows": torch.as_tensor(nmf.components_).double(), "centre": shift.double()},
            {"vectors": len(sample), "iterations": int(nmf.n_iter_), "converged": converged},
        )

    def assemble(self, learned: Learned) -> SAE:
        """Pseudo-inverse and top-k, or projected gradient."""
        rows, centre = learned.tensors["rows"], learned.tensors["centre"]
        if self.k is not None:
            return self.sae(rows, torch.linalg.pinv(rows), centre, "relu")
        unit = unit_rows_and_norms(rows)[0]
        unit_or_silent = unit * (rows.norm(dim=1) > 0)[:, None]
        step = 1 / torch.linalg.eigvalsh(unit_or_silent @ unit_or_silent.T)[-1]
        plain = self.sae(unit, step * unit_or_silent.T, centre, "relu")
        config = SAEConfig(self.word, "lista", plain.d_in, plain.d_sae, steps=self.steps)
        return SAE(plain.W_enc, plain.b_enc, plain.W_dec, plain.b_dec, config)
