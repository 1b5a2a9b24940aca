"""Independent components, by scikit-learn's FastICA."""

import logging
from typing import ClassVar

import torch

from sae.dictionaries.baselines.base import (
    Baseline,
    Learned,
    Vectors,
    check_sample,
    converges,
    register,
)
from sae.dictionaries.sae import SAE
from sae.settings import setting

log = logging.getLogger(__name__)


@register("ica")
class ICA(Baseline):
    r"""FastICA (scikit-learn's defaults) on standardised coordinates of a sample.

    With the scaler's mean m and deviation s, FastICA's mean a, unmixing matrix W and mixing matrix
    A: sources $u = W((x - m) / s - a)$ and $\hat x = s (A u + a) + m$. Both are folded, with k as
    without (the authors' top-k form leaves the scaler out). The k largest are chosen by what they
    write, |u_j| times the length of column j of diag(s) A.
    """

    costly: ClassVar[bool] = True

    split: bool = setting(False, help="true: both signs as latents of their own, and a ReLU")
    sample_vectors: int = setting(32_768, ge=1, help="training vectors that it is fitted to")
    max_iter: int = setting(200, ge=1, help="most iterations")
    seed: int = setting(0, ge=0, help="seed of the sample and of the start")

    def latents(self, d_in: int) -> int:
        """One for each coordinate; two if split."""
        return (1 + self.split) * d_in

    def learn(self, x: Vectors) -> Learned:
        """Standardise, then unmix."""
        from sklearn.decomposition import FastICA
        from sklearn.preprocessing import StandardScaler

        sample = x.sample(self.sample_vectors, self.seed).numpy()
        check_sample(self.word, len(sample), x.d_in)
        scaler, ica = StandardScaler(), FastICA(random_state=self.seed, max_iter=self.max_iter)
        standardised = scaler.fit_transform(sample)
        log.info("FastICA of %d vectors, at most %d iterations", len(sample), self.max_iter)
        converged = converges(ica, standardised)
        m, s, a, W, A = (
            torch.as_tensor(part).double()
            for part in (scaler.mean_, scaler.scale_, ica.mean_, ica.components_, ica.mixing_)
        )
        return Learned(
            {"centre": m + s * a, "encoder": W.T / s[:, None], "rows": A.T * s},
            {"vectors": len(sample), "iterations": int(ica.n_iter_), "converged": converged},
        )

    def assemble(self, learned: Learned) -> SAE:
        """The encoder is the unmixing matrix, the decoder the mixing matrix."""
        found, form = learned.tensors, "split" if self.split else "signed"
        return self.sae(found["rows"], found["encoder"], found["centre"], form)
